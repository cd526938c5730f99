"""Is the committee its members, combined?"""

import keras
import numpy as np
import pytest

from keras_committee.layers import BatchNormalization, GeometricMean, MajorityVote, WeightedGeometricMean
from keras_committee.models import Ensemble, wide_resnet

SHAPE = (8, 8, 3)


def images(examples=5):
    return np.random.default_rng(4).integers(0, 256, (examples, *SHAPE)).astype("float32")


def linear(classes=4, name="same", shape=SHAPE):
    """A member whose layers carry the same names in every member."""
    image = keras.Input(shape, name="image")
    x = keras.layers.Rescaling(1 / 255, name="rescale")(image)
    x = keras.layers.Flatten(name="flatten")(x)
    logits = keras.layers.Dense(classes, kernel_initializer="he_normal", name="logits")(x)
    return keras.Model(image, logits, name=name)


def mixed_members():
    """A functional model, a Sequential one with batch normalisation, and one with another model inside."""
    norm, pool = BatchNormalization(), keras.layers.GlobalAveragePooling2D()
    sequential = keras.Sequential([keras.Input(SHAPE), norm, pool, keras.layers.Dense(4)], name="same")
    image = keras.Input(SHAPE, name="image")
    return [linear(), sequential, keras.Model(image, linear(name="inner")(image), name="same")]


def member_probabilities(members):
    logits = np.stack([m.predict(images(), verbose=0) for m in members], 1).astype("float64")
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_votes_are_the_members_and_probabilities_their_geometric_mean():
    members = mixed_members()
    out = Ensemble(members).predict(images(), verbose=0)
    votes = member_probabilities(members)
    np.testing.assert_allclose(out["votes"], votes, rtol=1e-4, atol=1e-7)
    root = votes.prod(1) ** (1 / 3)
    np.testing.assert_allclose(out["probabilities"], root / root.sum(-1, keepdims=True), rtol=1e-4, atol=1e-7)


def test_any_head_combines_the_members():
    members = [linear(), linear(), linear()]
    committee = Ensemble(members, WeightedGeometricMean((0.2, 0.7, 0.1)))
    product = (member_probabilities(members) ** np.array([0.2, 0.7, 0.1])[:, None]).prod(1)
    out = committee.predict(images(), verbose=0)["probabilities"]
    np.testing.assert_allclose(out, product / product.sum(-1, keepdims=True), rtol=1e-4)
    assert isinstance(committee.head, WeightedGeometricMean)


def test_members_of_the_same_name_stay_as_they_are():
    members = [linear(), linear(), linear()]
    committee = Ensemble(members, name="committee")
    assert [m.name for m in members] == ["same"] * 3
    assert [a is b for a, b in zip(committee.members, members, strict=True)] == [True] * 3
    assert len(committee.weights) == 6


def test_the_graph_is_named():
    committee = Ensemble([linear(), linear()])
    assert [tensor.name for tensor in committee.inputs] == ["image"]
    shapes = committee.compute_output_shape((None, *SHAPE))
    assert shapes == {"probabilities": (None, 4), "votes": (None, 2, 4)}
    assert isinstance(committee.head, GeometricMean)
    assert [layer.name for layer in committee.layers if isinstance(layer, keras.Model)] == ["member_00", "member_01"]


def test_ten_members_and_more_stay_in_order():
    members = [linear() for _ in range(12)]
    assert [a is b for a, b in zip(Ensemble(members).members, members, strict=True)] == [True] * 12


@pytest.mark.parametrize("head", [None, MajorityVote(), WeightedGeometricMean((0.2, 0.7, 0.1))], ids=str)
def test_a_saved_committee_answers_as_before(head, tmp_path):
    committee = Ensemble(mixed_members(), head, name="committee")
    committee.save(tmp_path / "committee.keras")
    again = keras.saving.load_model(tmp_path / "committee.keras")
    before, after = (model.predict(images(), verbose=0) for model in (committee, again))
    assert max(np.abs(before[key] - after[key]).max() for key in ("probabilities", "votes")) == 0
    assert (type(again), again.name, type(again.head)) == (Ensemble, "committee", type(committee.head))
    assert [type(m).__name__ for m in again.members] == ["Functional", "Sequential", "Functional"]


def test_the_same_model_may_sit_twice(tmp_path):
    member = linear()
    committee = Ensemble([member, linear(), member])
    out = committee.predict(images(), verbose=0)
    np.testing.assert_array_equal(out["votes"][:, 0], out["votes"][:, 2])
    committee.save(tmp_path / "committee.keras")
    again = keras.saving.load_model(tmp_path / "committee.keras")
    assert again.members[0] is again.members[2]
    assert np.abs(again.predict(images(), verbose=0)["votes"] - out["votes"]).max() == 0


def test_config_round_trip():
    committee = Ensemble([linear(), linear(4, "other")], MajorityVote(name="head"), name="committee")
    again = Ensemble.from_config(committee.get_config())
    assert again.get_config() == committee.get_config()
    assert [member.name for member in again.members] == ["same", "other"]
    assert keras.saving.get_registered_name(Ensemble) == "keras_committee>Ensemble"


def test_a_committee_answers_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    out = Ensemble([linear(), linear()])(images())  # these members' logits are bfloat16
    assert {keras.backend.standardize_dtype(value.dtype) for value in out.values()} == {"float32"}
    np.testing.assert_allclose(keras.ops.convert_to_numpy(out["probabilities"]).sum(-1), 1.0, rtol=1e-5)


def test_no_members_are_refused():
    with pytest.raises(ValueError, match=r"at least one model\. Received: none"):
        Ensemble([])


@pytest.mark.parametrize(
    ("other", "row"),
    [
        (lambda: linear(5, "other"), "1       other  8x8x3  5"),
        (lambda: linear(4, "big", (9, 8, 3)), "1       big   9x8x3  4"),
    ],
)
def test_C01_C03_members_that_do_not_fit_are_shown_as_a_table(other, row):
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
def test_what_cannot_be_a_member_is_named(member, message):
    with pytest.raises(ValueError, match=message):
        Ensemble([linear(), member()])


def test_C04_members_that_normalise_differently_answer_as_they_do_alone():
    members = [wide_resnet(10, 1, classes=5, mean=mean, std=std) for mean, std in ((0.0, 1.0), (120.0, 61.0))]
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype("float32")
    votes = Ensemble(members).predict(images, verbose=0)["votes"]
    for place, member in enumerate(members):
        alone = keras.ops.convert_to_numpy(keras.ops.softmax(member.predict(images, verbose=0)))
        np.testing.assert_allclose(votes[:, place], alone, atol=1e-5)
