"""Random crops are drawn as documented, and have the same pixels however they are decoded."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_committee import data
from keras_committee.data.images import ImageFiles
from keras_committee.data.preprocessing import decode_window, image_size_from_header
from keras_committee.errors import RecipeError

CROP = data.random_resized_crop(area=(0.2, 0.7), ratio=(0.6, 1.5), flip=False)


def windows(crop, shape, examples, seed=0):
    """int `(examples, 4)`: top, left, height, width."""
    draws = crop.draw(np.random.default_rng(seed), examples)
    draw_all = tf.function(lambda rows: tf.map_fn(lambda row: crop.window(tf.constant(shape), row), rows))
    return draw_all(draws).numpy()


def written_window(crop, shape, chances):
    """The definition, one attempt after another."""
    rows, columns = shape
    least, most = (part * rows * columns for part in crop.area)
    for u, v, y, x in np.asarray(chances, np.float64):
        ratio = crop.ratio[0] + u * (crop.ratio[1] - crop.ratio[0])
        low, high = round(math.sqrt(least / ratio)), min(round(math.sqrt(most / ratio)), rows)
        while round(high * ratio) > columns:
            high -= 1
        low = min(low, high)
        height = low + int(v * (high - low + 1))
        height += height * round(height * ratio) < least
        height -= height * round(height * ratio) > most
        width = round(height * ratio)
        if least <= height * width <= most and 1 <= height <= rows and 1 <= width <= columns:
            return [int(y * (rows - height + 1)), int(x * (columns - width + 1)), height, width]
    return [0, 0, rows, columns]


@pytest.mark.parametrize("shape", [(60, 83), (40, 700), (7, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("crop", [CROP, data.random_resized_crop()], ids=["narrow", "default"])
def test_a_window_is_that_of_the_written_definition(shape, crop):
    chances = np.random.default_rng(3).random((40, 10, 4), np.float32)
    window_fn = tf.function(
        lambda rows: tf.map_fn(
            lambda row: crop.window_from_uniforms(tf.constant(shape), row), rows, fn_output_signature=tf.int32
        )
    )
    assert window_fn(chances).numpy().tolist() == [written_window(crop, shape, uniforms) for uniforms in chances]


def test_area_ratio_and_position_are_within_their_ranges_and_uniform():
    drawn = windows(CROP, (90, 121), 3000).astype(float)
    top, left, height, width = drawn.T
    area = height * width / (90 * 121)
    assert 0.2 <= area.min() < 0.22
    assert 0.66 < area.max() <= 0.7
    assert (width / height).min() > 0.6 - 1 / 30
    assert (width / height).max() < 1.5 + 1 / 30
    # Uniform in ratio and position: the mean and a quantile of each.
    assert (width / height).mean() == pytest.approx(1.05, abs=0.02)
    assert np.mean(width / height < 0.825) == pytest.approx(0.25, abs=0.03)
    assert np.mean(top / np.maximum(90 - height, 1)) == pytest.approx(0.5, abs=0.02)
    assert np.mean(left < 0.25 * (121 - width)) == pytest.approx(0.25, abs=0.03)
    assert (top + height).max() == 90
    assert (left + width).max() == 121


def torchvision_area(shape, rng):
    """The area of a window of torchvision's `RandomResizedCrop.get_params`, as a fraction of the image."""
    rows, columns = shape
    for _ in range(10):
        area, ratio = rows * columns * rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= columns and 0 < height <= rows:
            return width * height / (rows * columns)
    ratio = min(max(columns / rows, 3 / 4), 4 / 3)  # the fallback: the largest window whose ratio is in range
    return round(min(columns, rows * ratio)) * round(min(rows, columns / ratio)) / (rows * columns)


@pytest.mark.parametrize(("shape", "area", "of_torchvision"), [((375, 500), 0.37, 0.43), ((224, 224), 0.41, 0.48)])
def test_the_mean_area_of_the_default_ranges_is_as_documented(shape, area, of_torchvision):
    drawn = windows(data.random_resized_crop(), shape, 6000).astype(float)
    assert (drawn[:, 2] * drawn[:, 3]).mean() / math.prod(shape) == pytest.approx(area, abs=0.01)
    rng = np.random.default_rng(5)
    assert np.mean([torchvision_area(shape, rng) for _ in range(6000)]) == pytest.approx(of_torchvision, abs=0.01)


def test_without_a_valid_window_the_crop_is_the_full_image():
    narrow = data.random_resized_crop(area=(0.9, 1.0), ratio=(1.0, 1.1))
    assert {tuple(window) for window in windows(narrow, (10, 90), 20)} == {(0, 0, 10, 90)}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"subsampling": 2}),
        ("JPEG", {"subsampling": 1, "progressive": True}),
        ("JPEG", {"subsampling": 0}),
        ("JPEG", {"mode": "L"}),
        ("JPEG", {"mode": "CMYK"}),
        ("PNG", {}),
        ("PNG", {"mode": "RGBA"}),
    ],
    ids=["420", "422-progressive", "444", "gray", "cmyk", "png", "alpha"],
)
def test_a_decoded_window_is_bit_for_bit_that_of_the_whole_image(noise, encoded, kind, options):
    smooth = np.asarray(Image.fromarray(noise(8, 11)).resize((75, 58)))
    content = tf.constant(encoded(smooth, kind, **options))
    full = data.decode_image(content).numpy()
    assert [int(side) for side in image_size_from_header(content)] == [58, 75]
    decode = tf.function(decode_window)
    at_block_edges = [(3, 16, 20, 16), (16, 32, 16, 5)]  # libjpeg decodes whole blocks of 16 columns
    for top, left, height, width in [*windows(CROP, (58, 75), 12), *at_block_edges]:
        window = decode(content, tf.constant([top, left, height, width]))
        np.testing.assert_array_equal(window, full[top : top + height, left : left + width])


def folder(root, augment, **options):
    described = data.image_folder(root, 3, size=(12, 10), validation=0, test=0.25, augment=augment)
    return dataclasses.replace(described, **options).load()


@pytest.fixture
def photos(tmp_path, noise, encoded):
    """Two classes of JPEGs and PNGs of different sizes, with a rotation that is not applied."""
    exif = Image.Exif()
    exif[274] = 6
    for number in range(12):
        pixels = np.asarray(Image.fromarray(noise(5, 6, seed=number)).resize((40 + number, 53 - 2 * number)))
        kind, options = ("PNG", {}) if number % 4 == 1 else ("JPEG", {"exif": exif})
        path = tmp_path / "ab"[number % 2] / f"{number}.{kind.lower()}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(pixels, kind, **options))
    return tmp_path


def test_the_stream_decodes_crops_and_resizes_then_applies_the_next_augmentation(photos):
    crop, later = data.random_resized_crop(), data.pad_crop_flip(2)
    loaded = folder(photos, data.compose(crop, later))
    assert isinstance(loaded.train.images, ImageFiles)  # small, yet memory would hold resized images
    assert not isinstance(loaded.test.images, ImageFiles)
    order = np.random.default_rng((5, 0, 0)).permutation(9)
    generator = np.random.default_rng((5, 0, 1))
    draws, later_draws = crop.draw(generator, 9)[order], later.draw(generator, 9)[order]
    expected = []
    for index, draw, later_draw in zip(order, draws, later_draws, strict=True):
        full = data.decode_image((photos / loaded.train.images.names[index]).read_bytes()).numpy()
        top, left, height, width = crop.window(full.shape[:2], draw).numpy()
        seen = data.resize_image(full[top : top + height, left : left + width], (12, 10)).numpy()
        seen = seen[:, ::-1] if draw[1] else seen
        expected.append(later.apply(seen[None], later_draw[None])[0])
    images = np.concatenate([images for images, _ in loaded.stream(5, 0, 3).as_numpy_iterator()])
    np.testing.assert_array_equal(images, expected)
    tail = np.concatenate([images for images, _ in loaded.stream(5, 2, 1).as_numpy_iterator()])
    np.testing.assert_array_equal(images[6:], tail)


def test_the_memory_limit_changes_no_pixel(photos):
    streams = [
        folder(photos, data.random_resized_crop(), **limit).stream(1, 0, 3) for limit in ({}, {"memory_limit": 0})
    ]
    for (one, _), (other, _) in zip(*streams, strict=True):
        np.testing.assert_array_equal(one, other)


def test_windows_of_images_in_memory_are_resized_to_their_size(noise):
    images = np.stack([noise(12, 10, seed=number) for number in range(5)])
    crop = data.random_resized_crop()
    draws = crop.draw(np.random.default_rng(2), 5)
    for image, draw, seen in zip(images, draws, crop.apply(images, draws), strict=True):
        top, left, height, width = crop.window((12, 10), draw).numpy()
        expected = data.resize_image(image[top : top + height, left : left + width], (12, 10)).numpy()
        np.testing.assert_array_equal(seen, expected[:, ::-1] if draw[1] else expected)


def test_half_of_the_windows_are_flipped_unless_disabled():
    flips = data.random_resized_crop().draw(np.random.default_rng(0), 2000)[:, 1]
    assert flips.mean() == pytest.approx(0.5, abs=0.05)
    assert CROP.draw(np.random.default_rng(0), 2000)[:, 1].max() == 0


def test_files_of_the_exact_size_are_cropped_in_memory(write_images):
    parts = {f"{part}/{name}": 3 for part in ("train", "test") for name in data.cifar.CLASS_NAMES["cifar10"].split()}
    described = data.cifar10(
        4, directory=write_images(parts, (32, 32)), validation=0, augment=data.random_resized_crop()
    )
    memory, files = described.load(), dataclasses.replace(described, memory_limit=0).load()
    assert not isinstance(memory.train.images, ImageFiles)
    for (one, _), (other, _) in zip(memory.stream(1, 0, 2), files.stream(1, 0, 2), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: data.random_resized_crop(area=(0.0, 1.0)),
            r"area must be two increasing numbers above 0 and at most 1",
        ),
        (lambda: data.random_resized_crop(area=(0.2, 1.1)), "area must be two increasing"),
        (lambda: data.random_resized_crop(ratio=(1.5, 0.5)), "ratio must be two increasing numbers above 0"),
        (lambda: data.compose(), "at least one augmentation"),
        (lambda: data.compose(data.pad_crop_flip(), data.random_resized_crop()), "put it first"),
    ],
    ids=["zero", "large", "falling", "empty", "late"],
)
def test_an_invalid_crop_is_refused(make, words):
    with pytest.raises(RecipeError, match=words):
        make()
