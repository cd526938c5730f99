"""Is every test image that is trained on as well found, and nothing else?"""

import numpy as np
import pytest

from keras_committee.data import image_folder, validation
from keras_committee.data.images import InMemoryImages
from keras_committee.data.splits import Split, Splits


def split(pixels):
    return Split(images=InMemoryImages(pixels), labels=np.zeros(len(pixels), np.int32))


def splits_of(train, validation, test):
    parts = {"train": split(train), "validation": split(validation), "test": split(test)}
    return Splits(classes=("cat",), batch_size=2, augment=None, **parts)


def test_B08_every_planted_duplicate_is_found(noise):
    train, test = (np.stack([noise(40, 40, seed=100 * part + row) for row in range(30)]) for part in (1, 2))
    train[7], train[9], train[20] = test[3], test[3], test[29]
    test[11] = train[4]
    test[12] = train[5]
    test[12, -1, -1, -1] ^= 1  # equal for the first 4096 bytes and almost to the end
    assert validation.find_duplicates([split(train)], split(test)) == [[(3, 7), (11, 4), (29, 20)]]


def test_B08_duplicates_are_told_with_their_split_and_counted(noise):
    images = np.stack([noise(8, 8, seed=row) for row in range(20)])
    told = validation.duplicates_warning(splits_of(images[:10], images[10:12], images[4:20]))
    assert told.startswith("8 of 16 test images are trained on as well: 0 is train image 4, 1 is train image 5")
    assert ", and 3 more.\n  What is measured on them is too good" in told
    told = validation.duplicates_warning(splits_of(images[:10], images[10:12], images[11:20]))
    assert told.startswith("1 of 9 test images are trained on as well: 0 is validation image 1.")
    assert validation.duplicates_warning(splits_of(images[:10], images[10:12], images[12:20])) is None


@pytest.mark.parametrize("size", [(8, 8), (60, 60)])
def test_B08_duplicate_files_are_named(write_images, size):
    root = write_images({"train/cat": 12, "train/dog": 12, "test/cat": 3, "test/dog": 3}, size=size)
    (root / "test/dog/0002.png").write_bytes((root / "train/cat/0005.png").read_bytes())
    described = image_folder(root, 4, size=(8, 8), validation=2)
    loaded = described.load()
    files = Splits(
        classes=loaded.classes,
        batch_size=4,
        augment=None,
        **{part: getattr(described.reader.find(), part) for part in ("train", "test")},
        validation=split(np.zeros((0, 8, 8, 3), np.uint8)),
    )
    assert "test/dog/0002.png is train image train/cat/0005.png." in validation.duplicates_warning(files)
    assert validation.duplicates_warning(loaded).startswith(
        "1 of 6 test images"
    )  # in memory they have places, not names
