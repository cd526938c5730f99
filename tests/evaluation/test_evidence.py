"""Do labelled images contradict what was declared of a model?"""

import numpy as np

from keras_committee.evaluation.import_models import better_order, better_scale

LABELS = np.arange(200) % 5


def noisy(answers, share, seed=0):
    """`answers`, of which a share is another one."""
    draw = np.random.default_rng(seed)
    wrong = draw.random(len(answers)) < share
    return np.where(wrong, (answers + draw.integers(1, 5, len(answers))) % 5, answers)


def test_a_scale_under_which_far_more_is_right_is_named():
    answers = {"0..255": noisy(LABELS, 0.7), "0..1": noisy(LABELS, 0.2, 1), "torch": noisy(LABELS, 0.3, 2)}
    scale, right, declared = better_scale("0..255", answers.get, LABELS, list(answers))
    assert (scale, right, declared) == ("0..1", (answers["0..1"] == LABELS).sum(), (answers["0..255"] == LABELS).sum())


def test_what_may_be_chance_is_no_evidence():
    answers = {"0..255": noisy(LABELS, 0.25), "0..1": noisy(LABELS, 0.2, 1)}
    assert better_scale("0..255", answers.get, LABELS, list(answers)) is None
    assert better_scale("0..255", answers.get, LABELS, ["0..255"]) is None


def test_two_classes_that_are_changed_for_each_other_are_found():
    mixed = np.array([0, 3, 2, 1, 4])
    order, right, declared = better_order(noisy(mixed[LABELS], 0.1), LABELS, 5)
    assert order == [0, 3, 2, 1, 4]
    assert right > declared + 30


def test_neither_the_right_order_nor_guesses_are_evidence():
    assert better_order(noisy(LABELS, 0.2), LABELS, 5) is None
    draw = np.random.default_rng(1)
    assert better_order(draw.integers(0, 100, 256), draw.integers(0, 100, 256), 100) is None
