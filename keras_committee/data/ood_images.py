"""Which images, noise and textures, belong to no class of any data?

Source: Gaussian, Rademacher and Blobs: Hendrycks et al. 2019, arXiv:1812.04606, appendix A.
"""

import types

import numpy as np

from keras_committee.data.corruptions import gaussian_blur


def generated(kind: str, examples: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Images of one of `FOREIGN`, uint8 `(examples, height, width, 3)`; they follow from kind, place and seed.

    Args:
        kind: `"gaussian"`: every value normal about grey; `"rademacher"`: every value 0 or 255; `"blobs"`: shapes
            of pure colours with sharp rims; `"stripes"`: a wave in two colours, of any direction and of 2 to 8 periods.
        examples: How many.
        size: Height and width.
        seed: Integer of 0 or more.
    """
    draws = (np.random.default_rng((seed, FOREIGN.index(kind), place)) for place in range(examples))
    images = np.stack([_MAKERS[kind](size, draw) for draw in draws])
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _gaussian(size, draw):
    return draw.normal(0.5, 0.5, (*size, 3))


def _rademacher(size, draw):
    return draw.integers(0, 2, (*size, 3)).astype(float)


def _blobs(size, draw):
    smooth = gaussian_blur(draw.normal(size=(*size, 3)), min(size) / 16)
    return (smooth > np.median(smooth)).astype(float)


def _stripes(size, draw):
    rows, columns = np.meshgrid(*(np.linspace(0, 1, length) for length in size), indexing="ij")
    angle, periods, phase = draw.uniform(0, np.pi), draw.uniform(2, 8), draw.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * periods * (rows * np.sin(angle) + columns * np.cos(angle)) + phase)
    one, other = draw.random((2, 3))
    return one + (other - one) * (wave[..., None] + 1) / 2


_MAKERS = types.MappingProxyType(
    {"gaussian": _gaussian, "rademacher": _rademacher, "blobs": _blobs, "stripes": _stripes}
)
FOREIGN = tuple(_MAKERS)
