"""Generated out-of-distribution images: noise and textures that belong to no class.

Source: Gaussian, Rademacher and Blobs: Hendrycks et al. 2019, arXiv:1812.04606, appendix A.
"""

import types

import numpy as np
from scipy import ndimage


def generate_ood(kind: str, examples: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return images of one of `OOD_GENERATORS`, which are a function of kind, index and seed.

    Args:
        kind: `"gaussian"`: every value normal around gray; `"rademacher"`: every value 0 or 255; `"blobs"`: shapes
            of pure colors with sharp edges; `"stripes"`: a wave between two colors, in any direction, with 2 to 8
            periods.
        examples: Number of images.
        size: Height and width, in pixels.
        seed: Integer of 0 or more.

    Returns:
        uint8 `(examples, height, width, 3)`.
    """
    rngs = (np.random.default_rng((seed, OOD_GENERATORS.index(kind), index)) for index in range(examples))
    images = np.stack([_GENERATOR_FNS[kind](size, rng) for rng in rngs])
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _gaussian(size, rng):
    return rng.normal(0.5, 0.5, (*size, 3))


def _rademacher(size, rng):
    return rng.integers(0, 2, (*size, 3)).astype(float)


def _blobs(size, rng):
    sigma = min(size) / 16
    smooth = ndimage.gaussian_filter(rng.normal(size=(*size, 3)), (sigma, sigma, 0), mode="nearest", truncate=4)
    return (smooth > np.median(smooth)).astype(float)


def _stripes(size, rng):
    rows, columns = np.meshgrid(*(np.linspace(0, 1, length) for length in size), indexing="ij")
    angle, periods, phase = rng.uniform(0, np.pi), rng.uniform(2, 8), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * periods * (rows * np.sin(angle) + columns * np.cos(angle)) + phase)
    color_a, color_b = rng.random((2, 3))
    return color_a + (color_b - color_a) * (wave[..., None] + 1) / 2


_GENERATOR_FNS = types.MappingProxyType(
    {"gaussian": _gaussian, "rademacher": _rademacher, "blobs": _blobs, "stripes": _stripes}
)
OOD_GENERATORS = tuple(_GENERATOR_FNS)
