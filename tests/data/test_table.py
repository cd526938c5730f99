"""A table of image files gives the examples of the class folders that it lists."""

import csv
import random

import numpy as np
import pytest

from keras_committee import data
from keras_committee.errors import DataError


@pytest.fixture
def folder_and_table(write_images):
    """Class folders of 40 images, and a table that lists them in another order."""
    root = write_images({"ant": 20, "bee": 8, "cat": 12}, size=(6, 5))
    rows = [[str(path.relative_to(root)), path.parent.name] for path in root.glob("*/*.png")]
    random.Random(1).shuffle(rows)
    with open(root / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["filename", "label"], *rows])
    return root, root / "table.csv"


def test_a_table_and_the_folders_that_it_lists_give_the_same_splits(folder_and_table):
    folder, table = folder_and_table
    options = {"size": (6, 5), "validation": 5, "test": 0.2, "augment": data.pad_crop_flip(1)}
    loaded, expected = data.table(table, 4, **options).load(), data.image_folder(folder, 4, **options).load()
    assert loaded.classes == expected.classes
    for name in ("train", "validation", "test"):
        split, other = getattr(loaded, name), getattr(expected, name)
        assert split.fingerprint() == other.fingerprint()
        np.testing.assert_array_equal(split.images.numpy(), other.images.numpy())
    for one, other in zip(loaded.stream(3, 0, 4), expected.stream(3, 0, 4), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_missing_and_damaged_images_are_named_or_skipped(folder_and_table):
    folder, table = folder_and_table
    (folder / "ant" / "0003.png").unlink()
    (folder / "bee" / "0001.png").write_bytes(b"no image")
    options = {"size": (6, 5), "validation": 4, "test": 0}
    with pytest.raises(DataError, match=r"ant/0003.png: cannot be read \(No such file(.|\n)*bee/0001.png(.|\n)*`root`"):
        data.table(table, 4, **options).load()
    assert len(data.table(table, 4, skip_bad=2, **options).load().train) == 34


def test_a_table_may_be_in_another_folder_than_its_images(folder_and_table, tmp_path_factory):
    folder, table = folder_and_table
    moved = table.rename(tmp_path_factory.mktemp("tables") / "table.csv")
    assert len(data.table(moved, 4, size=(6, 5), root=folder, validation=0, test=0).load().train) == 40
