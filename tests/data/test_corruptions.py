"""Do corruptions do what their names say: repeatably, more with each severity, and at any size?"""

import colorsys
import io

import numpy as np
import pytest
import scipy.ndimage
import sklearn.datasets
from PIL import Image

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
def test_any_size_is_taken(kind, shape):
    images = np.random.default_rng(1).integers(0, 256, (1, *shape, 3)).astype(np.uint8)
    assert corrupt_images(images, kind, 5).shape == images.shape


def test_another_seed_draws_another_noise_and_each_image_its_own():
    same = np.full((2, 8, 8, 3), 100, np.uint8)
    one = corrupt_images(same, "gaussian_noise", 1)
    assert distance(one, corrupt_images(same, "gaussian_noise", 1, seed=1)) > 1
    assert distance(one[0], one[1]) > 1


def test_noise_has_the_spread_that_its_severity_says():
    grey = np.full((1, 200, 200, 3), 102, np.uint8)  # 0.4
    spread = {
        kind: corrupt_images(grey, kind, 4).std() / 255 for kind in ("gaussian_noise", "speckle_noise", "shot_noise")
    }
    assert spread["gaussian_noise"] == pytest.approx(0.09, rel=0.02)
    assert spread["speckle_noise"] == pytest.approx(0.4 * 0.16, rel=0.02)
    assert spread["shot_noise"] == pytest.approx(np.sqrt(0.4 / 75), rel=0.02)
    hit = corrupt_images(grey, "impulse_noise", 4)
    assert (hit == 0).mean() == pytest.approx(0.025, rel=0.1)
    assert (hit == 255).mean() == pytest.approx(0.025, rel=0.1)


def in_hsv(image, change):
    """Each pixel through the standard library's hue, saturation and value."""
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


@pytest.mark.parametrize("sigma", [0.4, 1.7])
def test_the_gaussian_blur_is_scipys(photos, sigma):
    image = photos[0] / 255.0
    wanted = scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(corruptions.gaussian_blur(image, sigma), wanted, atol=1e-12)


def test_places_between_pixels_are_scipys_and_mirrored_beyond_the_edge(photos):
    image = photos[0, :9, :12] / 255.0
    rows, columns = np.random.default_rng(3).uniform(-6, 16, (2, 5, 7))
    wanted = [scipy.ndimage.map_coordinates(image[..., c], [rows, columns], order=1, mode="mirror") for c in range(3)]
    np.testing.assert_allclose(corruptions.map_coordinates(image, rows, columns), np.stack(wanted, axis=-1), atol=1e-12)


def test_a_zoom_keeps_the_middle_and_is_the_sampling_of_its_places(photos):
    image = photos[0, :, :21] / 255.0
    rows, columns = np.meshgrid((np.arange(32) - 15.5) / 1.3 + 15.5, (np.arange(21) - 10) / 1.3 + 10, indexing="ij")
    np.testing.assert_allclose(
        corruptions.zoom(image, 1.3), corruptions.map_coordinates(image, rows, columns), atol=1e-12
    )


def test_motion_goes_to_one_side():
    image = np.zeros((5, 9, 1))
    image[2, 4] = 1
    smeared = corruptions.motion_blur(image, 1, 1.0, angle=0)[2, :, 0]
    weights = np.exp(-0.5 * np.arange(3) ** 2)
    np.testing.assert_allclose(smeared[[4, 3, 2]], weights / weights.sum())
    assert smeared[5] == 0


def test_lengths_grow_with_the_image(photos):
    image = photos[:1].repeat(4, axis=1).repeat(4, axis=2)
    blurred = corruptions.gaussian_blur(image[0] / 255.0, 4.0)
    np.testing.assert_allclose(corrupt_images(image, "gaussian_blur", 5)[0], blurred * 255, atol=0.6)


@pytest.mark.parametrize(
    ("images", "kind", "severity", "words"),
    [
        (np.zeros((1, 4, 4, 3)), "fog", 1, r"uint8 \(examples, height, width, 3\)\. Received: float64 of shape"),
        (np.zeros((1, 4, 4, 1), np.uint8), "fog", 1, r"Received: uint8 of shape \(1, 4, 4, 1\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "rain", 1, "one of gaussian_noise, .*Received: 'rain' at 1"),
        (np.zeros((1, 4, 4, 3), np.uint8), "fog", 6, "a severity of 1 to 5. Received: 'fog' at 6"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, kind, severity, words):
    with pytest.raises(ValueError, match=words):
        corrupt_images(images, kind, severity)


def test_there_are_seventeen_kinds_each_with_five_severities():
    assert len(CORRUPTIONS) == 17
    assert {len(constants) for _, constants in corruptions._SEVERITY_TABLE.values()} == {5}
