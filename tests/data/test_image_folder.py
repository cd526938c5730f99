"""Class folders are read as documented, in memory and from files alike."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from keras_committee import data
from keras_committee.data.images import ImageFiles
from keras_committee.errors import DataError, RecipeError

FLAT = {"cat": 12, "ant": 20, "bee": 8}


def folder(root, **options):
    return data.image_folder(root, 4, size=(6, 5), **options)


def read(dataset):
    batches = list(dataset.as_numpy_iterator())
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


def test_a_flat_folder_is_split_by_class(write_images):
    loaded = folder(write_images(FLAT), validation=0.25, test=0.2).load()
    assert loaded.classes == ("ant", "bee", "cat")
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (24, 8, 8)
    assert np.bincount(loaded.test.labels).tolist() == [4, 2, 2]
    assert loaded.train.image_shape == (6, 5, 3)


def test_the_pixels_are_those_of_the_named_file(write_images):
    root = write_images({"a/cat": 0, "cat": 3, "ant": 3}, size=(6, 5))
    shutil.rmtree(root / "a")
    loaded = data.image_folder(root, 4, size=(6, 5), validation=0, test=0).load()
    images, labels = read(loaded.train.batches(4))
    paths = [root / name / f"000{number}.png" for name in ("ant", "cat") for number in range(3)]
    np.testing.assert_array_equal(images, [np.asarray(Image.open(path)) for path in paths])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("held", ["test", "val", "validation"])
def test_train_and_one_more_folder_give_the_test_split(write_images, held):
    root = write_images({"train/a": 9, "train/b": 9, f"{held}/a": 3, f"{held}/b": 2})
    loaded = folder(root, validation=4).load()
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (14, 4, 5)


def test_split_folders_name_the_layout_and_are_checked_at_once(write_images, caplog):
    root = write_images({"a/cat": 9, "a/dog": 9, "val/cat": 3, "val/dog": 2})
    loaded = folder(root, split_folders={"train": "a", "validation": "val"}).load()
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (14, 5, 4)
    with pytest.raises(RecipeError, match="image_folder: split_folders must name"):
        folder(root, split_folders={"test": "val"})


def test_a_choice_between_layouts_is_logged(write_images, caplog):
    folder(write_images({"bus": 9, "train": 9}), validation=2).load()
    assert "train/ is a class, not a split: it holds images and no class folders" in caplog.text


def test_given_train_val_and_test_folders_are_the_splits(write_images):
    parts = {"train/a": 5, "train/b": 5, "val/a": 1, "val/b": 2, "test/a": 3, "test/b": 1}
    loaded = folder(write_images(parts)).load()
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (10, 3, 4)
    assert loaded.validation.labels.tolist() == [0, 1, 1]


def test_hidden_files_are_ignored_and_upper_case_suffixes_accepted(write_images):
    root = write_images(FLAT)
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "cat" / "0000.png").rename(root / "cat" / "0000.PNG")
    loaded = folder(root, validation=0, test=0).load()
    assert len(loaded.train) == 40
    assert len(loaded.classes) == 3


def test_memory_and_files_give_the_same_pixels(write_images):
    described = folder(write_images(FLAT, size=(16, 11)), augment=data.pad_crop_flip(1))
    memory, files = described.load(), dataclasses.replace(described, memory_limit=0).load()
    assert isinstance(files.train.images, ImageFiles)
    assert not isinstance(memory.train.images, ImageFiles)
    for one, other in (
        (memory.test.batches(3), files.test.batches(3)),
        (memory.stream(7, 2, 9), files.stream(7, 2, 9)),
    ):
        (images, labels), (other_images, other_labels) = read(one), read(other)
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)
    assert files.stream(7, 2, 9).element_spec == memory.stream(7, 2, 9).element_spec


def test_nothing_beyond_the_memory_limit_is_kept(write_images):
    described = folder(write_images(FLAT))
    exact = 40 * 6 * 5 * 3
    assert not isinstance(dataclasses.replace(described, memory_limit=exact).load().train.images, ImageFiles)
    assert isinstance(dataclasses.replace(described, memory_limit=exact - 1).load().train.images, ImageFiles)


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_B09_the_fingerprint_survives_a_move_and_changes_with_a_file(write_images, tmp_path_factory, memory_limit):
    root = write_images(FLAT)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, elsewhere)
    first, moved = (
        dataclasses.replace(folder(root_or_copy), memory_limit=memory_limit).load().train.fingerprint()
        for root_or_copy in (root, elsewhere)
    )
    for name in ("ant", "bee", "cat"):
        for path in (elsewhere / name).iterdir():
            Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    changed = dataclasses.replace(folder(elsewhere), memory_limit=memory_limit).load().train.fingerprint()
    assert first == moved
    assert first != changed


def test_more_files_than_a_chunk_keep_their_order(write_images, monkeypatch):
    monkeypatch.setattr("keras_committee.data.validation.CHUNK_SIZE", 7)
    described = folder(write_images(FLAT, size=(6, 5)), validation=0, test=0)
    images, _ = read(described.load().train.batches(9))
    expected, _ = read(dataclasses.replace(described, memory_limit=0).load().train.batches(9))
    np.testing.assert_array_equal(images, expected)
    assert len({image.tobytes() for image in images}) == 40


def test_one_class_is_an_error(write_images):
    with pytest.raises(DataError, match=r"only one class; a classifier needs at least two"):
        folder(write_images({"bee": 20})).load()
