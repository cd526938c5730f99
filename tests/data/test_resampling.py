"""Bagging, folds, balanced epochs and class weights agree with their definitions, written as loops."""

import dataclasses
import math

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.class_weight import compute_class_weight

from keras_committee import data
from keras_committee.data.images import InMemoryImages
from keras_committee.data.resampling import Resampling, balanced_order, class_weights, folds
from keras_committee.errors import DataError, RecipeError

# 47 examples of classes 0, 2 and 3, unequally many; class 1 has none.
LABELS = np.random.default_rng(3).permutation(np.repeat([0, 2, 3], [7, 29, 11])).astype(np.int32)
BOOTSTRAP = Resampling(method="bootstrap", members=3, seed=5)
KFOLD = Resampling(method="kfold", members=4, seed=5)


def splits(labels=LABELS, batch_size=8, **options):
    images = np.broadcast_to(np.arange(len(labels))[:, None, None, None], (len(labels), 4, 4, 3)).astype(np.uint8)
    part = data.Split(images=InMemoryImages(images), labels=labels)
    return data.Splits(classes=tuple("abcd"), train=part, validation=part, test=part, batch_size=batch_size, **options)


def test_a_bootstrap_draws_from_each_class_as_a_loop_over_it_does():
    rng, expected = np.random.default_rng((5, 2, 4)), []
    for label in range(4):
        rows = [row for row, own in enumerate(LABELS) if own == label]
        expected += [rows[draw] for draw in (rng.integers(0, len(rows), len(rows)) if rows else [])]
    assert BOOTSTRAP.rows(LABELS, 2).tolist() == sorted(expected)
    assert np.bincount(LABELS[BOOTSTRAP.rows(LABELS, 1)]).tolist() == np.bincount(LABELS).tolist()
    assert BOOTSTRAP.rows(LABELS, 0).tolist() != BOOTSTRAP.rows(LABELS, 1).tolist()


def test_a_bootstrap_leaves_out_a_share_of_one_in_e():
    labels = np.zeros(20_000, np.int32)
    assert len(BOOTSTRAP.held_out(labels, 0)) / 20_000 == pytest.approx(1 / math.e, abs=0.01)


def test_every_member_of_a_k_fold_leaves_out_another_fold_and_the_folds_are_everything():
    held_out = [KFOLD.held_out(LABELS, index) for index in range(4)]
    assert sorted(np.concatenate(held_out)) == list(range(47))
    for index, rows in enumerate(held_out):
        assert sorted([*rows, *KFOLD.rows(LABELS, index)]) == list(range(47))


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_folds_have_the_class_counts_of_stratified_k_fold(count):
    found = folds(LABELS, count, seed=1)
    peers = StratifiedKFold(count, shuffle=True, random_state=0).split(LABELS, LABELS)
    ours = np.array([np.bincount(LABELS[found == fold], minlength=4) for fold in range(count)])
    theirs = np.array([np.bincount(LABELS[rows], minlength=4) for _, rows in peers])
    np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))
    assert np.ptp(ours.sum(axis=1)) <= 1
    assert folds(LABELS, count, seed=2).tolist() != found.tolist()


def test_a_balanced_order_has_each_class_and_within_it_each_example_equally_often():
    rows = balanced_order(LABELS, np.random.default_rng(1))
    per_class = [int(np.sum(LABELS[rows] == label)) for label in (0, 2, 3)]
    assert sorted(per_class) == [15, 16, 16]
    for label in (0, 2, 3):
        counts = [int(np.sum(rows == row)) for row in np.flatnonzero(label == LABELS)]
        assert max(counts) - min(counts) <= 1
    changes = np.count_nonzero(np.diff(LABELS[rows]))
    assert 20 < changes < 42  # mixed: of 46 neighbors, two of three differ


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.unique(LABELS), y=LABELS)
    np.testing.assert_allclose(class_weights("balanced", LABELS, "abcd"), [expected[0], 0, *expected[1:]], rtol=1e-6)


def test_weights_are_given_by_name_or_number():
    weights = class_weights({"c": 2.5, 0: 0.5}, LABELS, ("a", "b", "c", "d"))
    assert (weights.tolist(), weights.dtype) == ([0.5, 1, 2.5, 1], np.float32)
    assert class_weights(None, LABELS, ("a", "b", "c", "d")) is None
    assert class_weights({"1": 3.0}, LABELS, ("0", "1")).tolist() == [1, 3]
    with pytest.raises(RecipeError, match=r"no class 'cats'; expected one of cat, dog\. Did you mean 'cat'"):
        class_weights({"cats": 2.0}, LABELS, ("cat", "dog"))
    with pytest.raises(RecipeError, match="no class 4; expected a number of 0 to 3"):
        class_weights({4: 2.0}, LABELS, ("a", "b", "c", "d"))


@pytest.mark.parametrize("resampling", [BOOTSTRAP, KFOLD])
@pytest.mark.parametrize("balanced", [False, True])
def test_a_stream_reads_the_examples_of_its_member_and_its_tail_is_that_of_the_whole(resampling, balanced):
    loaded = splits(resampling=resampling, is_balanced=balanced, augment=data.pad_crop_flip(1)).for_member(2)
    order, draws = loaded.batch_indices(7, 0, 23)
    tail, tail_draws = loaded.batch_indices(7, 11, 12)
    np.testing.assert_array_equal(order[11:], tail)
    np.testing.assert_array_equal(draws[11:], tail_draws)
    rows = resampling.rows(LABELS, 2)
    assert set(order.ravel()) <= set(rows)
    epoch = order.ravel()[: len(rows)]
    expected = balanced_order(LABELS[rows], np.random.default_rng((7, 0, 0)))
    assert sorted(epoch) == (sorted(rows[expected]) if balanced else sorted(rows))
    labels = np.concatenate([labels for _, labels in loaded.stream(7, 0, 2).as_numpy_iterator()])
    np.testing.assert_array_equal(labels, LABELS[order[:2].ravel()])


def test_repeated_examples_are_augmented_differently():
    loaded = splits(resampling=BOOTSTRAP, augment=data.pad_crop_flip(4)).for_member(0)
    order, draws = loaded.batch_indices(7, 0, 5)
    row = np.bincount(order.ravel()).argmax()
    own = draws.reshape(-1, 3)[order.ravel() == row]
    assert len(own) > 1
    assert len(np.unique(own, axis=0)) == len(own)


def test_all_members_have_equally_long_epochs_and_fingerprints_of_their_own():
    members = [splits(resampling=KFOLD).for_member(index) for index in range(4)]
    assert {loaded.steps_per_epoch for loaded in members} == {(47 - 12) // 8}
    fingerprints = {loaded.training_fingerprint() for loaded in members}
    assert len(fingerprints) == 4
    assert splits().training_fingerprint() == splits().train.fingerprint() not in fingerprints
    assert splits(resampling=BOOTSTRAP).steps_per_epoch == splits().steps_per_epoch == 5
    with pytest.raises(DataError, match="35 training examples of a member do not fill one batch of 36"):
        assert splits(batch_size=36, resampling=KFOLD).steps_per_epoch


def test_a_record_of_the_resampling_restores_it():
    assert Resampling.from_dict(dataclasses.asdict(KFOLD)) == KFOLD
