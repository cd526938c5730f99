"""Do evaluation.json's blocks on diversity and uncertainty say what the metrics say?"""

import json

import numpy as np
import pytest

from keras_committee import metrics
from keras_committee.evaluation import evaluate, load_or_compute_predictions
from keras_committee.evaluation.evaluate import diversity, mean_uncertainty


def test_the_evaluation_has_the_blocks_of_its_votes(trained):
    run, recipe = trained
    result = evaluate(run, recipe)
    votes = load_or_compute_predictions(run, recipe)
    probabilities = np.exp(votes.log_probabilities)
    right = votes.log_probabilities.mean(axis=1).argmax(axis=1) == votes.labels
    assert result["diversity"] == diversity(probabilities, votes.labels)
    assert result["uncertainty"] == mean_uncertainty(probabilities, right)
    assert 0 < right.mean() < 1
    assert result["uncertainty"]["wrong"]["total"] > result["uncertainty"]["right"]["total"]
    gain = result["diversity"]["ambiguity"]["nll"]
    assert gain["committee"] == pytest.approx(result["committees"][2]["nll"]["mean"], rel=1e-5)
    assert gain["members"] == pytest.approx(result["committees"][0]["nll"]["mean"], rel=1e-5)


VOTES = np.array(
    [
        [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]],
        [[0.1, 0.8, 0.1], [0.5, 0.4, 0.1]],
        [[0.2, 0.2, 0.6], [0.3, 0.1, 0.6]],
    ]
)


def test_the_uncertainty_is_the_mean_over_all_the_right_and_the_wrong():
    parts = metrics.uncertainty_decomposition(VOTES)
    means = mean_uncertainty(VOTES, np.array([True, False, True]))
    assert means["right"]["mutual"] == pytest.approx((parts["mutual"][0] + parts["mutual"][2]) / 2)
    assert means["wrong"]["expected"] == pytest.approx(parts["expected"][1])
    assert means["all"]["total"] == pytest.approx(parts["total"].mean())


def test_what_is_not_defined_is_null_and_no_nan():
    labels = np.array([0, 1, 2])  # the first member is always right
    block = diversity(VOTES, labels)
    assert block["error_correlation"] == [[None, None], [None, pytest.approx(1)]]
    assert block["q_statistic"][0] == [None, None]
    assert mean_uncertainty(VOTES, np.ones(3, bool))["wrong"] == {"total": None, "expected": None, "mutual": None}
    json.dumps(block, allow_nan=False)
