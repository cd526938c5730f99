"""Ensemble: its members, combined by a head."""

import keras
import numpy as np
import pytest

from keras_committee.layers import BatchNormalization, GeometricMean, MajorityVote, WeightedGeometricMean
from keras_committee.models import Ensemble, wide_resnet

SHAPE = (8, 8, 3)


def images(examples=5):
    return np.random.default_rng(4).integers(0, 256, (examples, *SHAPE)).astype("float32")


def linear(classes=4, name="same", shape=SHAPE):
    """A member whose layers have the same names as those of every other."""
    image = keras.Input(shape, name="image")
    x = keras.layers.Rescaling(1 / 255, name="rescale")(image)
    x = keras.layers.Flatten(name="flatten")(x)
    logits = keras.layers.Dense(classes, kernel_initializer="he_normal", name="logits")(x)
    return keras.Model(image, logits, name=name)


def mixed_members():
    """A functional model, a Sequential one with batch normalization, and one with a nested model."""
    norm, pool = BatchNormalization(), keras.layers.GlobalAveragePooling2D()
    sequential = keras.Sequential([keras.Input(SHAPE), norm, pool, keras.layers.Dense(4)], name="same")
    image = keras.Input(SHAPE, name="image")
    return [linear(), sequential, keras.Model(image, linear(name="inner")(image), name="same")]


def member_probabilities(members):
    logits = np.stack([m.predict(images(), verbose=0) for m in members], 1).astype("float64")
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_a_member_with_logits_of_minus_infinity_only_is_uniform():
    sure, unsure = linear(), linear()
    unsure = keras.Model(unsure.inputs, unsure.outputs[0] - np.inf)
    out = Ensemble([sure, unsure]).predict(images(), verbose=0)
    np.testing.assert_array_equal(out["member_probabilities"][:, 1], np.full((5, 4), 0.25))
    powers = np.sqrt(member_probabilities([sure])[:, 0])
    np.testing.assert_allclose(out["probabilities"], powers / powers.sum(-1, keepdims=True), rtol=1e-4, atol=1e-7)


def test_the_probabilities_are_the_geometric_mean_of_the_members():
    members = mixed_members()
    out = Ensemble(members).predict(images(), verbose=0)
    expected = member_probabilities(members)
    np.testing.assert_allclose(out["member_probabilities"], expected, rtol=1e-4, atol=1e-7)
    root = expected.prod(1) ** (1 / 3)
    np.testing.assert_allclose(out["probabilities"], root / root.sum(-1, keepdims=True), rtol=1e-4, atol=1e-7)


def test_any_head_combines_the_members():
    members = [linear(), linear(), linear()]
    committee = Ensemble(members, WeightedGeometricMean((0.2, 0.7, 0.1)))
    product = (member_probabilities(members) ** np.array([0.2, 0.7, 0.1])[:, None]).prod(1)
    out = committee.predict(images(), verbose=0)["probabilities"]
    np.testing.assert_allclose(out, product / product.sum(-1, keepdims=True), rtol=1e-4)
    assert isinstance(committee.head, WeightedGeometricMean)


def test_members_of_the_same_name_are_not_changed():
    members = [linear(), linear(), linear()]
    committee = Ensemble(members, name="committee")
    assert [m.name for m in members] == ["same"] * 3
    assert [a is b for a, b in zip(committee.members, members, strict=True)] == [True] * 3
    assert len(committee.weights) == 6


def test_inputs_outputs_and_members_are_named():
    committee = Ensemble([linear(), linear()])
    assert [tensor.name for tensor in committee.inputs] == ["image"]
    shapes = committee.compute_output_shape((None, *SHAPE))
    assert shapes == {"probabilities": (None, 4), "member_probabilities": (None, 2, 4)}
    assert isinstance(committee.head, GeometricMean)
    assert [layer.name for layer in committee.layers if isinstance(layer, keras.Model)] == ["member_00", "member_01"]


def test_ten_members_and_more_stay_in_order():
    members = [linear() for _ in range(12)]
    assert [a is b for a, b in zip(Ensemble(members).members, members, strict=True)] == [True] * 12


@pytest.mark.parametrize("head", [None, MajorityVote(), WeightedGeometricMean((0.2, 0.7, 0.1))], ids=str)
def test_a_saved_committee_predicts_as_before(head, tmp_path):
    committee = Ensemble(mixed_members(), head, name="committee")
    committee.save(tmp_path / "committee.keras")
    loaded = keras.saving.load_model(tmp_path / "committee.keras")
    before, after = (model.predict(images(), verbose=0) for model in (committee, loaded))
    assert max(np.abs(before[key] - after[key]).max() for key in before) == 0
    assert (type(loaded), loaded.name, type(loaded.head)) == (Ensemble, "committee", type(committee.head))
    assert [type(m).__name__ for m in loaded.members] == ["Functional", "Sequential", "Functional"]


def test_a_member_may_appear_twice(tmp_path):
    member = linear()
    committee = Ensemble([member, linear(), member])
    out = committee.predict(images(), verbose=0)
    np.testing.assert_array_equal(out["member_probabilities"][:, 0], out["member_probabilities"][:, 2])
    committee.save(tmp_path / "committee.keras")
    loaded = keras.saving.load_model(tmp_path / "committee.keras")
    assert loaded.members[0] is loaded.members[2]
    restored = loaded.predict(images(), verbose=0)["member_probabilities"]
    np.testing.assert_array_equal(restored, out["member_probabilities"])


def test_config_round_trip():
    committee = Ensemble([linear(), linear(4, "other")], MajorityVote(name="head"), name="committee")
    loaded = Ensemble.from_config(committee.get_config())
    assert loaded.get_config() == committee.get_config()
    assert [member.name for member in loaded.members] == ["same", "other"]


def test_a_committee_returns_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    out = Ensemble([linear(), linear()])(images())  # the logits of these members are bfloat16
    assert {keras.backend.standardize_dtype(value.dtype) for value in out.values()} == {"float32"}
    np.testing.assert_allclose(keras.ops.convert_to_numpy(out["probabilities"]).sum(-1), 1.0, rtol=1e-5)


def test_a_committee_without_members_is_refused():
    with pytest.raises(ValueError, match=r"at least one model\. Received: none"):
        Ensemble([])


@pytest.mark.parametrize(
    ("other", "row"),
    [
        (lambda: linear(5, "other"), "1       other  8x8x3  5"),
        (lambda: linear(4, "big", (9, 8, 3)), "1       big   9x8x3  4"),
    ],
)
def test_C01_C03_members_that_differ_are_listed_in_a_table(other, row):
    with pytest.raises(
        ValueError, match=rf"one image shape and one number of classes\. Received:\n  member .*\n.*\n  {row}"
    ):
        Ensemble([linear(), other()])


def two_inputs():
    a, b = keras.Input(SHAPE), keras.Input(SHAPE)
    return keras.Model([a, b], keras.layers.Dense(4)(keras.layers.Flatten()(keras.layers.Add()([a, b]))))


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (two_inputs, r"members\[1\] \('functional.*'\) must have one input and one output\. Received: 2 and 1"),
        (
            lambda: keras.Sequential([keras.Input(SHAPE), keras.layers.Dense(4)]),
            r"logits \(batch, classes\)\. Received: shape",
        ),
        (
            lambda: keras.Sequential([keras.layers.Dense(4)], name="unbuilt"),
            r"'unbuilt'\) must be a functional or a built",
        ),
        (lambda: "a.keras", r"members\[1\] \('a\.keras'\) must be a functional"),
    ],
)
def test_a_model_that_cannot_be_a_member_is_named(member, message):
    with pytest.raises(ValueError, match=message):
        Ensemble([linear(), member()])


def test_C04_members_with_different_normalization_predict_as_they_do_alone():
    members = [wide_resnet(10, 1, classes=5, mean=mean, std=std) for mean, std in ((0.0, 1.0), (120.0, 61.0))]
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype("float32")
    predictions = Ensemble(members).predict(images, verbose=0)["member_probabilities"]
    for index, member in enumerate(members):
        alone = keras.ops.convert_to_numpy(keras.ops.softmax(member.predict(images, verbose=0)))
        np.testing.assert_allclose(predictions[:, index], alone, atol=1e-5)
