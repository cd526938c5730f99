"""Decoding equals Pillow's, and image transforms equal Model Garden's center crop."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_committee import data
from keras_committee.data import decode_image, resize_image
from keras_committee.data.image_files import read_image
from keras_committee.data.images import ImageFiles
from keras_committee.errors import RecipeError


def test_a_plain_transform_is_a_resize(noise):
    pixels = noise(23, 31)
    np.testing.assert_array_equal(data.resize((9, 7)).apply(pixels), data.resize_image(pixels, (9, 7)))


def test_a_center_crop_takes_the_square_of_its_definition():
    rows, columns = np.meshgrid(np.arange(90), np.arange(64), indexing="ij")
    pixels = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    seen = data.center_crop(32, padding=8).apply(pixels).numpy().astype(int)  # 64 * 32 / 40 = 51.2, from 19 and from 6
    top, left = (90 - 51.2) // 2, (64 - 51.2) // 2
    np.testing.assert_allclose(seen[:, 0, 0], top + (np.arange(32) + 0.5) * 51 / 32 - 0.5, atol=0.6)
    np.testing.assert_allclose(seen[0, :, 1], left + (np.arange(32) + 0.5) * 51 / 32 - 0.5, atol=0.6)


@pytest.mark.parametrize("size", [96, 128, 224])
@pytest.mark.parametrize("shape", [(375, 500), (97, 333), (224, 224)], ids=str)
def test_the_window_is_that_of_model_garden(size, shape, noise):
    ops = pytest.importorskip("official.vision.ops.preprocess_ops")
    pixels = noise(*shape)
    top, left, height, width = (int(edge) for edge in data.center_crop(size).window(tf.shape(pixels)))
    cropped = pixels[top : top + height, left : left + width]
    np.testing.assert_array_equal(cropped, ops.center_crop_image(pixels, size / (size + 32)))
    resized = data.center_crop(size, method="bicubic").apply(pixels)
    np.testing.assert_array_equal(resized, data.resize_image(cropped, (size, size), "bicubic"))


def test_a_crop_that_is_not_square_has_the_proportions_of_the_size():
    _, _, height, width = data.center_crop((20, 40), padding=10).window([300, 300])
    assert (int(height), int(width)) == (120, 240)  # fits the width: 300 of 50 columns, 40 of which are seen


@pytest.mark.parametrize("shape", [(1, 1), (1, 40)])
def test_the_smallest_images_have_a_window(shape, noise):
    assert data.center_crop(8, padding=8).apply(noise(*shape)).shape == (8, 8, 3)


def load_train(root, transform, **options):
    described = data.image_folder(root, 2, transform=transform, validation=0, test=0)
    return dataclasses.replace(described, **options).load().train


def test_memory_files_and_single_images_are_transformed_alike(write_images):
    root, transform = write_images({"a": 2, "b": 1}, size=(30, 19)), data.center_crop(8, padding=4)
    memory, files = load_train(root, transform), load_train(root, transform, memory_limit=0)
    (one, _), (other, _) = (next(iter(split.batches(3))) for split in (memory, files))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[2], read_image(root / "b/0000.png", transform))
    plain = np.asarray(Image.open(root / "b/0000.png"))
    np.testing.assert_array_equal(one[2], transform.apply(plain))
    assert memory.transform == files.transform == transform


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_the_transform_enters_the_fingerprint_but_not_the_source_id(write_images, memory_limit):
    root = write_images({"a": 2, "b": 2}, size=(30, 19))
    transforms = [data.resize(8), data.center_crop(8), data.center_crop(8, padding=4), data.resize(8, method="bicubic")]
    splits = [load_train(root, transform, memory_limit=memory_limit) for transform in transforms]
    assert len({split.fingerprint() for split in splits}) == 4
    other_size = load_train(root, data.resize(6), memory_limit=memory_limit)
    assert {split.source_id() for split in [*splits, other_size]} == {splits[0].source_id()}
    assert splits[0].subset(np.array([1, 0])).source_id() != splits[0].source_id()


def test_a_plain_resize_does_not_change_the_digest_of_files(write_images):
    files = load_train(write_images({"a": 2, "b": 1}), data.resize(8), memory_limit=0).images
    assert isinstance(files, ImageFiles)
    assert files.digest() == files.source_id()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: data.resize((0, 8)), "1 or more pixels each"),
        (lambda: data.center_crop(8, padding=-1), "padding must be 0 or more"),
        (lambda: data.resize(8, method="nearest"), "bilinear or bicubic"),
        (lambda: data.image_folder("x", 2), "either size or a transform"),
        (lambda: data.image_folder("x", 2, size=(8, 8), transform=data.resize(8)), "either size or a transform"),
    ],
    ids=["size", "padding", "method", "neither", "both"],
)
def test_an_invalid_transform_is_refused(make, words):
    with pytest.raises(RecipeError, match=words):
        make()


def test_a_jpeg_has_the_pixels_of_pillow_bit_for_bit(noise, encoded):
    smooth = np.asarray(Image.fromarray(noise(6, 5)).resize((50, 60)))
    content = encoded(smooth, "JPEG", quality=75)
    np.testing.assert_array_equal(decode_image(content), np.asarray(Image.open(io.BytesIO(content))))


def test_a_png_is_lossless(noise, encoded):
    pixels = noise(7, 5)
    np.testing.assert_array_equal(decode_image(encoded(pixels, "PNG")), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_B03_gray_is_repeated_over_three_channels(noise, encoded, kind):
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
