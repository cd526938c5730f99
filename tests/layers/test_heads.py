"""Heads against their definitions."""

import itertools

import keras
import numpy as np
import pytest

from keras_committee.layers import (
    ArithmeticMean,
    GeometricMean,
    MajorityVote,
    WeightedGeometricMean,
    confidence,
    get_head,
    head_name,
    subset_head,
)

WEIGHTS = (0.2, 0.7, 0.1)
HEADS = {
    "geometric_mean": GeometricMean,
    "arithmetic_mean": ArithmeticMean,
    "majority_vote": MajorityVote,
    "weighted_geometric_mean": lambda: WeightedGeometricMean(WEIGHTS),
}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def random_logits(examples=5, members=3, classes=4):
    return np.random.default_rng(2).normal(scale=2.0, size=(examples, members, classes)).astype("float32")


def probabilities(logits):
    powers = np.exp(logits.astype("float64"))
    return powers / powers.sum(-1, keepdims=True)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_the_geometric_mean_is_the_mth_root_of_the_product_normalized():
    root = probabilities(random_logits()).prod(1) ** (1 / 3)
    np.testing.assert_allclose(numpy(GeometricMean()(random_logits())), root / root.sum(-1, keepdims=True), rtol=1e-5)


def test_the_weighted_geometric_mean_raises_each_member_to_its_weight():
    product = (probabilities(random_logits()) ** np.array(WEIGHTS)[:, None]).prod(1)
    expected = product / product.sum(-1, keepdims=True)
    np.testing.assert_allclose(numpy(WeightedGeometricMean(WEIGHTS)(random_logits())), expected, rtol=1e-5)


def test_the_arithmetic_mean_is_the_mean_of_the_probabilities():
    np.testing.assert_allclose(
        numpy(ArithmeticMean()(random_logits())), probabilities(random_logits()).mean(1), rtol=1e-5
    )


def test_the_majority_vote_is_the_share_of_votes_and_ties_stay_ties():
    logits = np.array([[[9.0, 1, 0], [0, 1, 0.5], [0, 2, 1]], [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]], "float32")
    np.testing.assert_allclose(numpy(MajorityVote()(logits)), [[1 / 3, 2 / 3, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)


@every_head
def test_log_probabilities_give_the_same_as_logits(make):
    logarithms = np.log(probabilities(random_logits())).astype("float32")
    np.testing.assert_allclose(numpy(make()(logarithms)), numpy(make()(random_logits())), rtol=1e-5)


@pytest.mark.parametrize("make", [GeometricMean, ArithmeticMean, MajorityVote])
def test_the_order_of_the_members_does_not_matter(make):
    np.testing.assert_allclose(numpy(make()(random_logits()[:, [2, 0, 1]])), numpy(make()(random_logits())), rtol=1e-5)


@pytest.mark.parametrize("make", [GeometricMean, ArithmeticMean, lambda: WeightedGeometricMean(WEIGHTS)])
def test_a_committee_of_identical_members_is_the_member(make):
    member = random_logits()[:, :1]
    np.testing.assert_allclose(numpy(make()(member.repeat(3, 1))), probabilities(member)[:, 0], rtol=1e-5)


@every_head
@pytest.mark.parametrize("extreme", [1e4, -1e4, -1e30, -np.inf])
def test_extreme_logits_stay_finite_and_sum_to_one(make, extreme):
    logits = random_logits()
    for member in range(3):  # each member decides about another class, together about three of four
        logits[:, member, member] = extreme
    out = numpy(make()(logits))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out.sum(-1), 1.0, rtol=1e-5)


def test_a_committee_that_excludes_every_class_is_uniform_not_nan():
    logits = np.array([[[0.0, -np.inf], [-np.inf, 0.0]]], "float32")
    np.testing.assert_allclose(numpy(GeometricMean()(logits)), [[0.5, 0.5]])


def log_probabilities(logits):
    """float64, the limit for infinite logits, and -1e30 for log 0; equal logits are uniform."""
    largest = logits.max(-1, keepdims=True)
    shifted = np.where(logits == largest, 0.0, logits - np.where(np.isfinite(largest), largest, 0.0))
    return np.maximum(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), -1e30)


def softmax(values):
    return probabilities(values - values.max(-1, keepdims=True))


EXTREME_HEADS = {
    "geometric_mean": lambda logits: softmax(log_probabilities(logits).mean(1)),
    "arithmetic_mean": lambda logits: np.exp(log_probabilities(logits)).mean(1),
    "majority_vote": lambda logits: np.eye(3)[logits.argmax(-1)].mean(1),
    "weighted_geometric_mean": lambda logits: softmax((log_probabilities(logits) * np.array(WEIGHTS)[:, None]).sum(1)),
}


def extreme_logits(dtype):
    """Tensor and float64 array `(500, 3, 3)` of 0, 1, the largest and the lowest finite number and -inf."""
    largest = {"float16": 65504.0, "bfloat16": 2.0**128 - 2.0**120, "float32": 2.0**128 - 2.0**104}[dtype]
    rows = np.array(list(itertools.product([0.0, 1.0, largest, -largest, -np.inf], repeat=3)))
    logits = rows[np.random.default_rng(2).integers(len(rows), size=(500, 3))]
    return keras.ops.cast(logits.astype("float32"), dtype), logits


@every_head
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_largest_logits_of_a_dtype_and_minus_infinity_give_the_limit(make, dtype):
    head, (logits, exact) = make(), extreme_logits(dtype)
    with np.errstate(invalid="ignore"):
        expected = EXTREME_HEADS[head_name(head)](exact)
    assert np.isfinite(expected).all()
    tolerance = 5e-3 if dtype == "float16" else 1e-5  # float32 differences of 131008 have steps of 8e-3
    np.testing.assert_allclose(numpy(head(logits)), expected, atol=tolerance)
    model = keras.Sequential([keras.Input((3, 3), dtype=dtype), head])
    model.compile(jit_compile=keras.backend.backend() != "torch")
    np.testing.assert_allclose(model.predict(logits, batch_size=500, verbose=0), expected, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_agreement_counts_extreme_logits(dtype):
    logits, exact = extreme_logits(dtype)
    certain = np.eye(3, dtype="float32")[np.full(500, 2)]
    np.testing.assert_allclose(
        numpy(confidence("agreement", certain, logits)), (exact.argmax(-1) == 2).mean(1), rtol=1e-6
    )


@every_head
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_head_is_float32_under_mixed_precision(make, dtype):
    keras.config.set_dtype_policy("mixed_bfloat16")
    head = make()
    out = head(keras.ops.cast(random_logits(), dtype))
    symbolic = head(keras.Input((3, 4), dtype=dtype))
    assert keras.backend.standardize_dtype(out.dtype) == symbolic.dtype == "float32"
    np.testing.assert_allclose(numpy(out).sum(-1), 1.0, rtol=1e-5)


@every_head
def test_shapes_and_config_round_trip(make):
    head = make()
    restored = type(head).from_config(head.get_config())
    np.testing.assert_array_equal(numpy(restored(random_logits())), numpy(head(random_logits())))
    assert restored.get_config() == head.get_config()
    assert head.compute_output_shape((None, 3, 4)) == head(keras.Input((3, 4))).shape == (None, 4)
    assert keras.saving.get_registered_name(type(head)) == f"keras_committee>{type(head).__name__}"


@pytest.mark.parametrize("weights", [(), (0.5, 0.6), (1.2, -0.2), (0.3, float("nan"))])
def test_weights_off_the_simplex_are_refused(weights):
    with pytest.raises(ValueError, match=r"floats of at least 0 that sum to 1\. Received: weights=\("):
        WeightedGeometricMean(weights)


def test_weights_of_another_number_of_members_are_refused():
    with pytest.raises(ValueError, match=r"one float per member\. Received: 3 weights, 2 members"):
        WeightedGeometricMean(WEIGHTS)(random_logits(members=2))


def test_logits_without_a_members_axis_are_refused():
    with pytest.raises(ValueError, match=r"shape \(batch, members, classes\)\. Received: shape=\(5, 4\)"):
        GeometricMean()(random_logits()[:, 0])


@pytest.mark.parametrize(("name", "make"), HEADS.items())
def test_a_head_has_one_name(name, make):
    assert head_name(make()) == name


def test_a_head_is_created_from_its_name():
    assert type(get_head("majority_vote")) is MajorityVote
    assert get_head("weighted_geometric_mean", weights=[0.2, 0.8]).get_config()["weights"] == [0.2, 0.8]


def test_another_layer_has_its_registered_name():
    assert head_name(keras.layers.Softmax()) == "Softmax"


def test_for_a_misspelled_head_the_nearest_is_suggested():
    with pytest.raises(
        ValueError, match=r"no head 'geometric_men'\. Did you mean 'geometric_mean'\? Heads: geometric_mean,"
    ):
        get_head("geometric_men")


def test_the_head_of_a_subset_keeps_the_proportions_of_its_weights():
    head = WeightedGeometricMean([0.2, 0.7, 0.1, 0.0])
    assert subset_head(head, [0, 2]).get_config()["weights"] == pytest.approx([2 / 3, 1 / 3])
    assert subset_head(head, [3]).get_config()["weights"] == [1.0]
    assert subset_head(head, range(4)) is head
    mean = GeometricMean()
    assert subset_head(mean, [0, 2]) is mean
