"""Lists of class folders: splits, classes and problems."""

import os
from pathlib import Path

import pytest

from keras_committee.class_folders import SPLIT_SPELLINGS, check_split_folders, distinguish, list_images
from keras_committee.errors import DataError, RecipeError


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
        (["Training", "VALID", "Testing"], {"train": "Training", "test": "Testing", "validation": "VALID"}),
    ],
)
def test_split_folders_become_splits(write, folders, split_dirs):
    listing = list_images(write(*(f"{folder}/cat/1.png" for folder in folders)))
    assert listing.splits == {split: {"cat": [f"{folder}/cat/1.png"]} for split, folder in split_dirs.items()}
    assert listing.split_folders == split_dirs
    assert listing.problems == []


@pytest.mark.parametrize("validation", [s for name in SPLIT_SPELLINGS["validation"] for s in (name, name.upper())])
def test_every_spelling_of_the_validation_folder_is_found(write, validation):
    listing = list_images(write("train/cat/1.png", f"{validation}/cat/2.png", "test/cat/3.png"))
    assert listing.splits["validation"] == {"cat": [f"{validation}/cat/2.png"]}
    assert listing.notes == []


def test_a_validation_folder_in_place_of_a_test_folder_is_noted(write):
    listing = list_images(write("train/cat/1.png", "valid/cat/2.png"))
    assert listing.split_folders == {"train": "train", "test": "valid"}
    assert listing.notes == [
        "'valid' is used as the test split, since there is none named test; to choose, set split_folders"
    ]


def test_classes_inside_splits_may_be_named_like_splits(write):
    names = [f"{split}/{name}/1.png" for split in ("train", "test") for name in ("bus", "train", "test", "val")]
    listing = list_images(write(*names))
    assert listing.classes == ("bus", "test", "train", "val")
    assert (listing.problems, listing.notes) == ([], [])


def test_a_folder_of_images_named_like_a_split_is_a_class_beside_other_classes(write):
    root = write("bus/1.png", "train/2.png")
    listing = list_images(root)
    assert listing.splits == {"train": {"bus": ["bus/1.png"], "train": ["train/2.png"]}}
    assert (listing.split_folders, listing.problems) == ({}, [])
    assert listing.notes == ["train/ is a class, not a split: it holds images and no class folders"]
    assert list_images(root, split_folders={}).notes == []


AMBIGUOUS = [
    (
        ["train/1.png", "test/2.png"],
        ["test/: named like a split, but has images and no class folders", "train/: named"],
    ),
    (["bus/1.png", "train/2.png", "test/3.png"], ["train/: named like a split, but has images and no class folders"]),
    (["train/cat/1.png", "test/2.png"], ["test/: named like a split, but has images and no class folders"]),
    (["train/cat/1.png", "train/2.png", "test/cat/3.png"], ["train/: named like a split, but has images beside its"]),
    (["train/cat/1.png", "test/.keep"], ["test/: named like a split, but has no class folders"]),
    (
        ["train/cat/1.png", "test/cat/2.png", "holdout/cat/3.png"],
        ["holdout/: has images, but is not named like a split"],
    ),
    (["train/cat/1.png", "test/cat/2.png", "cat/3.png"], ["cat/: has images, but is not named like a split"]),
    (["train/cat/1.png", "val/cat/2.png", "dev/cat/3.png"], ["dev, val: 2 names of the validation split; keep one"]),
    (["train/cat/1.png", "TRAIN/cat/1.png", "test/cat/2.png"], ["TRAIN, train: 2 names of the train split; keep one"]),
]


@pytest.mark.parametrize(("names", "problems"), AMBIGUOUS)
def test_an_ambiguous_layout_is_an_error_with_the_remedy(write, names, problems):
    with pytest.raises(DataError) as raised:
        list_images(write(*names))
    assert all(f"\n  {problem}" in str(raised.value) for problem in problems)
    assert 'split_folders={"train": "FOLDER", "test": "FOLDER"}, or split_folders={} if every' in str(raised.value)


def test_folders_without_images_beside_split_folders_are_ignored(write):
    listing = list_images(write("train/cat/1.png", "test/cat/2.png", "records/train-00000-of-00001", "notes/a/b.txt"))
    assert (listing.classes, listing.problems) == (("cat",), [])


def test_given_split_folders_are_used_alone(write):
    root = write("a/x/cat/1.png", "b/cat/2.png", "train/cat/3.png", "test/cat/4.png", "val/cat/5.png")
    listing = list_images(root, split_folders={"train": "a/x", "validation": "b"})
    assert listing.splits == {"train": {"cat": ["a/x/cat/1.png"]}, "validation": {"cat": ["b/cat/2.png"]}}
    assert (listing.problems, listing.notes) == ([], [])
    assert list_images(root, split_folders={"train": "none"}).problems == [f"none/: there is no such folder in {root}"]


@pytest.mark.parametrize("split_folders", [{"val": "a", "train": "b"}, {"test": "a"}])
def test_split_folders_must_name_known_splits(split_folders):
    with pytest.raises(RecipeError, match=r'image_folder: split_folders must name the folder of "train"'):
        check_split_folders(split_folders, "image_folder")


def test_names_that_are_not_utf8_are_refused_and_shown(write, tmp_path):
    root = os.fsencode(write("cat/1.png", "dog/2.png"))
    os.mkdir(root + b"/\xe9t\xe9")
    os.rename(root + b"/cat/1.png", root + b"/cat/\xff.png")
    assert list_images(tmp_path).problems[:2] == [
        r"b'\xe9t\xe9': the name is not UTF-8; rename the folder",
        r"cat/b'\xff.png': the name is not UTF-8; rename it",
    ]
    with pytest.raises(DataError, match=r"\\xe9t\\xe9': 1 problem in the data\n  the name is not UTF-8"):
        list_images(tmp_path / os.fsdecode(b"\xe9t\xe9"))


@pytest.mark.parametrize(
    ("pair", "shown"),
    [
        (("caf\u00e9", "cafe\u0301"), (r"'caf\xe9'", r"'cafe\u0301'")),
        (("cat", "cat "), ("'cat'", "'cat '")),
        (("\u00e9l\u00e9phant", "cat"), ("\u00e9l\u00e9phant", "cat")),
    ],
)
def test_names_that_look_alike_are_shown_with_escapes(pair, shown):
    assert distinguish(*pair) == shown


def test_unicode_forms_of_one_name_are_told_apart(write):
    root = write("train/caf\u00e9/1.png", "test/cafe\u0301/2.png")
    assert list_images(root).problems == [
        "train/cafe\u0301: there is no such folder, but another split has the class"
        r" ('cafe\u0301' is missing; there is 'caf\xe9')",
        "test/caf\u00e9: there is no such folder, but another split has the class"
        r" ('caf\xe9' is missing; there is 'cafe\u0301')",
    ]
    write("test/caf\u00e9/1.png")
    assert (
        "test/caf\u00e9: 2 folders have this name, in different Unicode forms: "
        r"'cafe\u0301', 'caf\xe9'; rename or merge them"
    ) in list_images(root).problems


def test_every_problem_is_listed(write):
    root = write("train/cat/1.png", "train/dog/2.tif", "train/dog/old/3.png", "test/cat/4.png", "test/fox/5.png")
    assert list_images(root, classes=5).problems == [
        "train/fox: there is no such folder, but another split has the class",
        "test/dog: there is no such folder, but another split has the class",
        "3 class folders, expected 5",
        "train/dog/2.tif: not supported, images end in .jpg, .jpeg, .png, .webp, .bmp, .gif, .avif; "
        "convert or rename it",
        "train/dog/old/: folders inside a class folder are not supported",
        "train/dog/: the class has no images",
    ]


def test_a_missing_split_is_one_problem(write):
    root = write("train/cat/1.png")
    assert list_images(root).problems == [
        f"test/: there is no such folder in {root}; to hold out test images from train/, use that folder alone"
    ]


def test_a_folder_without_class_folders_is_a_problem(write):
    root = write("pets/1.png") / "pets"
    assert list_images(root).problems == [
        f"there are no class folders in {root}: it is a folder of images without class folders. Put the images of each "
        "class into a folder of its own, and name the folder that contains these folders."
    ]


def test_the_folder_above_the_class_folders_names_the_one_that_was_meant(write):
    root = write("pets/img/cat/1.png", "pets/img/dog/2.png") / "pets"
    with pytest.raises(DataError, match=r"its only folder, img, contains the class folders\nDid you mean '.*/img'\?$"):
        list_images(root)


def test_a_folder_that_cannot_be_read_is_named(write, monkeypatch):
    root, scandir = write("cat/1.png", "dog/2.png"), os.scandir

    def refuse(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    with pytest.raises(DataError, match=r"dog: the folder cannot be read \(Permission denied\)\. Change its perm"):
        list_images(root)


def test_a_missing_folder_and_a_file_are_errors(write):
    root = write("1.png")
    with pytest.raises(DataError, match=r"none: 1 problem in the data\n  there is no such folder\nName the folder"):
        list_images(root / "none")
    with pytest.raises(DataError, match=r"1\.png: 1 problem in the data\n  is not a folder\n"):
        list_images(root / "1.png")


def test_files_that_are_not_images_are_skipped_and_counted(write):
    root = write(
        "cat/1.png", "cat/notes.txt", "cat/Thumbs.db", "dog/2.png", "dog/.DS_Store", "dog/Icon\r", "dog/LICENSE"
    )
    listing = list_images(root)
    assert (listing.problems, listing.skipped) == ([], ["cat/notes.txt", "dog/LICENSE"])
    assert listing.warnings == ["skipped 2 files that are not images: cat/notes.txt, dog/LICENSE"]
    write(*(f"dog/{number}.xml" for number in range(9)))
    assert list_images(root).warnings[0].endswith("dog/0.xml, dog/1.xml, dog/2.xml, dog/3.xml and 6 more")


@pytest.mark.parametrize("name", ["2.TIFF", "2.jfif", "unnamed"])
def test_images_under_other_names_are_problems(write, name):
    root = write("cat/1.png", f"cat/{name}")
    (root / "cat" / name).write_bytes(b"\xff\xd8\xff\xe0")
    assert list_images(root).problems == [
        f"cat/{name}: not supported, images end in .jpg, .jpeg, .png, .webp, .bmp, .gif, .avif; convert or rename it"
    ]


def test_the_hint_of_one_class_names_the_layout(write):
    assert list_images(write("cat/1.png")).hint == "Name the folder that contains one folder of images per class."
