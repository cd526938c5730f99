"""NumPy arrays, in memory and in an .npz file, are read as documented."""

import dataclasses

import numpy as np
import pytest

from keras_committee import data
from keras_committee.errors import DataError, RecipeError

CLASSES = np.array(["cat", "ant", "bee"])


@pytest.fixture
def pixels(noise):
    """`pixels(examples, seed)`: uint8 `(examples, 6, 5, 3)`."""
    return lambda examples, seed=0: noise(6 * examples, 5, seed=seed).reshape(examples, 6, 5, 3)


def whole(x, y, **options):
    return data.arrays(x, y, 2, **{"validation": 0, "test": 0, **options}).load()


def test_arrays_are_the_examples_of_their_splits(pixels):
    x, y = pixels(12), np.arange(12) % 3
    loaded = data.arrays(
        x, y, 2, validation=(pixels(3, 1), [2, 1, 0]), test=(pixels(4, 2), [[0], [2], [1], [1]])
    ).load()
    assert loaded.classes == ("0", "1", "2")
    for split, images, labels in (
        (loaded.train, x, y),
        (loaded.validation, pixels(3, 1), [2, 1, 0]),
        (loaded.test, pixels(4, 2), [0, 2, 1, 1]),
    ):
        read_images, read_labels = next(iter(split.batches(20)))
        np.testing.assert_array_equal(read_images, images)
        np.testing.assert_array_equal(read_labels, labels)


def test_names_as_labels_are_the_sorted_classes_or_those_that_are_given(pixels):
    names = CLASSES[np.arange(9) % 3]
    assert whole(pixels(9), names).classes == ("ant", "bee", "cat")
    assert whole(pixels(9), names).train.labels.tolist() == [2, 0, 1] * 3
    assert whole(pixels(9), names.astype(object), classes=CLASSES).train.labels.tolist() == [0, 1, 2] * 3
    assert whole(pixels(9), np.arange(9) % 3, classes=CLASSES).classes == ("cat", "ant", "bee")


def test_arrays_and_class_folders_of_the_same_images_are_split_alike(write_images):
    folder = data.image_folder(write_images({"ant": 20, "bee": 8, "cat": 12}, (6, 5)), 4, size=(6, 5), validation=5)
    everything = dataclasses.replace(folder, validation=0, test=0).load()
    x, y = everything.train.images.numpy(), np.array(everything.classes)[everything.train.labels]
    one, other = folder.load(), data.arrays(x, y, 4, validation=5).load()
    assert one.classes == other.classes
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(one, name).images.numpy(), getattr(other, name).images.numpy())
        np.testing.assert_array_equal(getattr(one, name).labels, getattr(other, name).labels)


def test_floats_from_0_to_1_are_multiplied_by_255_and_others_rounded(pixels, caplog):
    x, y = pixels(6), np.arange(6) % 2
    np.testing.assert_array_equal(whole((x / 255).astype(np.float32), y).train.images.numpy(), x)
    assert "floats from 0 to 1; they were multiplied by 255" in caplog.text
    np.testing.assert_array_equal(whole(np.minimum(x + np.float32(0.25), 255), y).train.images.numpy(), x)
    np.testing.assert_array_equal(whole(x.astype(np.int64), y).train.images.numpy(), x)


def test_one_channel_is_repeated_as_in_gray_image_files(pixels):
    x = pixels(4)[..., 0]
    for gray in (x, x[..., None]):
        np.testing.assert_array_equal(whole(gray, [0, 1, 0, 1]).train.images.numpy(), np.stack([x] * 3, axis=-1))


def test_a_size_resizes_as_image_files_are_resized(pixels):
    loaded = whole(pixels(4), [0, 1, 0, 1], size=(4, 4))
    expected = [data.resize_image(image, (4, 4)).numpy() for image in pixels(4)]
    np.testing.assert_array_equal(loaded.train.images.numpy(), expected)


def test_the_fingerprint_changes_with_a_pixel_and_with_a_label(pixels):
    x, y = pixels(6), np.arange(6) % 2
    changed_x, changed_y = x.copy(), y.copy()
    changed_x[3, 2, 1, 0] ^= 1
    changed_y[4] ^= 1
    fingerprints = {
        whole(*pair).train.fingerprint() for pair in ((x, y), (x.copy(), y), (changed_x, y), (x, changed_y))
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((6, 6, 5, 4), np.uint8)}, r"x: uint8 of shape \(6, 6, 5, 4\), expected numbers of shape"),
        ({"x": np.full((6, 6, 5, 3), -0.5)}, "x: floats from -0.5 to -0.5, expected 0 to 1 or 0 to 255"),
        ({"x": np.full((6, 6, 5, 3), np.nan)}, "x: floats from nan to nan"),
        ({"x": np.full((6, 6, 5, 3), 256)}, "x: integers from 256 to 256, expected 0 to 255"),
        ({"x": np.zeros((5, 6, 5, 3), np.uint8)}, "x has 5 images, y has 6 labels"),
        ({"y": np.eye(6)}, r"y: shape \(6, 6\), expected one label for each image(.|\n)*argmax"),
        ({"y": np.array([0, 1, 3, 0, 1, 3])}, r"y: class 2 \(2\) has no examples"),
        ({"y": np.array([0, 1, 0, 1, 10**12, -1])}, "y: label 1000000000000 at row 4"),
        ({"y": np.array(["a", "b", "a", "b", "c", "b"]), "classes": ("a", "b")}, "y: label 'c' at row 4 is no class"),
        ({"y": np.array([0.0, 1.0] * 3)}, "y: float64 labels, expected integers"),
        ({"test": (np.zeros((2, 9, 5, 3), np.uint8), [0, 1])}, "images of different shapes: x_train"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(pixels, change, message):
    options = {"x": pixels(6), "y": np.array([0, 1] * 3), "validation": 0, "test": 0} | change
    with pytest.raises(DataError, match=message):
        data.arrays(options.pop("x"), options.pop("y"), 2, **options).load()


def test_a_split_is_a_pair_or_a_number(pixels):
    with pytest.raises(RecipeError, match=r"arrays: test must be images and labels, \(x, y\), or a count"):
        data.arrays(pixels(4), [0, 1, 0, 1], 2, test=pixels(4))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("x_train", "y_train", "x_test", "y_test"), ("train", "test")),
        (("train_images", "train_labels", "val_images", "val_labels"), ("train", "test")),  # as ImageNet is distributed
        (("images", "labels"), ("train",)),
        (("x", "y", "x_test", "y_test"), ("train", "test")),
    ],
)
def test_the_names_in_a_file_give_the_splits(tmp_path, pixels, names, splits):
    images = {split: pixels(12, seed) for seed, split in enumerate(splits)}
    content = [value for split in splits for value in (images[split], np.arange(12) % 3)]
    np.savez(tmp_path / "images.npz", **dict(zip(names, content, strict=True)), classes=CLASSES)
    loaded = data.npz(tmp_path / "images.npz", 4, validation=0, test=0).load()
    assert loaded.classes == tuple(CLASSES)
    for split in splits:
        np.testing.assert_array_equal(getattr(loaded, split).images.numpy(), images[split])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pixels": np.zeros(3)}, "there are no training images and labels; the file contains pixels"),
        ({"x_train": np.zeros(3)}, "x_train: there are no labels for it"),
        ({"x": [1], "y": [1], "x_train": [1], "y_train": [1]}, "x: the array belongs to no split; there is x_train"),
        ({"x": np.array([{}], object), "y": [1]}, "allow_pickle=False"),
    ],
)
def test_a_file_without_images_and_labels_is_named(tmp_path, content, message):
    np.savez(tmp_path / "images.npz", **content)
    with pytest.raises(DataError, match=message):
        data.npz(tmp_path / "images.npz", 4).load()
    with pytest.raises(DataError, match=r"cannot read .*absent.npz \(No such file or directory\)"):
        data.npz(tmp_path / "absent.npz", 4).load()
