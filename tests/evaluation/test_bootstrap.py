"""Intervals are those of a peer's bootstrap, and a pair is compared on the same draws."""

import numpy as np
import pytest
from pools import made_up_votes
from scipy import stats

from keras_committee import metrics
from keras_committee.evaluation.committee_scores import (
    bootstrap_differences,
    bootstrap_intervals,
    bootstrap_mean_difference,
    combine,
    per_example_scores,
)

VOTES, LABELS = made_up_votes(4, 250, (0.8, 1.2, 2.0))
SHARES = np.array([[1, 0, 0], [1, 1, 1]])
FIGURES = per_example_scores(VOTES, LABELS, SHARES, "geometric_mean")
PROBABILITIES = combine(VOTES, SHARES, "geometric_mean")


@pytest.mark.parametrize("score", ["accuracy", "nll", "ece", "brier"])
def test_an_interval_is_that_of_scipy(score):
    ours = bootstrap_intervals(FIGURES)[1][score]
    measure = getattr(metrics, score)

    def of_draw(indices):
        return measure(PROBABILITIES[1][indices], LABELS[indices])

    peer = stats.bootstrap(
        (np.arange(250),),
        of_draw,
        vectorized=False,
        n_resamples=3000,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    assert ours["value"] == pytest.approx(measure(PROBABILITIES[1], LABELS), abs=1e-9)
    assert ours["low"] == pytest.approx(peer.confidence_interval.low, abs=0.35 * peer.standard_error)
    assert ours["high"] == pytest.approx(peer.confidence_interval.high, abs=0.35 * peer.standard_error)


def test_a_difference_is_taken_on_the_same_draws():
    (whole,) = bootstrap_differences(per_example_scores(VOTES, LABELS, SHARES[1:], "geometric_mean"), FIGURES)[:1]
    single, committee = bootstrap_intervals(FIGURES)
    assert whole["accuracy"]["value"] == pytest.approx(committee["accuracy"]["value"] - single["accuracy"]["value"])
    apart = committee["nll"]["high"] - single["nll"]["low"] - committee["nll"]["low"] + single["nll"]["high"]
    assert whole["nll"]["high"] - whole["nll"]["low"] < 0.8 * apart
    paired = stats.bootstrap(
        (FIGURES.nll[1], FIGURES.nll[0]), lambda a, b, axis: (a - b).mean(axis=axis), paired=True, method="percentile",
        n_resamples=2000, rng=np.random.default_rng(5),
    )  # fmt: skip
    assert whole["nll"]["low"] == pytest.approx(paired.confidence_interval.low, abs=0.25 * paired.standard_error)
    assert bootstrap_mean_difference(FIGURES.nll[1], FIGURES.nll[0])["high"] == pytest.approx(
        whole["nll"]["high"], rel=1e-4
    )


def test_a_committee_differs_from_itself_in_nothing():
    zero = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert bootstrap_differences(FIGURES, FIGURES)[1] == dict.fromkeys(("accuracy", "nll", "ece", "brier"), zero)
