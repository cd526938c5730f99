"""Are the fitted temperature and weights the best ones there are?"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    fit_temperature,
    fit_weights,
    softmax,
)


def nll(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


def draw(seed, examples=300, members=3, classes=4):
    """Log probabilities of members of different worth, the first the best, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, examples)
    worth = np.linspace(2.0, 0.4, members)[:, None]
    logits = worth * np.eye(classes)[labels][:, None] + 1.7 * generator.normal(size=(examples, members, classes))
    return np.log(softmax(logits)).astype(np.float32), labels


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_no_temperature_of_a_fine_grid_is_better(seed):
    votes, labels = draw(seed)
    found = fit_temperature(votes[:, 1], labels)
    grid = np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 400)
    best = min(nll(votes[:, 1] / temperature, labels) for temperature in grid)
    assert nll(votes[:, 1].astype(float) / found, labels) <= best + 1e-9
    assert MIN_TEMPERATURE < found < MAX_TEMPERATURE


def test_logits_that_were_sharpened_are_brought_back():
    generator = np.random.default_rng(1)
    logits = 2 * generator.normal(size=(40_000, 5))
    labels = (softmax(logits).cumsum(axis=1) > generator.uniform(size=(40_000, 1))).argmax(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert fit_temperature(2.7 * logits, labels) == pytest.approx(2.7 * fit_temperature(logits, labels))


def test_who_is_always_right_cannot_be_sure_enough_and_who_guesses_not_careful_enough():
    labels = draw(2)[1]
    assert fit_temperature(np.log(0.1 + np.eye(4)[labels]), labels) == MIN_TEMPERATURE
    assert fit_temperature(np.log(0.1 + np.eye(4)[(labels + 1) % 4]), labels) == MAX_TEMPERATURE


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_no_weights_of_a_fine_grid_on_the_simplex_are_better(seed):
    votes, labels = draw(seed)
    weights, gap = fit_weights(votes, labels)
    steps = range(21)
    grid = [(a / 20, b / 20, (20 - a - b) / 20) for a, b in itertools.product(steps, steps) if a + b <= 20]
    best = min(nll(np.einsum("emc,m->ec", votes, w), labels) for w in grid)
    assert nll(np.einsum("emc,m->ec", votes, weights), labels) <= best + 1e-9
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert min(weights) >= 0
    assert -1e-12 <= gap < 1e-4
    assert weights[0] > weights[2]


def test_members_of_one_mind_may_share_their_weight_and_one_alone_has_it_all():
    votes, labels = draw(3)
    twins, gap = fit_weights(votes[:, [0, 0]], labels)
    assert (sum(twins), gap) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert fit_weights(votes[:, [1]], labels) == ([1.0], 0.0)
