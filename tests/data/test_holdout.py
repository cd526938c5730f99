"""Are the held-out and the trial examples fair, and always the same?"""

import numpy as np
import pytest

from keras_committee.data.dataset import check_hold_out, hold_out, resolve_count, stratified_indices

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


def test_holding_out_nothing_keeps_all():
    stay, held = hold_out(LABELS, 0)
    assert (len(stay), len(held)) == (100, 0)


@pytest.mark.parametrize(("part", "expected"), [(0.2, 36), (7, 7), (0, 0), (0.0, 0)])
def test_a_float_is_a_fraction_and_an_integer_a_count(part, expected):
    assert resolve_count(part, 180) == expected


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (100, "the test split takes 100 of 100 examples: none are left for training"),
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
