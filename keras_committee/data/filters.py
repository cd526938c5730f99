"""How is one image blurred, moved, zoomed and warped?

Images are floats `(height, width, channels)`. Beyond its edge an image goes on with its last pixel,
unless said otherwise.
"""

from collections.abc import Sequence

import numpy as np


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurred by a Gaussian of `sigma` pixels that ends at four of them, as in SciPy and scikit-image."""
    if sigma <= 0:
        return image
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    steps = range(-reach, reach + 1)
    down = weighted(image, kernel, [(step, 0) for step in steps])
    return weighted(down, kernel, [(0, step) for step in steps])


def filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each pixel the mean of its surroundings, weighted by `kernel`, of odd height and width."""
    rows, columns = (np.arange(length) - length // 2 for length in kernel.shape)
    places = [(int(row), int(column)) for row in rows for column in columns]
    return weighted(image, kernel.ravel(), places)


def weighted(image: np.ndarray, weights: np.ndarray, places: Sequence[tuple[int, int]]) -> np.ndarray:
    """The mean of `image` seen from each of `places`, (rows down, columns right), by their `weights`."""
    reach = max(max(abs(row), abs(column)) for row, column in places)
    height, width = image.shape[:2]
    padded = np.pad(image, [(reach, reach), (reach, reach), (0, 0)], mode="edge")
    out = np.zeros_like(image)
    for weight, (row, column) in zip(weights / np.sum(weights), places, strict=True):
        if weight:
            out += weight * padded[reach + row :, reach + column :][:height, :width]
    return out


def motion_blur(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blurred along `angle`, in degrees, to one side: half a Gaussian of `sigma` pixels over `2 radius + 1` steps.

    Source: ImageMagick's MotionBlurImage.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    down, right = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    places = [(round(step * down), round(step * right)) for step in steps.tolist()]
    return weighted(image, weights, places)


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image, `factor` times as large, in its old size, bilinear."""
    down, right = (_stretch(length, factor) for length in image.shape[:2])
    return right @ (down @ image.reshape(len(image), -1)).reshape(image.shape)


def sampled(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The image at places between its pixels, bilinear: `(h, w, channels)` for `rows` and `columns` of `(h, w)`.

    Beyond its edge the image is mirrored at its last pixel.
    """
    (top, below, down), (left, beside, right) = (
        _between(places, length) for places, length in ((rows, image.shape[0]), (columns, image.shape[1]))
    )
    upper = image[top, left] * (1 - right) + image[top, beside] * right
    lower = image[below, left] * (1 - right) + image[below, beside] * right
    return upper * (1 - down) + lower * down


def _between(places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels before and after each place, and how far it is from the first to the second, `(h, w, 1)`."""
    period = max(2 * (length - 1), 1)
    folded = np.abs(places) % period
    folded = np.clip(np.where(folded > length - 1, period - folded, folded), 0, length - 1)
    before = np.floor(folded).astype(int)
    return before, np.minimum(before + 1, length - 1), (folded - before)[..., None]


def _stretch(length: int, factor: float) -> np.ndarray:
    """The matrix `(length, length)` that makes a row of pixels `factor` times as long about its middle."""
    middle = (length - 1) / 2
    places = ((np.arange(length) - middle) / factor + middle)[:, None]
    return np.maximum(0, 1 - np.abs(places - np.arange(length)))
