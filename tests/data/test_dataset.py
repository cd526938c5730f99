"""Is a description lazy, checked, and limited as asked?"""

import dataclasses

import numpy as np
import pytest

from keras_committee import data
from keras_committee.errors import DataError, RecipeError


def test_describing_reads_nothing(tmp_path):
    described = data.image_folder(tmp_path / "absent", 4, size=(8, 8))
    with pytest.raises(DataError, match="there is no such folder"):
        described.load()


def test_a_description_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'batch_size'"):
        data.digits(64).batch_size = 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "digits needs a batch_size of 1 or more. Received: batch_size=0"),
        ({"limit": 0}, "digits needs a limit of 1 or more. Received: limit=0"),
        ({"validation": -3}, "digits needs validation as a count of 0 or more.* Received: validation=-3"),
        ({"test": 1.5}, "digits needs test as a count.* a fraction below 1. Received: test=1.5"),
    ],
)
def test_senseless_values_are_refused_at_once(options, message):
    with pytest.raises(RecipeError, match=message):
        dataclasses.replace(data.digits(64), **options)


def test_a_limit_shrinks_every_split_and_keeps_every_class():
    loaded = dataclasses.replace(data.digits(32), limit=50).load()
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [50, 50, 50]
    assert [len(set(split.labels)) for split in (loaded.train, loaded.validation, loaded.test)] == [10, 10, 10]


def test_a_limit_takes_from_the_same_splits():
    whole, limited = data.digits(32).load(), dataclasses.replace(data.digits(32), limit=50).load()
    images = {image.tobytes() for batch, _ in whole.test.batches(400).as_numpy_iterator() for image in batch}
    chosen = [image.tobytes() for batch, _ in limited.test.batches(400).as_numpy_iterator() for image in batch]
    assert set(chosen) <= images


def test_a_limit_reads_only_what_it_keeps(write_images):
    root = write_images({"cat": 30, "dog": 30})
    described = data.image_folder(root, 4, size=(8, 8))
    kept = dataclasses.replace(described, limit=6, memory_limit=0).load()
    names = {*kept.train.images.names, *kept.validation.images.names, *kept.test.images.names}
    unread = sorted({f"{label}/{number:04d}.png" for label in ("cat", "dog") for number in range(30)} - names)
    (root / unread[0]).write_bytes(b"")
    assert len(dataclasses.replace(described, limit=6).load().train) == 6


def test_a_limit_below_the_batch_is_refused():
    with pytest.raises(
        DataError, match="20 training examples do not fill one batch of 32\nChoose a smaller batch_size"
    ):
        dataclasses.replace(data.digits(32), limit=20).load()


def test_a_hold_out_larger_than_the_data_is_refused():
    with pytest.raises(DataError, match="the test split takes 1797 of 1797 examples: none are left for training"):
        data.digits(32, test=1797).load()
    with pytest.raises(DataError, match="the validation split takes 5000 of 1437 examples"):
        data.digits(32, validation=5000).load()


def test_no_example_is_in_two_splits():
    loaded = data.digits(32).load()
    parts = [loaded.train, loaded.validation, loaded.test]
    images = [
        image.tobytes() for part in parts for batch, _ in part.batches(500).as_numpy_iterator() for image in batch
    ]
    assert len(images) == len(set(images)) == 1797


def test_augmentation_and_batch_size_reach_the_splits():
    augment = data.pad_crop_flip(3, flip=False)
    loaded = data.digits(48, augment=augment).load()
    assert (loaded.augment, loaded.batch_size) == (augment, 48)
    images, labels = next(iter(loaded.stream(0, 0, 1)))
    assert images.shape == (48, 32, 32, 3)
    assert np.unique(labels).size > 5
