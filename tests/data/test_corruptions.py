"""Corruptions equal their definitions, are repeatable, and apply to images of any size."""

import collections
import colorsys
import io

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image
from scipy import ndimage

from keras_committee.data import corruptions
from keras_committee.data.corruptions import CORRUPTIONS, corrupt_images


@pytest.fixture(scope="module")
def photos():
    """Two photographs, uint8 (2, 32, 32, 3)."""
    images = sklearn.datasets.load_sample_images().images
    return np.stack([np.asarray(Image.fromarray(image[:400, :400]).resize((32, 32))) for image in images])


def distance(one, two):
    return np.abs(one.astype(float) - two).mean()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_the_same_again_and_in_any_batch(photos, kind):
    both = corrupt_images(photos, kind, 3, seed=2)
    assert (both.dtype, both.shape) == (np.uint8, photos.shape)
    np.testing.assert_array_equal(both, corrupt_images(photos.copy(), kind, 3, seed=2))
    np.testing.assert_array_equal(both[1:], corrupt_images(photos[1:], kind, 3, seed=2, first_index=1))
    assert 0 < distance(both, photos) < 80


@pytest.mark.parametrize(
    "kind", [kind for kind in CORRUPTIONS if kind not in ("saturate", "elastic_transform", "snow")]
)
def test_the_fifth_severity_is_worse_than_the_first(photos, kind):
    assert distance(corrupt_images(photos, kind, 5), photos) > 1.2 * distance(corrupt_images(photos, kind, 1), photos)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(17, 50), (2, 2)])
def test_images_may_have_any_size(kind, shape):
    images = np.random.default_rng(1).integers(0, 256, (1, *shape, 3)).astype(np.uint8)
    assert corrupt_images(images, kind, 5).shape == images.shape


def test_the_noise_depends_on_the_seed_and_on_the_image():
    same = np.full((2, 8, 8, 3), 100, np.uint8)
    one = corrupt_images(same, "gaussian_noise", 1)
    assert distance(one, corrupt_images(same, "gaussian_noise", 1, seed=1)) > 1
    assert distance(one[0], one[1]) > 1


def test_noise_has_the_spread_of_its_severity():
    gray = np.full((1, 200, 200, 3), 102, np.uint8)  # 0.4
    spread = {
        kind: corrupt_images(gray, kind, 4).std() / 255 for kind in ("gaussian_noise", "speckle_noise", "shot_noise")
    }
    assert spread["gaussian_noise"] == pytest.approx(0.09, rel=0.02)
    assert spread["speckle_noise"] == pytest.approx(0.4 * 0.16, rel=0.02)
    assert spread["shot_noise"] == pytest.approx(np.sqrt(0.4 / 75), rel=0.02)
    hit = corrupt_images(gray, "impulse_noise", 4)
    assert (hit == 0).mean() == pytest.approx(0.025, rel=0.1)
    assert (hit == 255).mean() == pytest.approx(0.025, rel=0.1)


def in_hsv(image, change):
    """Change each pixel in the standard library's HSV."""
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3) / 255.0]
    return np.rint(np.reshape(pixels, image.shape) * 255)


def test_brightness_and_saturation_are_changes_of_hue_saturation_and_value(photos):
    image = np.concatenate([photos[0, :8], np.zeros((1, 32, 3), np.uint8), np.full((1, 32, 3), 70, np.uint8)])
    brighter = in_hsv(image, lambda h, s, v: (h, s, min(v + 0.2, 1)))
    np.testing.assert_allclose(corrupt_images(image[None], "brightness", 4)[0], brighter, atol=1)
    redder = in_hsv(image, lambda h, s, v: (h, min(s * 2 + 0.1, 1), v))
    np.testing.assert_allclose(corrupt_images(image[None], "saturate", 4)[0], redder, atol=1)


def test_contrast_pulls_each_channel_to_its_mean(photos):
    mean = photos[0].mean(axis=(0, 1))
    np.testing.assert_allclose(corrupt_images(photos, "contrast", 4)[0], (photos[0] - mean) * 0.3 + mean, atol=0.6)


def test_jpeg_and_pixelate_are_pillows(photos):
    content = io.BytesIO()
    Image.fromarray(photos[1]).save(content, "JPEG", quality=58)
    np.testing.assert_array_equal(corrupt_images(photos, "jpeg_compression", 3)[1], np.asarray(Image.open(content)))
    blocks = Image.fromarray(photos[1]).resize((24, 24), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    np.testing.assert_array_equal(corrupt_images(photos, "pixelate", 4)[1], np.asarray(blocks))


def weighted_sum(image, weights):
    """Sum of `weight * image[row + down, column + right]` over {(down, right): weight}; the edge pixels repeat."""
    height, width = image.shape[:2]
    out = np.zeros_like(image)
    for (down, right), weight in weights.items():
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        out += weight * image[np.ix_(rows, columns)]
    return out / sum(weights.values())


def sample(image, row, column):
    """Bilinear interpolation between the four pixels around a position; the image is mirrored at its edge pixels."""
    height, width = image.shape[:2]
    row = abs(row) % (2 * height - 2)
    column = abs(column) % (2 * width - 2)
    row, column = min(row, 2 * height - 2 - row), min(column, 2 * width - 2 - column)
    top, left = min(int(row), height - 2), min(int(column), width - 2)
    weights = np.outer([top + 1 - row, row - top], [left + 1 - column, column - left])
    return np.einsum("rc,rcd->d", weights, image[top : top + 2, left : left + 2])


def assert_pixels(seen, wanted):
    np.testing.assert_allclose(seen, np.clip(wanted, 0, 1) * 255, atol=0.5 + 1e-6)


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.4), (5, 1.0)])
def test_the_gaussian_blur_ends_at_four_sigma_and_repeats_the_edge(photos, severity, sigma):
    offsets = range(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    kernel = {(down, right): np.exp(-(down**2 + right**2) / (2 * sigma**2)) for down in offsets for right in offsets}
    assert_pixels(corrupt_images(photos[:1], "gaussian_blur", severity)[0], weighted_sum(photos[0] / 255, kernel))


def test_the_defocus_blur_is_a_disk_with_a_smooth_edge(photos):
    radius, sigma = 1.5, 0.1
    offsets = range(-3, 4)
    disk = np.array([[float(down**2 + right**2 <= radius**2) for right in offsets] for down in offsets])[..., None]
    edge = {(a, b): np.exp(-(a**2 + b**2) / (2 * sigma**2)) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    smooth = weighted_sum(disk, edge)[..., 0]
    kernel = {(down, right): smooth[down + 3, right + 3] for down in offsets for right in offsets}
    assert_pixels(corrupt_images(photos[:1], "defocus_blur", 5)[0], weighted_sum(photos[0] / 255, kernel))


def test_the_motion_blur_is_half_a_gaussian_along_the_angle(photos):
    angle = np.deg2rad(np.random.default_rng((3, CORRUPTIONS.index("motion_blur"), 4, 0)).uniform(-45, 45))
    kernel = collections.Counter()
    for step in range(2 * 8 + 1):
        kernel[round(step * np.sin(angle)), round(step * np.cos(angle))] += np.exp(-(step**2) / (2 * 2**2))
    assert_pixels(corrupt_images(photos[:1], "motion_blur", 4, seed=3)[0], weighted_sum(photos[0] / 255, kernel))


def zoomed(image, factor):
    """The zoom of make_cifar_c.py: a crop of whole pixels, enlarged by SciPy and cropped again."""
    side = len(image)
    crop = int(np.ceil(side / factor))
    top = (side - crop) // 2
    large = ndimage.zoom(image[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
    top = (len(large) - side) // 2
    return large[top : top + side, top : top + side]


@pytest.mark.parametrize(("severity", "stop"), [(1, 1.06), (2, 1.11), (3, 1.16), (4, 1.21), (5, 1.26)])
@pytest.mark.parametrize("side", [32, 19, 96])
def test_the_zoom_blur_is_the_mean_of_the_image_and_its_zooms(photos, severity, stop, side):
    image = np.asarray(Image.fromarray(photos[0]).resize((side, side)))
    factors = np.arange(1, stop, 0.01)  # as make_cifar_c.py writes it; rounding may include `stop`
    wanted = (image / 255 + sum(zoomed(image / 255, factor) for factor in factors)) / (len(factors) + 1)
    assert_pixels(corrupt_images(image[None], "zoom_blur", severity)[0], wanted)


def test_each_side_is_zoomed_by_its_own_length(photos):
    image = photos[0, :, :21] / 255
    rows = zoomed(np.broadcast_to(image[:, :1], (32, 32, 3)), 1.3)[:, 0]
    columns = zoomed(np.broadcast_to(image[:1], (21, 21, 3)), 1.3)[0]
    np.testing.assert_allclose(corruptions._zoom(image[:, :1].repeat(21, axis=1), 1.3)[:, 0], rows, atol=1e-12)
    np.testing.assert_allclose(corruptions._zoom(image[:1].repeat(32, axis=0), 1.3)[0], columns, atol=1e-12)


def test_positions_beyond_the_edge_are_mirrored_at_the_last_pixel(photos):
    image = photos[0, :9, :12] / 255
    rows, columns = np.random.default_rng(3).uniform(-6, 16, (2, 5, 7))
    wanted = [
        [sample(image, *position) for position in zip(*pair, strict=True)] for pair in zip(rows, columns, strict=True)
    ]
    np.testing.assert_allclose(corruptions._sample(image, rows, columns), wanted, atol=1e-12)


def test_lengths_grow_with_the_image(photos):
    image = photos[:1].repeat(2, axis=1).repeat(2, axis=2)
    offsets = range(-8, 9)
    kernel = {(down, right): np.exp(-(down**2 + right**2) / (2 * 2.0**2)) for down in offsets for right in offsets}
    assert_pixels(corrupt_images(image, "gaussian_blur", 5)[0], weighted_sum(image[0] / 255, kernel))


@pytest.mark.parametrize(
    ("images", "kind", "severity", "words"),
    [
        (
            np.zeros((1, 4, 4, 3)),
            "fog",
            1,
            r"uint8 of shape \(examples, height, width, 3\)\. Received: float64 of shape",
        ),
        (np.zeros((1, 4, 4, 1), np.uint8), "fog", 1, r"Received: uint8 of shape \(1, 4, 4, 1\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "rain", 1, "must be one of gaussian_noise, .*Received: corruption='rain'"),
        (np.zeros((1, 4, 4, 3), np.uint8), "fog", 6, "severity must be 1 to 5. Received: severity=6"),
    ],
)
def test_invalid_arguments_are_refused(images, kind, severity, words):
    with pytest.raises(ValueError, match=words):
        corrupt_images(images, kind, severity)


def test_there_are_seventeen_kinds_each_with_five_severities():
    assert len(CORRUPTIONS) == 17
    assert tuple(corruptions._SEVERITY_TABLE) == CORRUPTIONS
    assert {len(constants) for _, constants in corruptions._SEVERITY_TABLE.values()} == {5}
