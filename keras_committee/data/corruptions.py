"""What becomes of images that are noisy, blurred, in bad weather or badly stored?

Seventeen of the nineteen kinds of CIFAR-10-C at its five severities, made on the fly; frost (which needs photographs of
it), spatter and the difference of OpenCV's and ImageMagick's arithmetic are left out. The severities are those of its
authors for 32 pixels; lengths in pixels grow with the shorter side of an image.

Source: Hendrycks & Dietterich 2019, arXiv:1903.12261; the severities: make_cifar_c.py of
https://github.com/hendrycks/robustness.
"""

import io
import types
from collections.abc import Sequence

import numpy as np
from PIL import Image

from keras_committee.choices import CORRUPTIONS, SEVERITIES

REFERENCE_SIDE = 32  # pixels, which the lengths below are for


def corrupt_images(
    images: np.ndarray, corruption: str, severity: int, seed: int = 0, first_index: int = 0
) -> np.ndarray:
    """The images with one corruption each; what is drawn for an image follows from its place, kind, severity and seed.

    Args:
        images: uint8 `(examples, height, width, 3)`.
        corruption: One of `CORRUPTIONS`.
        severity: 1, the mildest, to 5.
        seed: Integer of 0 or more.
        first_index: The place of the first image among all of them: a batch is corrupted as a part of the whole.

    Returns:
        uint8 `(examples, height, width, 3)`.

    Raises:
        ValueError: If an argument is none of these.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images must be uint8 (examples, height, width, 3). Received: {images.dtype} of shape {images.shape}"
        )
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"a corruption is one of {', '.join(CORRUPTIONS)} at a severity of 1 to 5. Received: {corruption!r} at {severity!r}"
        )
    corrupt, constants = _SEVERITY_TABLE[corruption]
    out = np.empty_like(images)
    for index, image in enumerate(images, first_index):
        rng = np.random.default_rng((seed, CORRUPTIONS.index(corruption), severity, index))
        pixels = corrupt(image / 255.0, constants[severity - 1], rng)
        out[index - first_index] = np.rint(np.clip(pixels, 0, 1) * 255)
    return out


# Each takes a float image (height, width, 3) in [0, 1], the constant of its severity and a numpy generator.


def _gaussian_noise(image, scale, rng):
    return image + rng.normal(scale=scale, size=image.shape)


def _shot_noise(image, photons, rng):
    return rng.poisson(image * photons) / photons


def _impulse_noise(image, probability, rng):
    """Salt and pepper, in each channel by itself."""
    hit, salt = rng.random((2, *image.shape))
    return np.where(hit < probability, (salt < 0.5).astype(float), image)


def _speckle_noise(image, scale, rng):
    return image + image * rng.normal(scale=scale, size=image.shape)


def _gaussian_blur(image, sigma, rng):
    return gaussian_blur(image, sigma * _length_scale(image))


def _defocus_blur(image, constants, rng):
    """A disk, its rim softened by a Gaussian over the nearest pixels."""
    radius, sigma = (value * _length_scale(image) for value in constants)
    half_width = int(np.ceil(radius)) + 1
    row, column = np.mgrid[-half_width : half_width + 1, -half_width : half_width + 1]
    disk = (row**2 + column**2 <= radius**2).astype(float)
    edge_kernel = np.exp(-0.5 * (np.array([-1, 0, 1]) / sigma) ** 2)
    return filter2d(image, filter2d(disk[..., None], np.outer(edge_kernel, edge_kernel))[..., 0])


def _glass_blur(image, constants, rng):
    """Pixels take the place of a neighbour up or left, between two blurs.

    The program there means to swap the two, but numpy's views make it a copy; its images, and these, show the copy.
    """
    sigma, max_shift, iterations = constants
    sigma, max_shift = sigma * _length_scale(image), max(1, round(max_shift * _length_scale(image)))
    image = gaussian_blur(image, sigma)
    height, width = image.shape[:2]
    for _ in range(iterations):
        rows, columns = np.mgrid[max_shift + 1 : height, max_shift + 1 : width]
        rows, columns = (
            coordinates + rng.integers(-max_shift, max_shift, coordinates.shape) for coordinates in (rows, columns)
        )
        shifted = image[np.minimum(rows, height - 1), np.minimum(columns, width - 1)]
        image = image.copy()
        image[max_shift + 1 :, max_shift + 1 :] = shifted
    return gaussian_blur(image, sigma)


def _motion_blur(image, constants, rng):
    radius, sigma = constants
    return motion_blur(image, round(radius * _length_scale(image)), sigma * _length_scale(image), rng.uniform(-45, 45))


def _zoom_blur(image, max_factor, rng):
    factors = np.arange(1, max_factor, 0.01)
    return (image + sum(zoom(image, factor) for factor in factors)) / (len(factors) + 1)


def _snow(image, constants, rng):
    """Flakes that fall, motion-blurred, over an image that is whitened."""
    mean, std, zoom_factor, threshold, radius, sigma, image_weight = constants
    flakes = zoom(rng.normal(mean, std, (*image.shape[:2], 1)), zoom_factor * max(1, _length_scale(image)))
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    angle = rng.uniform(-135, -45)
    flakes = motion_blur(flakes, round(radius * _length_scale(image)), sigma * _length_scale(image), angle)
    gray = image @ np.array([[0.299], [0.587], [0.114]])
    whitened = image_weight * image + (1 - image_weight) * np.maximum(image, gray * 1.5 + 0.5)
    return whitened + flakes + np.rot90(flakes, 2)


def _fog(image, constants, rng):
    amount, decay = constants
    max_value = image.max()
    return (image + amount * _plasma(image.shape[:2], decay, rng)) * max_value / (max_value + amount)


def _plasma(shape, decay, rng):
    """A height map `(height, width, 1)` in [0, 1]: ever finer grids of noise, each `decay` squared times as weak.

    There it is a diamond-square fractal, whose noise falls by that from one grid to the next.
    """
    rows, columns = np.meshgrid(*(np.linspace(0, 1, length) for length in shape), indexing="ij")
    heights = np.zeros((*shape, 1))
    for level in range(1, max(2, int(np.ceil(np.log2(max(shape)))) + 1)):
        cells = 2**level
        grid = rng.uniform(-1, 1, (cells + 1, cells + 1, 1))
        heights += map_coordinates(grid, rows * cells, columns * cells) / decay ** (2 * level)
    heights -= heights.min()
    return heights / max(heights.max(), 1e-12)


def _brightness(image, amount, rng):
    """The value of hue, saturation and value, raised; black becomes grey."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    return np.where(value > 0, image * brighter / np.maximum(value, 1e-12), brighter)


def _contrast(image, factor, rng):
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def _saturate(image, constants, rng):
    """The saturation of hue, saturation and value, stretched and raised; the hue of grey is red."""
    factor, offset = constants
    value = image.max(axis=2, keepdims=True)
    saturation = 1 - image.min(axis=2, keepdims=True) / np.maximum(value, 1e-12)
    hue = np.where(saturation > 0, (value - image) / np.maximum(value * saturation, 1e-12), np.array([0.0, 1, 1]))
    return value * (1 - np.clip(saturation * factor + offset, 0, 1) * hue)


def _elastic(image, constants, rng):
    """Three points of the image are moved, and each of its pixels by a smooth field."""
    amplitude, sigma, max_shift = (value * min(image.shape[:2]) for value in constants)
    height, width = image.shape[:2]
    point_offset, center = min(height, width) // 3, np.array([width // 2, height // 2])
    source_points = center + np.array(
        [[point_offset, point_offset], [point_offset, -point_offset], [-point_offset, -point_offset]]
    )
    target_points = source_points + rng.uniform(-max_shift, max_shift, (3, 2))
    # Where each pixel of the new image lies in the old one: the map from `after` to `before`.
    affine = np.linalg.solve(np.column_stack([target_points, np.ones(3)]), source_points)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    source = grid @ affine[:2] + affine[2]
    moved = map_coordinates(image, source[..., 1], source[..., 0])
    field = gaussian_blur(rng.uniform(-1, 1, (height, width, 2)), sigma) * amplitude
    return map_coordinates(moved, grid[..., 1] + field[..., 1], grid[..., 0] + field[..., 0])


def _pixelate(image, scale, rng):
    height, width = image.shape[:2]
    small = (max(1, int(width * scale)), max(1, int(height * scale)))
    return _to_float(_to_pil(image).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX))


def _jpeg(image, quality, rng):
    content = io.BytesIO()
    _to_pil(image).save(content, "JPEG", quality=quality)
    return _to_float(Image.open(content))


def _to_pil(image):
    return Image.fromarray(np.rint(image * 255).astype(np.uint8))


def _to_float(image):
    return np.asarray(image) / 255.0


def _length_scale(image):
    return min(image.shape[:2]) / REFERENCE_SIDE


_SEVERITY_TABLE = types.MappingProxyType(
    {
        "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
        "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
        "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
        "speckle_noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
        "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
        # Radius and sigma of the rim.
        "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
        # Sigma, how far pixels move, and how often.
        "glass_blur": (_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
        # Radius and sigma.
        "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
        # The largest factor, excluded; they rise by 0.01.
        "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
        # Mean, spread and zoom of the flakes, what is none, radius and sigma of their fall, share of the image.
        "snow": (
            _snow,
            (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
        ),
        # Amount and decay.
        "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
        "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
        "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
        # Factor and what is added.
        "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
        # Amount and smoothness of the field, and how far the points move, as shares of the shorter side.
        "elastic_transform": (
            _elastic,
            ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ),
        "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
        "jpeg_compression": (_jpeg, (80, 65, 58, 50, 40)),
    }
)

def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurred by a Gaussian of `sigma` pixels that ends at four of them, as in SciPy and scikit-image."""
    if sigma <= 0:
        return image
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    steps = range(-radius, radius + 1)
    down = convolve(image, kernel, [(step, 0) for step in steps])
    return convolve(down, kernel, [(0, step) for step in steps])


def filter2d(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each pixel the mean of its surroundings, weighted by `kernel`, of odd height and width."""
    rows, columns = (np.arange(length) - length // 2 for length in kernel.shape)
    offsets = [(int(row), int(column)) for row in rows for column in columns]
    return convolve(image, kernel.ravel(), offsets)


def convolve(image: np.ndarray, weights: np.ndarray, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The mean of `image` seen from each of `offsets`, (rows down, columns right), by their `weights`."""
    margin = max(max(abs(row), abs(column)) for row, column in offsets)
    height, width = image.shape[:2]
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    out = np.zeros_like(image)
    for weight, (row, column) in zip(weights / np.sum(weights), offsets, strict=True):
        if weight:
            out += weight * padded[margin + row :, margin + column :][:height, :width]
    return out


def motion_blur(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blurred along `angle`, in degrees, to one side: half a Gaussian of `sigma` pixels over `2 radius + 1` steps.

    Source: ImageMagick's MotionBlurImage.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    down, right = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    offsets = [(round(step * down), round(step * right)) for step in steps.tolist()]
    return convolve(image, weights, offsets)


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image, `factor` times as large, in its old size, bilinear."""
    row_matrix, column_matrix = (_zoom_matrix(length, factor) for length in image.shape[:2])
    return column_matrix @ (row_matrix @ image.reshape(len(image), -1)).reshape(image.shape)


def map_coordinates(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The image at places between its pixels, bilinear: `(h, w, channels)` for `rows` and `columns` of `(h, w)`.

    Beyond its edge the image is mirrored at its last pixel.
    """
    (above, below, row_weight), (left, right_neighbor, column_weight) = (
        _lerp_coordinates(coordinates, length)
        for coordinates, length in ((rows, image.shape[0]), (columns, image.shape[1]))
    )
    upper = image[above, left] * (1 - column_weight) + image[above, right_neighbor] * column_weight
    lower = image[below, left] * (1 - column_weight) + image[below, right_neighbor] * column_weight
    return upper * (1 - row_weight) + lower * row_weight


def _lerp_coordinates(coordinates: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels before and after each place, and how far it is from the first to the second, `(h, w, 1)`."""
    period = max(2 * (length - 1), 1)
    folded = np.abs(coordinates) % period
    folded = np.clip(np.where(folded > length - 1, period - folded, folded), 0, length - 1)
    lower = np.floor(folded).astype(int)
    return lower, np.minimum(lower + 1, length - 1), (folded - lower)[..., None]


def _zoom_matrix(length: int, factor: float) -> np.ndarray:
    """The matrix `(length, length)` that makes a row of pixels `factor` times as long about its middle."""
    middle = (length - 1) / 2
    coordinates = ((np.arange(length) - middle) / factor + middle)[:, None]
    return np.maximum(0, 1 - np.abs(coordinates - np.arange(length)))
