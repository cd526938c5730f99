"""Confidence measures against their definitions."""

import keras
import numpy as np
import pytest

from keras_committee.layers import CONFIDENCE_MEASURES, confidence

MEMBER_PROBABILITIES = np.array(
    [[[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.1, 0.2, 0.7]], [[0.2, 0.7, 0.1], [0.2, 0.6, 0.2], [0.1, 0.8, 0.1]]],
    "float32",
)
MEAN = MEMBER_PROBABILITIES.mean(axis=1)


def by_hand(measure, probabilities, members):
    best, second = sorted(probabilities, reverse=True)[:2]
    entropy = -sum(p * np.log(p) for p in probabilities)
    top = list(probabilities).index(best)
    return {
        "max_probability": best,
        "margin": best - second,
        "entropy": 1 - entropy / np.log(len(probabilities)),
        "agreement": sum(list(member).index(max(member)) == top for member in members) / len(members),
    }[measure]


@pytest.mark.parametrize("measure", CONFIDENCE_MEASURES)
def test_a_confidence_is_its_definition(measure):
    expected = [by_hand(measure, p, m) for p, m in zip(MEAN.astype("float64"), MEMBER_PROBABILITIES, strict=True)]
    actual = keras.ops.convert_to_numpy(confidence(measure, MEAN, MEMBER_PROBABILITIES))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("measure", CONFIDENCE_MEASURES)
def test_certainty_is_one_and_finite(measure):
    certain = np.array([[0.0, 1.0, 0.0]], "float32")
    assert float(confidence(measure, certain, certain[:, None])[0]) == pytest.approx(1.0, abs=1e-5)


def test_the_entropy_confidence_of_a_uniform_distribution_is_not_negative():
    """In float32 the entropy of twelve equal probabilities is slightly above log 12."""
    for classes in (3, 6, 12, 14):
        equal = np.full((1, classes), 1 / classes, "float32")
        assert 0 <= float(confidence("entropy", equal, equal[:, None])[0]) < 1e-5


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match=r"max_probability, margin, entropy, agreement. Received: 'max_prob'"):
        confidence("max_prob", MEAN, MEMBER_PROBABILITIES)
