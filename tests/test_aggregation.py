"""Aggregation in NumPy equals its definition in a slow loop, the Keras layers, and `models.Cascade`."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee import aggregation, metrics
from keras_committee.layers import (
    CONFIDENCE_MEASURES,
    ArithmeticMean,
    GeometricMean,
    MajorityVote,
    WeightedGeometricMean,
    confidence,
    get_head,
    head_name,
    subset_head,
)
from keras_committee.models import cascade

WEIGHTS = (0.2, 0.5, 0.0, 0.3)
LAYERS = {
    "geometric_mean": GeometricMean,
    "arithmetic_mean": ArithmeticMean,
    "majority_vote": MajorityVote,
    "weighted_geometric_mean": lambda: WeightedGeometricMean(WEIGHTS),
}


@keras.saving.register_keras_serializable(package="test_aggregation")
class FirstMember(keras.layers.Layer):
    """A head that is not one of ours."""

    def call(self, logits):
        return keras.ops.softmax(logits[:, 0])


def some_log_probs(seed, examples=23, members=4, classes=5):
    """Random logits with ties, members that agree exactly, and classes that are ruled out."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(examples, members, classes))
    logits[:5] = np.round(logits[:5]) + 0.0  # ties of classes; Keras' argmax takes -0.0 for less than 0.0
    logits[5:8] = logits[5:8, :1]  # ties of members
    logits[8:11, 0, 1] = -np.inf
    logits[11, :, 2] = -np.inf
    logits[12] = -np.inf
    logits[12, np.arange(members), rng.integers(0, classes, members)] = 0  # every class ruled out by a member
    logits[13] = 0
    return logits


def by_loop(head, logits, weights):
    """The definition for one example, `(members, classes)`."""
    if head == "majority_vote":
        counts = [0.0] * logits.shape[1]
        for row in logits:
            counts[list(row).index(max(row))] += 1
        return np.array(counts) / len(logits)
    probabilities = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logits]
    if head == "arithmetic_mean":
        return sum(probabilities) / len(logits)
    weights = [1 / len(logits)] * len(logits) if head == "geometric_mean" else weights
    product = np.prod([row**weight for row, weight in zip(probabilities, weights, strict=True)], axis=0)
    return product / product.sum()


def test_the_heads_are_those_of_the_layers():
    assert [head_name(LAYERS[name]()) for name in aggregation.HEADS] == list(aggregation.HEADS)


@pytest.mark.parametrize("head", aggregation.HEADS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_head_is_its_definition(head, dtype):
    logits = np.delete(some_log_probs(1), 12, axis=0)  # 0 / 0 in the loop
    weights = {"weighted_geometric_mean": WEIGHTS}.get(head)
    combined = aggregation.combine(head, logits, weights, dtype)
    assert combined.dtype == dtype
    expected = [by_loop(head, example, WEIGHTS) for example in logits]
    np.testing.assert_allclose(combined, expected, atol=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("head", aggregation.HEADS)
@pytest.mark.parametrize("seed", [2, 7, 11])
def test_a_head_is_its_layer(head, seed):
    logits = some_log_probs(seed).astype(np.float32)
    layer = LAYERS[head]()
    expected = keras.ops.convert_to_numpy(layer(logits))
    np.testing.assert_allclose(aggregation.combine(layer, logits), expected, atol=1e-6)
    np.testing.assert_allclose(aggregation.combine(layer, logits, dtype=np.float64), expected, atol=1e-6)


def test_log_probabilities_and_logits_give_the_same():
    logits = np.delete(some_log_probs(3), 12, axis=0)
    log_probs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    for head in aggregation.HEADS:
        one, other = (aggregation.combine(head, values, dtype=np.float64) for values in (logits, log_probs))
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_and_largest_logits_have_the_probabilities_of_the_limit(dtype):
    largest = np.finfo(dtype).max
    logits = np.array([[[-np.inf] * 3, [largest, -largest, 0], [0, -np.inf, 0]]], dtype)
    probabilities = np.array([[[1 / 3] * 3, [1, 0, 0], [0.5, 0, 0.5]]])
    for head, expected in {"arithmetic_mean": probabilities.mean(1), "geometric_mean": [[1, 0, 0]]}.items():
        np.testing.assert_allclose(aggregation.combine(head, logits, dtype=dtype), expected, rtol=1e-6)
    uncertainty, expected = aggregation.uncertainty(logits), metrics.uncertainty_decomposition(probabilities)
    assert uncertainty.keys() == expected.keys()
    for name, values in uncertainty.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


@pytest.mark.parametrize("members", [(1, 3), (2,), (0, 1, 2, 3)])
def test_the_weights_of_a_subset_are_those_of_the_subset_layer(members):
    logits = some_log_probs(4)[:, list(members)].astype(np.float32)
    expected = keras.ops.convert_to_numpy(subset_head(WeightedGeometricMean(WEIGHTS), members)(logits))
    weights = np.array(WEIGHTS)[list(members)]
    np.testing.assert_allclose(aggregation.combine("geometric_mean", logits, weights), expected, atol=1e-6)


def test_any_keras_layer_is_a_head():
    logits = some_log_probs(5).astype(np.float32)
    combined = aggregation.combine(FirstMember(), logits, dtype=np.float64)
    assert combined.dtype == np.float64
    np.testing.assert_allclose(combined, keras.ops.softmax(logits[:, 0]), atol=1e-7)


def test_the_weights_of_a_layer_are_used_unless_others_are_given():
    assert aggregation.resolve_head(WeightedGeometricMean(WEIGHTS)) == (
        "weighted_geometric_mean",
        pytest.approx(list(WEIGHTS)),
    )
    assert aggregation.resolve_head(WeightedGeometricMean(WEIGHTS), [1, 2]) == ("weighted_geometric_mean", [1, 2])
    layer = FirstMember()
    assert aggregation.resolve_head(layer, [1, 2]) == (layer, None)


@pytest.mark.parametrize(
    ("head", "weights", "message"),
    [
        ("geometric_means", None, r"head must be one of geometric_mean, .*'geometric_means'\. Did you mean 'geometric"),
        ("geometric_mean", [0.5, 0.5], r"one number from 0 per member \(4\)\. Received: \[0\.5, 0\.5\]"),
        ("geometric_mean", [0.5, 0.5, -0.1, 0.1], "one number from 0 per member"),
    ],
)
def test_unknown_heads_and_wrong_weights_are_rejected(head, weights, message):
    with pytest.raises(ValueError, match=message):
        aggregation.combine(head, some_log_probs(6), weights)


@pytest.mark.parametrize("measure", CONFIDENCE_MEASURES)
@pytest.mark.parametrize("head", ["geometric_mean", "majority_vote"])
def test_a_confidence_is_that_of_the_layer(measure, head):
    logits = some_log_probs(7).astype(np.float32)
    probabilities = aggregation.combine(head, logits)
    computed = aggregation.confidence(measure, probabilities, logits)
    assert computed.dtype == np.float32
    expected = keras.ops.convert_to_numpy(confidence(measure, probabilities, logits))
    np.testing.assert_allclose(computed, expected, atol=2e-6)


def test_the_entropy_of_equal_probabilities_is_not_below_0():
    for classes in (3, 6, 12, 14):
        equal = np.full((1, classes), 1 / classes, np.float32)
        assert 0 <= aggregation.confidence("entropy", equal, equal[:, None])[0] < 1e-6


def test_an_unknown_measure_is_rejected():
    with pytest.raises(ValueError, match=r"Received: 'luck'"):
        aggregation.confidence("luck", np.eye(2), np.zeros((2, 1, 2)))


def test_uncertainty_is_the_decomposition_of_the_members_probabilities():
    logits = 3 * some_log_probs(8)
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=2, keepdims=True))
    for weights in (None, [0, 3, 1, 1]):
        parts = metrics.uncertainty_decomposition(probabilities, weights)
        for name, values in aggregation.uncertainty(logits, weights).items():
            np.testing.assert_allclose(values, parts[name], atol=1e-12)
    np.testing.assert_allclose(aggregation.uncertainty(logits, [0, 0, 0, 0])["mutual"],
                               aggregation.uncertainty(logits)["mutual"])  # fmt: skip


def cascade_by_loop(head, logits, stages, thresholds, measure, weights):
    """One example after another: the first stage whose confidence reaches its threshold."""
    for example in logits:
        for size, threshold in zip(stages, (*thresholds, -1), strict=True):
            outputs = aggregation.stage_outputs(head, example[None], size, measure, weights)
            if outputs["confidence"][0] >= np.float32(threshold):
                break
        yield {name: values[0] for name, values in outputs.items()}


seeds, measures, heads = st.integers(0, 500), st.sampled_from(CONFIDENCE_MEASURES), st.sampled_from(aggregation.HEADS)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, measure=measures, head=heads, low=st.floats(0, 1.1), high=st.floats(0, 1.1))
def test_a_cascade_is_the_loop_over_examples_and_stages(seed, measure, head, low, high):
    logits, stages = some_log_probs(seed).astype(np.float32), (1, 2, 4)
    weights = {"weighted_geometric_mean": WEIGHTS}.get(head)
    outputs = aggregation.run_cascade(head, logits, stages, (low, high), measure, weights)
    expected = list(cascade_by_loop(head, logits, stages, (low, high), measure, weights))
    np.testing.assert_array_equal(outputs["members_used"], [row["members_used"] for row in expected])
    for name in ("probabilities", "confidence", "agreement", "mutual_information"):
        np.testing.assert_allclose(outputs[name], [row[name] for row in expected], atol=1e-6)


@pytest.mark.parametrize("measure", ["max_probability", "margin"])
def test_a_cascade_with_windows_passes_on_the_examples_inside_them_only(measure):
    logits, stages = some_log_probs(9, examples=60).astype(np.float32), (1, 2, 4)
    thresholds, lower_thresholds = (0.6, 0.5), (0.35, None)
    outputs = aggregation.run_cascade(
        "geometric_mean", logits, stages, thresholds, measure, lower_thresholds=lower_thresholds
    )
    for example in range(60):
        for size, upper, lower in zip(stages, (*thresholds, 0), (*lower_thresholds, None), strict=True):
            row = logits[example : example + 1, :size]
            probabilities = aggregation.combine("geometric_mean", row)
            confidence = aggregation.confidence(measure, probabilities, row)[0]
            inside = confidence < np.float32(upper) and (lower is None or confidence >= np.float32(lower))
            if not inside:
                break
        assert (outputs["members_used"][example], outputs["confidence"][example]) == (size, pytest.approx(confidence))
    assert set(outputs["members_used"]) == {1, 2, 4}
    assert (outputs["confidence"][outputs["members_used"] == 1] < 0.35).any()
    tensor = keras.ops.convert_to_tensor(logits)
    keras_stages = [cascade.stage_outputs(tensor, size, measure, get_head("geometric_mean")) for size in stages]
    expected = cascade.first_confident(keras_stages, thresholds, lower_thresholds)
    for name in ("probabilities", "members_used", "confidence"):
        np.testing.assert_allclose(outputs[name], keras.ops.convert_to_numpy(expected[name]), atol=2e-6)


@pytest.mark.parametrize("measure", CONFIDENCE_MEASURES)
@pytest.mark.parametrize("head", aggregation.HEADS)
def test_a_cascade_is_that_of_the_keras_model(measure, head):
    logits, stages, thresholds = some_log_probs(9, examples=60).astype(np.float32), (2, 3, 4), (0.62, 0.41)
    layer = LAYERS[head]()
    outputs = aggregation.run_cascade(layer, logits, stages, thresholds, measure)
    tensor = keras.ops.convert_to_tensor(logits)
    expected = cascade.first_confident(
        [cascade.stage_outputs(tensor, size, measure, layer) for size in stages], thresholds
    )
    assert len(set(outputs["members_used"])) > 1
    for name in ("probabilities", "members_used", "confidence"):
        np.testing.assert_allclose(outputs[name], keras.ops.convert_to_numpy(expected[name]), atol=2e-6)


def test_a_stage_sees_only_the_examples_that_no_earlier_one_has_answered():
    confidences, seen = np.array([0.9, 0.2, 0.5, 0.7]), {}

    def outputs_of(size, examples):
        seen[size] = examples.tolist()
        return {"confidence": confidences[examples] + 0.1 * (size - 1), "size": np.full(len(examples), size)}

    outputs = aggregation.first_confident(4, (1, 2, 5), (0.65, 0.6), outputs_of)
    assert seen == {1: [0, 1, 2, 3], 2: [1, 2], 5: [1]}
    assert outputs["size"].tolist() == [1, 5, 2, 1]
    aggregation.first_confident(4, (1, 2, 5), (0.0, 0.6), outputs_of)
    assert seen[2] == [1, 2]  # nothing was left for the second stage


def test_thresholds_are_compared_in_float32():
    def outputs_of(size, examples):
        return {"confidence": np.full(len(examples), 1 / 3), "size": np.full(len(examples), size)}

    assert aggregation.first_confident(1, (1, 2), (1 / 3 + 1e-12,), outputs_of)["size"] == [1]
    assert aggregation.first_confident(1, (1, 2), (1 / 3 + 1e-6,), outputs_of)["size"] == [2]


def test_a_cascade_of_another_layer_and_of_no_examples():
    logits = some_log_probs(10).astype(np.float32)
    outputs = aggregation.run_cascade(FirstMember(), logits, (1, 4), (0.5,))
    np.testing.assert_allclose(outputs["probabilities"], keras.ops.softmax(logits[:, 0]), atol=1e-6)
    assert (
        aggregation.run_cascade(get_head("geometric_mean"), np.zeros((3, 2, 4)), (2,), ())["members_used"].tolist()
        == [2] * 3
    )
