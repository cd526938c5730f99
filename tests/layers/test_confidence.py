"""Is each confidence its definition?"""

import keras
import numpy as np
import pytest

from keras_committee.layers import CONFIDENCE_MEASURES, confidence

VOTES = np.array(
    [[[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.1, 0.2, 0.7]], [[0.2, 0.7, 0.1], [0.2, 0.6, 0.2], [0.1, 0.8, 0.1]]],
    "float32",
)
MEAN = VOTES.mean(axis=1)


def by_hand(kind, probabilities, votes):
    best, second = sorted(probabilities, reverse=True)[:2]
    entropy = -sum(p * np.log(p) for p in probabilities)
    top = list(probabilities).index(best)
    return {
        "max_probability": best,
        "margin": best - second,
        "entropy": 1 - entropy / np.log(len(probabilities)),
        "agreement": sum(list(vote).index(max(vote)) == top for vote in votes) / len(votes),
    }[kind]


@pytest.mark.parametrize("kind", CONFIDENCE_MEASURES)
def test_a_confidence_is_its_definition(kind):
    expected = [by_hand(kind, p, v) for p, v in zip(MEAN.astype("float64"), VOTES, strict=True)]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(confidence(kind, MEAN, VOTES)), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", CONFIDENCE_MEASURES)
def test_certainty_is_one_and_finite(kind):
    certain = np.array([[0.0, 1.0, 0.0]], "float32")
    assert float(confidence(kind, certain, certain[:, None])[0]) == pytest.approx(1.0, abs=1e-5)


def test_nobody_is_surer_of_less_than_nothing():
    """In float32 the entropy of twelve equal shares is a little above its own limit."""
    for classes in (3, 6, 12, 14):
        equal = np.full((1, classes), 1 / classes, "float32")
        assert 0 <= float(confidence("entropy", equal, equal[:, None])[0]) < 1e-5


def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r"max_probability, margin, entropy, agreement. Received: 'max_prob'"):
        confidence("max_prob", MEAN, VOTES)
