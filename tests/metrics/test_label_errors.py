"""Confident learning: the definition by a slow loop, and labels flipped on purpose."""

import numpy as np
import pytest

from keras_committee import metrics


def predictions(seed, examples, classes, strength):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    logits = rng.normal(size=(examples, classes)) + strength * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_the_errors_and_their_order_are_those_of_the_slow_loop():
    probabilities, labels = predictions(0, 400, 4, 1.6)
    thresholds = [probabilities[labels == k, k].mean() for k in range(4)]
    joint, suspicious = np.zeros((4, 4), int), []
    for index, row in enumerate(probabilities):
        confident = [k for k in range(4) if row[k] >= thresholds[k]]
        best = max(confident, key=lambda k: row[k], default=None)
        joint[labels[index], labels[index] if best is None else best] += best is not None
        margin = row[labels[index]] - max(row[k] for k in range(4) if k != labels[index])
        suspicious += [(margin, index, best)] * (best not in (None, labels[index]))
    found = metrics.label_errors(probabilities, labels)
    assert [*zip(found.margins, found.indices, found.suggested, strict=True)] == sorted(suspicious)
    np.testing.assert_array_equal(found.joint, joint)
    assert len(suspicious) > 20


def test_labels_flipped_on_purpose_are_the_most_suspicious():
    probabilities, labels = predictions(1, 5000, 10, 9.0)
    rng = np.random.default_rng(2)
    flipped = rng.choice(5000, 100, replace=False)
    noisy = labels.copy()
    noisy[flipped] = (labels[flipped] + rng.integers(1, 10, 100)) % 10
    found = metrics.label_errors(probabilities, noisy)
    assert len(set(found.indices[:100]) & set(flipped)) >= 95
    hits = np.isin(found.indices[:100], flipped)
    assert (found.suggested[:100] == labels[found.indices[:100]])[hits].all()


def test_a_class_without_examples_is_suggested_to_nobody():
    found = metrics.label_errors(np.array([[0.1, 0.2, 0.7], [0.6, 0.1, 0.3]]), np.array([1, 0]))
    assert (found.indices.tolist(), found.joint.sum()) == ([], 2)
    with pytest.raises(ValueError, match="labels must lie in"):
        metrics.label_errors(np.array([[0.5, 0.5]]), np.array([2]))
