"""Lists of class folders: splits, classes and problems."""

import pytest

from keras_committee.class_folders import HINT, list_images
from keras_committee.errors import DataError


@pytest.fixture
def write(tmp_path):
    """Create empty files: `write("train/cat/1.png", ...)` returns the root folder."""

    def write(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return write


def test_class_folders_without_splits_are_the_training_split(write):
    listing = list_images(write("dog/b.JPG", "dog/a.png", "cat/1.jpeg", ".hidden/x.png", "cat/.x", "cat/Thumbs.db"))
    assert listing.classes == ("cat", "dog")
    assert listing.splits == {"train": {"cat": ["cat/1.jpeg"], "dog": ["dog/a.png", "dog/b.JPG"]}}
    assert listing.problems == []


@pytest.mark.parametrize(
    ("folders", "split_dirs"),
    [
        (["train", "test"], {"train": "train", "test": "test"}),
        (["train", "val", "test"], {"train": "train", "test": "test", "validation": "val"}),
        (["train", "validation", "test"], {"train": "train", "test": "test", "validation": "validation"}),
        (["train", "val"], {"train": "train", "test": "val"}),  # as ImageNet is distributed
    ],
)
def test_split_folders_become_splits(write, folders, split_dirs):
    listing = list_images(write(*(f"{folder}/cat/1.png" for folder in folders)))
    assert listing.splits == {split: {"cat": [f"{folder}/cat/1.png"]} for split, folder in split_dirs.items()}
    assert listing.problems == []


def test_every_problem_is_listed(write):
    root = write("train/cat/1.png", "train/dog/2.gif", "train/dog/old/3.png", "test/cat/4.png", "test/fox/5.png")
    assert list_images(root, classes=5).problems == [
        "train/fox: there is no such folder, but another split has the class",
        "test/dog: there is no such folder, but another split has the class",
        "3 class folders, expected 5",
        "train/dog/2.gif: not supported, images end in .jpg, .jpeg, .png",
        "train/dog/old/: folders inside a class folder are not supported",
        "train/dog/: the class has no images",
    ]


def test_a_missing_split_is_one_problem(write):
    root = write("train/cat/1.png")
    assert list_images(root).problems == [f"test/: there is no such folder in {root}"]


def test_a_folder_without_class_folders_is_a_problem(write):
    root = write("1.png")
    assert list_images(root).problems == [f"there are no class folders in {root}"]


def test_a_missing_folder_and_a_file_are_errors(write):
    root = write("1.png")
    with pytest.raises(DataError, match=r"none: 1 problem in the data\n  there is no such folder\nName the folder"):
        list_images(root / "none")
    with pytest.raises(DataError, match=r"1\.png: 1 problem in the data\n  is not a folder\n"):
        list_images(root / "1.png")


def test_the_hint_names_the_parameter_that_skips_images():
    assert "skip_bad=N" in HINT
