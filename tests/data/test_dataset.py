"""Data is divided into splits as described, always in the same way."""

import dataclasses

import numpy as np
import pytest

from keras_committee import data
from keras_committee.data.dataset import check_hold_out, hold_out, stratified_indices
from keras_committee.errors import DataError, RecipeError
from keras_committee.split_sizes import resolve_count


def test_a_description_reads_nothing(tmp_path):
    described = data.image_folder(tmp_path / "absent", 4, size=(8, 8))
    with pytest.raises(DataError, match="there is no such folder"):
        described.load()


def test_a_description_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'batch_size'"):
        data.digits(64).batch_size = 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "digits: batch_size must be 1 or more. Received: batch_size=0"),
        ({"limit": 0}, "digits: limit must be 1 or more. Received: limit=0"),
        ({"validation": -3}, "digits: validation must be a count of 0 or more.* Received: validation=-3"),
        ({"test": 1.5}, "digits: test must be a count.* a fraction below 1. Received: test=1.5"),
    ],
)
def test_invalid_values_are_refused_at_once(options, message):
    with pytest.raises(RecipeError, match=message):
        dataclasses.replace(data.digits(64), **options)


def test_a_limit_shrinks_every_split_and_keeps_every_class():
    loaded = dataclasses.replace(data.digits(32), limit=50).load()
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [50, 50, 50]
    assert [len(set(split.labels)) for split in (loaded.train, loaded.validation, loaded.test)] == [10, 10, 10]


def test_a_limit_takes_from_the_same_splits():
    full, limited = data.digits(32).load(), dataclasses.replace(data.digits(32), limit=50).load()
    images = {image.tobytes() for batch, _ in full.test.batches(400).as_numpy_iterator() for image in batch}
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
    with pytest.raises(DataError, match="the test split takes 1797 of 1797 examples: none remain for training"):
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


LABELS = np.array([0] * 60 + [1] * 30 + [2] * 10, np.int32)


def test_the_hold_out_keeps_the_class_shares_and_loses_nothing():
    stay, held = hold_out(LABELS, 20)
    assert np.bincount(LABELS[held]).tolist() == [12, 6, 2]
    assert sorted([*stay, *held]) == list(range(100))


def test_the_hold_out_is_ascending_and_never_changes():
    stay, held = hold_out(LABELS, 20)
    assert (np.diff(stay) > 0).all()
    assert (np.diff(held) > 0).all()
    np.testing.assert_array_equal(held, hold_out(LABELS, 20)[1])
    assert held.tolist()[:6] == [0, 3, 9, 19, 21, 23]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.45, 0.8])
@pytest.mark.parametrize("rare", [2, 3, 4])
def test_rare_classes_are_on_both_sides_of_a_hold_out(rare, fraction):
    labels = np.array([0] * 60 + [1] * rare + [2] * 33 + [3] * rare, np.int32)
    stay, held = hold_out(labels, round(fraction * len(labels)))
    assert len(held) == round(fraction * len(labels))
    assert sorted([*stay, *held]) == list(range(len(labels)))
    assert np.bincount(labels[held], minlength=4).min() >= 1
    assert np.bincount(labels[stay], minlength=4).min() >= 1
    np.testing.assert_allclose(np.bincount(labels[held])[[0, 2]], fraction * np.array([60, 33]), atol=3.5)


def test_the_only_example_of_a_class_remains():
    stay, held = hold_out(np.array([1, 0, 0, 2, 0, 2]), 2)
    assert 0 in stay
    assert len(held) == 2


def test_three_images_of_a_class_are_one_in_each_split(write_images):
    loaded = data.image_folder(write_images({"cat": 30, "dog": 30, "owl": 3}), 4, size=(8, 8)).load()
    assert [np.bincount(part.labels)[2] for part in (loaded.train, loaded.validation, loaded.test)] == [1, 1, 1]


def test_a_class_that_is_too_rare_for_three_splits_is_named_before_training(write_images, caplog):
    loaded = data.image_folder(write_images({"cat": 30, "dog": 30, "owl": 2}), 4, size=(8, 8)).load()
    assert [(part.labels == 2).sum() for part in (loaded.train, loaded.validation, loaded.test)] == [1, 0, 1]
    assert (
        "the validation split has no example of class 'owl', for want of images; the scores leave it out" in caplog.text
    )


def test_a_class_that_loses_its_training_images_is_an_error(write_images):
    root = write_images({"train/cat": 12, "train/owl": 1, "test/cat": 2, "test/owl": 1})
    (root / "train/owl/0000.png").write_bytes(b"")
    described = data.image_folder(root, 4, size=(8, 8), validation=0, skip_bad=1)
    with pytest.raises(DataError, match="no training example of class 'owl' is readable"):
        described.load()


def test_holding_out_nothing_keeps_all():
    stay, held = hold_out(LABELS, 0)
    assert (len(stay), len(held)) == (100, 0)


@pytest.mark.parametrize(("part", "expected"), [(0.2, 36), (7, 7), (0, 0), (0.0, 0)])
def test_a_float_is_a_fraction_and_an_integer_a_count(part, expected):
    assert resolve_count(part, 180) == expected


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (100, "the test split takes 100 of 100 examples: none remain for training"),
        (2, "the test split takes 2 of 100 examples: too few for 3 classes on both sides"),
        (98, "the test split takes 98 of 100 examples: too few for 3 classes on both sides"),
    ],
)
def test_an_impossible_count_is_named(count, message):
    assert check_hold_out(LABELS, count, "abc", "the test split") == [message]


def test_a_class_with_one_example_is_named():
    problems = check_hold_out(np.array([0, 0, 0, 1, 1, 2]), 3, ("ant", "bee", "cow"), "the test split")
    assert problems == ["class cow has only one example to share between training and the test split"]


def test_a_possible_hold_out_has_no_problem():
    assert check_hold_out(LABELS, 20, "abc", "the test split") == []
    assert check_hold_out(LABELS, 0, "abc", "the test split") == []


def test_a_limit_keeps_every_class_and_spreads_over_each():
    chosen = stratified_indices(LABELS, 10)
    assert len(set(chosen.tolist())) == 10
    assert np.bincount(LABELS[chosen]).tolist() == [5, 3, 2]
    assert (np.diff(chosen) > 0).all()
    assert chosen.max() > 90


def test_a_rare_class_survives_the_limit():
    labels = np.array([0] * 500 + [1] + [0] * 500)
    assert 500 in stratified_indices(labels, 4)


def test_a_limit_below_the_number_of_classes_still_holds():
    assert LABELS[stratified_indices(LABELS, 2)].tolist() == [0, 1]


def test_a_limit_above_the_size_keeps_all_in_order():
    np.testing.assert_array_equal(stratified_indices(LABELS, 101), np.arange(100))
