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

SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 32  # pixels, which the lengths below are for


def corrupted(images: np.ndarray, kind: str, severity: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """The images with one corruption each; what is drawn for an image follows from its place, kind, severity and seed.

    Args:
        images: uint8 `(examples, height, width, 3)`.
        kind: One of `KINDS`.
        severity: 1, the mildest, to 5.
        seed: Integer of 0 or more.
        first: The place of the first image among all of them: a batch is corrupted as a part of the whole.

    Returns:
        uint8 `(examples, height, width, 3)`.

    Raises:
        ValueError: If an argument is none of these.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images must be uint8 (examples, height, width, 3). Received: {images.dtype} of shape {images.shape}"
        )
    if kind not in KINDS or severity not in SEVERITIES:
        raise ValueError(
            f"a corruption is one of {', '.join(KINDS)} at a severity of 1 to 5. Received: {kind!r} at {severity!r}"
        )
    corrupt, constants = _TABLE[kind]
    out = np.empty_like(images)
    for place, image in enumerate(images, first):
        draw = np.random.default_rng((seed, KINDS.index(kind), severity, place))
        floats = corrupt(image / 255.0, constants[severity - 1], draw)
        out[place - first] = np.rint(np.clip(floats, 0, 1) * 255)
    return out


# Each takes a float image (height, width, 3) in [0, 1], the constant of its severity and a numpy generator.


def _gaussian_noise(image, scale, draw):
    return image + draw.normal(scale=scale, size=image.shape)


def _shot_noise(image, photons, draw):
    return draw.poisson(image * photons) / photons


def _impulse_noise(image, amount, draw):
    """Salt and pepper, in each channel by itself."""
    hit, salt = draw.random((2, *image.shape))
    return np.where(hit < amount, (salt < 0.5).astype(float), image)


def _speckle_noise(image, scale, draw):
    return image + image * draw.normal(scale=scale, size=image.shape)


def _gaussian_blur(image, sigma, draw):
    return gaussian_blur(image, sigma * _scale(image))


def _defocus_blur(image, constants, draw):
    """A disk, its rim softened by a Gaussian over the nearest pixels."""
    radius, sigma = (value * _scale(image) for value in constants)
    reach = int(np.ceil(radius)) + 1
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (row**2 + column**2 <= radius**2).astype(float)
    near = np.exp(-0.5 * (np.array([-1, 0, 1]) / sigma) ** 2)
    return filtered(image, filtered(disk[..., None], np.outer(near, near))[..., 0])


def _glass_blur(image, constants, draw):
    """Pixels take the place of a neighbour up or left, between two blurs.

    The program there means to swap the two, but numpy's views make it a copy; its images, and these, show the copy.
    """
    sigma, reach, rounds = constants
    sigma, reach = sigma * _scale(image), max(1, round(reach * _scale(image)))
    image = gaussian_blur(image, sigma)
    height, width = image.shape[:2]
    for _ in range(rounds):
        rows, columns = np.mgrid[reach + 1 : height, reach + 1 : width]
        rows, columns = (places + draw.integers(-reach, reach, places.shape) for places in (rows, columns))
        inner = image[np.minimum(rows, height - 1), np.minimum(columns, width - 1)]
        image = image.copy()
        image[reach + 1 :, reach + 1 :] = inner
    return gaussian_blur(image, sigma)


def _motion_blur(image, constants, draw):
    radius, sigma = constants
    return motion_blur(image, round(radius * _scale(image)), sigma * _scale(image), draw.uniform(-45, 45))


def _zoom_blur(image, largest, draw):
    factors = np.arange(1, largest, 0.01)
    return (image + sum(zoomed(image, factor) for factor in factors)) / (len(factors) + 1)


def _snow(image, constants, draw):
    """Flakes that fall, motion-blurred, over an image that is whitened."""
    mean, spread, zoom, least, radius, sigma, share = constants
    flakes = zoomed(draw.normal(mean, spread, (*image.shape[:2], 1)), zoom * max(1, _scale(image)))
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    angle = draw.uniform(-135, -45)
    flakes = motion_blur(flakes, round(radius * _scale(image)), sigma * _scale(image), angle)
    grey = image @ np.array([[0.299], [0.587], [0.114]])
    whitened = share * image + (1 - share) * np.maximum(image, grey * 1.5 + 0.5)
    return whitened + flakes + np.rot90(flakes, 2)


def _fog(image, constants, draw):
    amount, decay = constants
    most = image.max()
    return (image + amount * _plasma(image.shape[:2], decay, draw)) * most / (most + amount)


def _plasma(shape, decay, draw):
    """A height map `(height, width, 1)` in [0, 1]: ever finer grids of noise, each `decay` squared times as weak.

    There it is a diamond-square fractal, whose noise falls by that from one grid to the next.
    """
    rows, columns = np.meshgrid(*(np.linspace(0, 1, length) for length in shape), indexing="ij")
    heights = np.zeros((*shape, 1))
    for level in range(1, max(2, int(np.ceil(np.log2(max(shape)))) + 1)):
        cells = 2**level
        grid = draw.uniform(-1, 1, (cells + 1, cells + 1, 1))
        heights += sampled(grid, rows * cells, columns * cells) / decay ** (2 * level)
    heights -= heights.min()
    return heights / max(heights.max(), 1e-12)


def _brightness(image, amount, draw):
    """The value of hue, saturation and value, raised; black becomes grey."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    return np.where(value > 0, image * brighter / np.maximum(value, 1e-12), brighter)


def _contrast(image, share, draw):
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * share + mean


def _saturate(image, constants, draw):
    """The saturation of hue, saturation and value, stretched and raised; the hue of grey is red."""
    factor, more = constants
    value = image.max(axis=2, keepdims=True)
    saturation = 1 - image.min(axis=2, keepdims=True) / np.maximum(value, 1e-12)
    hue = np.where(saturation > 0, (value - image) / np.maximum(value * saturation, 1e-12), np.array([0.0, 1, 1]))
    return value * (1 - np.clip(saturation * factor + more, 0, 1) * hue)


def _elastic(image, constants, draw):
    """Three points of the image are moved, and each of its pixels by a smooth field."""
    amount, smooth, shift = (value * min(image.shape[:2]) for value in constants)
    height, width = image.shape[:2]
    third, middle = min(height, width) // 3, np.array([width // 2, height // 2])
    before = middle + np.array([[third, third], [third, -third], [-third, -third]])
    after = before + draw.uniform(-shift, shift, (3, 2))
    # Where each pixel of the new image lies in the old one: the map from `after` to `before`.
    affine = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    old = grid @ affine[:2] + affine[2]
    moved = sampled(image, old[..., 1], old[..., 0])
    field = gaussian_blur(draw.uniform(-1, 1, (height, width, 2)), smooth) * amount
    return sampled(moved, grid[..., 1] + field[..., 1], grid[..., 0] + field[..., 0])


def _pixelate(image, share, draw):
    height, width = image.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    return _floats(_picture(image).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX))


def _jpeg(image, quality, draw):
    content = io.BytesIO()
    _picture(image).save(content, "JPEG", quality=quality)
    return _floats(Image.open(content))


def _picture(image):
    return Image.fromarray(np.rint(image * 255).astype(np.uint8))


def _floats(picture):
    return np.asarray(picture) / 255.0


def _scale(image):
    return min(image.shape[:2]) / SIDE


_TABLE = types.MappingProxyType(
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
KINDS = tuple(_TABLE)


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
