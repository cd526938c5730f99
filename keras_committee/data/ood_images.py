"""Which images, noise and textures, belong to no class of any data?

Source: Gaussian, Rademacher and Blobs: Hendrycks et al. 2019, arXiv:1812.04606, appendix A.
"""

import types

import numpy as np

from keras_committee.data.corruptions import gaussian_blur


def generate_ood(kind: str, examples: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Images of one of `OOD_GENERATORS`, uint8 `(examples, height, width, 3)`; they follow from kind, place and seed.

    Args:
        kind: `"gaussian"`: every value normal about grey; `"rademacher"`: every value 0 or 255; `"blobs"`: shapes
            of pure colours with sharp rims; `"stripes"`: a wave in two colours, of any direction and of 2 to 8 periods.
        examples: How many.
        size: Height and width.
        seed: Integer of 0 or more.
    """
    rngs = (np.random.default_rng((seed, OOD_GENERATORS.index(kind), index)) for index in range(examples))
    images = np.stack([_GENERATOR_FNS[kind](size, rng) for rng in rngs])
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _gaussian(size, rng):
    return rng.normal(0.5, 0.5, (*size, 3))


def _rademacher(size, rng):
    return rng.integers(0, 2, (*size, 3)).astype(float)


def _blobs(size, rng):
    smooth = gaussian_blur(rng.normal(size=(*size, 3)), min(size) / 16)
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
