"""Do image files become the pixels that the docstring promises?"""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_committee.data import decode_image, resize_image


def test_a_jpeg_has_the_pixels_of_pillow_bit_for_bit(noise, encoded):
    smooth = np.asarray(Image.fromarray(noise(6, 5)).resize((50, 60)))
    content = encoded(smooth, "JPEG", quality=75)
    np.testing.assert_array_equal(decode_image(content), np.asarray(Image.open(io.BytesIO(content))))


def test_a_png_is_lossless(noise, encoded):
    pixels = noise(7, 5)
    np.testing.assert_array_equal(decode_image(encoded(pixels, "PNG")), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_B03_grey_is_repeated_over_three_channels(noise, encoded, kind):
    content = encoded(noise(7, 5)[..., 0], kind)
    decoded = decode_image(content).numpy()
    np.testing.assert_array_equal(decoded, np.repeat(np.asarray(Image.open(io.BytesIO(content)))[..., None], 3, axis=2))


def test_B03_alpha_is_dropped_and_not_blended(noise, encoded):
    pixels = noise(7, 5, channels=4)
    np.testing.assert_array_equal(decode_image(encoded(pixels, "PNG")), pixels[..., :3])


def test_B03_a_16_bit_png_keeps_its_high_byte(encoded):
    values = np.arange(0, 65_535, 1_311, dtype=np.uint16).reshape(5, 10)
    decoded = decode_image(encoded(values, "PNG")).numpy()
    np.testing.assert_array_equal(decoded[..., 1], values >> 8)


def test_B03_cmyk_becomes_rgb(encoded):
    red = np.broadcast_to(np.array([200, 30, 60], np.uint8), (16, 16, 3))
    decoded = decode_image(encoded(np.ascontiguousarray(red), "JPEG", mode="CMYK")).numpy()
    np.testing.assert_allclose(decoded[8, 8], [200, 30, 60], atol=4)


def test_B03_an_exif_rotation_is_not_applied(noise, encoded):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    assert decode_image(encoded(noise(7, 5), "JPEG", exif=exif)).shape == (7, 5, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_cut_off_file_is_an_error(noise, encoded, kind):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid"):
        decode_image(encoded(noise(20, 20), kind)[:-30])


def test_resizing_to_the_same_size_changes_nothing(noise):
    pixels = noise(9, 7)
    np.testing.assert_array_equal(resize_image(pixels, (9, 7)), pixels)


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = 200  # every eighth column; without antialiasing a sampled column is 200 or 0
    np.testing.assert_allclose(resize_image(stripes, (8, 8))[2:-2, 2:-2], 25, atol=3)
