"""Image corruptions: noise, blur, weather and compression, following CIFAR-10-C.

Seventeen of the nineteen kinds of CIFAR-10-C at its five severities, computed on the fly. Frost (which needs
photographs of it) and spatter are left out, and the arithmetic of OpenCV and ImageMagick is not reproduced bit for bit.
The severities are the authors' for 32 pixels; lengths in pixels grow with the shorter side of an image.
ImageNet-C has severities of its own, most of them stronger: its `zoom_blur` starts where the second one here is.

Source: Hendrycks & Dietterich 2019, arXiv:1903.12261; severities: make_cifar_c.py of
https://github.com/hendrycks/robustness.
"""

import io
import math
import types

import numpy as np
from PIL import Image
from scipy import ndimage

from keras_committee.choices import CORRUPTIONS, SEVERITIES

REFERENCE_SIDE = 32  # pixels; the lengths of `_SEVERITY_TABLE` are for images of this size


def corrupt_images(
    images: np.ndarray, corruption: str, severity: int, seed: int = 0, first_index: int = 0
) -> np.ndarray:
    """Apply one corruption to every image.

    The randomness of an image is a function of its index, the corruption, the severity and the seed.

    Args:
        images: uint8 `(examples, height, width, 3)`.
        corruption: One of `CORRUPTIONS`.
        severity: 1, the mildest, to 5.
        seed: Integer of 0 or more.
        first_index: Index of `images[0]` in the data set, so that any batch gives the same images as the whole set.

    Returns:
        uint8 `(examples, height, width, 3)`.

    Raises:
        ValueError: If the images are of another dtype or shape, or `corruption` or `severity` is unknown.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            "images must be uint8 of shape (examples, height, width, 3). "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    if corruption not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}. Received: corruption={corruption!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5. Received: severity={severity!r}")
    corrupt, constants = _SEVERITY_TABLE[corruption]
    out = np.empty_like(images)
    for index, image in enumerate(images, first_index):
        rng = np.random.default_rng((seed, CORRUPTIONS.index(corruption), severity, index))
        pixels = corrupt(image / 255.0, constants[severity - 1], rng)
        out[index - first_index] = np.rint(np.clip(pixels, 0, 1) * 255)
    return out


# Each corruption takes a float image (height, width, 3) in [0, 1], the constants of its severity and an `rng`.


def _gaussian_noise(image, scale, rng):
    return image + rng.normal(scale=scale, size=image.shape)


def _shot_noise(image, photons, rng):
    return rng.poisson(image * photons) / photons


def _impulse_noise(image, probability, rng):
    """Salt and pepper, drawn for each channel separately."""
    hit, salt = rng.random((2, *image.shape))
    return np.where(hit < probability, (salt < 0.5).astype(float), image)


def _speckle_noise(image, scale, rng):
    return image + image * rng.normal(scale=scale, size=image.shape)


def _gaussian_blur(image, sigma, rng):
    return _blur(image, sigma * _length_scale(image))


def _defocus_blur(image, constants, rng):
    """Correlation with a disk whose edge is smoothed by a 3x3 Gaussian."""
    radius, sigma = (value * _length_scale(image) for value in constants)
    half_width = int(np.ceil(radius)) + 1
    row, column = np.mgrid[-half_width : half_width + 1, -half_width : half_width + 1]
    disk = (row**2 + column**2 <= radius**2).astype(float)
    edge_kernel = np.exp(-0.5 * (np.array([-1, 0, 1]) / sigma) ** 2)
    kernel = ndimage.correlate(disk, np.outer(edge_kernel, edge_kernel), mode="nearest")
    return ndimage.correlate(image, kernel[..., None] / kernel.sum(), mode="nearest")


def _glass_blur(image, constants, rng):
    """Replace each pixel by a random one nearby, between two blurs.

    make_cifar_c.py means to swap the two pixels, but NumPy's views make it a copy, also in the published images.
    """
    sigma, max_shift, iterations = constants
    sigma, max_shift = sigma * _length_scale(image), max(1, round(max_shift * _length_scale(image)))
    image = _blur(image, sigma)
    height, width = image.shape[:2]
    for _ in range(iterations):
        rows, columns = np.mgrid[max_shift + 1 : height, max_shift + 1 : width]
        rows, columns = (
            coordinates + rng.integers(-max_shift, max_shift, coordinates.shape) for coordinates in (rows, columns)
        )
        shifted = image[np.minimum(rows, height - 1), np.minimum(columns, width - 1)]
        image = image.copy()
        image[max_shift + 1 :, max_shift + 1 :] = shifted
    return _blur(image, sigma)


def _motion_blur(image, constants, rng):
    radius, sigma = (value * _length_scale(image) for value in constants)
    return _blur_along(image, round(radius), sigma, rng.uniform(-45, 45))


def _zoom_blur(image, max_factor, rng):
    factors = np.arange(1, max_factor, 0.01)
    return (image + sum(_zoom(image, factor) for factor in factors)) / (len(factors) + 1)


def _snow(image, constants, rng):
    """Motion-blurred flakes over a whitened image."""
    mean, std, zoom_factor, threshold, radius, sigma, image_weight = constants
    flakes = _zoom(rng.normal(mean, std, (*image.shape[:2], 1)), zoom_factor * max(1, _length_scale(image)))
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    angle = rng.uniform(-135, -45)
    flakes = _blur_along(flakes, round(radius * _length_scale(image)), sigma * _length_scale(image), angle)
    gray = image @ np.array([[0.299], [0.587], [0.114]])
    whitened = image_weight * image + (1 - image_weight) * np.maximum(image, gray * 1.5 + 0.5)
    return whitened + flakes + np.rot90(flakes, 2)


def _fog(image, constants, rng):
    amount, decay = constants
    max_value = image.max()
    return (image + amount * _plasma(image.shape[:2], decay, rng)) * max_value / (max_value + amount)


def _plasma(shape, decay, rng):
    """Return a height map `(height, width, 1)` in [0, 1]: the sum of ever finer grids of noise.

    The amplitude falls by `decay` squared from one grid to the next, as in the diamond-square fractal of
    make_cifar_c.py.
    """
    rows, columns = np.meshgrid(*(np.linspace(0, 1, length) for length in shape), indexing="ij")
    heights = np.zeros((*shape, 1))
    for level in range(1, max(2, int(np.ceil(np.log2(max(shape)))) + 1)):
        cells = 2**level
        grid = rng.uniform(-1, 1, (cells + 1, cells + 1, 1))
        heights += _sample(grid, rows * cells, columns * cells) / decay ** (2 * level)
    heights -= heights.min()
    return heights / max(heights.max(), 1e-12)


def _brightness(image, amount, rng):
    """Raise the V of HSV; black becomes gray."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    return np.where(value > 0, image * brighter / np.maximum(value, 1e-12), brighter)


def _contrast(image, factor, rng):
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def _saturate(image, constants, rng):
    """Scale and shift the S of HSV; the hue of gray is red."""
    factor, offset = constants
    value = image.max(axis=2, keepdims=True)
    saturation = 1 - image.min(axis=2, keepdims=True) / np.maximum(value, 1e-12)
    hue = np.where(saturation > 0, (value - image) / np.maximum(value * saturation, 1e-12), np.array([0.0, 1, 1]))
    return value * (1 - np.clip(saturation * factor + offset, 0, 1) * hue)


def _elastic(image, constants, rng):
    """Apply a random affine map, given by three moved points, then a smooth displacement field."""
    amplitude, sigma, max_shift = (value * min(image.shape[:2]) for value in constants)
    height, width = image.shape[:2]
    point_offset, center = min(height, width) // 3, np.array([width // 2, height // 2])
    source_points = center + np.array(
        [[point_offset, point_offset], [point_offset, -point_offset], [-point_offset, -point_offset]]
    )
    target_points = source_points + rng.uniform(-max_shift, max_shift, (3, 2))
    # Maps a pixel of the new image to its source: from `target_points` to `source_points`.
    affine = np.linalg.solve(np.column_stack([target_points, np.ones(3)]), source_points)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    source = grid @ affine[:2] + affine[2]
    moved = _sample(image, source[..., 1], source[..., 0])
    field = _blur(rng.uniform(-1, 1, (height, width, 2)), sigma) * amplitude
    return _sample(moved, grid[..., 1] + field[..., 1], grid[..., 0] + field[..., 0])


def _pixelate(image, scale, rng):
    height, width = image.shape[:2]
    small = (max(1, int(width * scale)), max(1, int(height * scale)))
    return _to_float(_to_pil(image).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX))


def _jpeg(image, quality, rng):
    content = io.BytesIO()
    _to_pil(image).save(content, "JPEG", quality=quality)
    return _to_float(Image.open(content))


def _blur(image, sigma):
    """Gaussian blur of `sigma` pixels over height and width, truncated at four sigma."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4)


def _blur_along(image, radius, sigma, angle):
    """Blur in one direction along `angle`, in degrees: half a Gaussian of `sigma` pixels over `2 * radius + 1` steps.

    Adds up shifted images. `ndimage.correlate` with the same, mostly empty kernel gives equal pixels but takes 3.5 s
    instead of 0.03 s for 224x224 pixels and a radius of 63.

    Source: ImageMagick's MotionBlurImage.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    rows, columns = (
        np.rint(steps * length).astype(int) for length in (np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle)))
    )
    margin = max(np.abs(rows).max(), np.abs(columns).max())
    height, width = image.shape[:2]
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    out = np.zeros_like(image)
    for weight, row, column in zip(weights / weights.sum(), rows, columns, strict=True):
        out += weight * padded[margin + row :, margin + column :][:height, :width]
    return out


def _zoom(image, factor):
    """Enlarge the middle of the image `factor` times to the size of the image, bilinear.

    make_cifar_c.py crops whole pixels before and after it enlarges, so the result is off center by up to a pixel. At 32
    pixels this makes up half of the difference of severity 1 to the image, also in the published images.
    """
    sides = (_zoom_positions(length, factor) for length in image.shape[:2])
    return _sample(image, *np.meshgrid(*sides, indexing="ij"))


def _zoom_positions(length, factor):
    crop = math.ceil(length / factor)
    enlarged = round(crop * factor)
    first, first_enlarged = (length - crop) // 2, (enlarged - length) // 2
    # As in `ndimage.zoom`: the first and last pixels of the crop are those of the enlarged crop.
    return first + (first_enlarged + np.arange(length)) * (crop - 1) / max(enlarged - 1, 1)


def _sample(image, rows, columns):
    """Sample each channel at fractional positions `rows` and `columns` `(h, w)`, bilinear, mirrored at the edges."""
    channels = [
        ndimage.map_coordinates(channel, (rows, columns), order=1, mode="mirror")
        for channel in np.moveaxis(image, 2, 0)
    ]
    return np.stack(channels, axis=2)


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
        # Radius, and sigma of the edge.
        "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
        # Sigma, largest shift, iterations.
        "glass_blur": (_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
        # Radius and sigma.
        "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
        # Largest factor; the factors rise from 1 in steps of 0.01.
        "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
        # Mean, standard deviation, zoom and threshold of the flakes; radius and sigma of their blur; image weight.
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
        # Factor and offset.
        "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
        # Amplitude and sigma of the field, and largest shift of the points, as fractions of the shorter side.
        "elastic_transform": (
            _elastic,
            ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ),
        "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
        "jpeg_compression": (_jpeg, (80, 65, 58, 50, 40)),
    }
)
