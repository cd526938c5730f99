"""Does the cascade, as a model, answer as its arithmetic on votes does?"""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee.evaluation.cascade import CascadeConfig, MemberPredictions, simulate_cascade
from keras_committee.layers import CONFIDENCE_MEASURES, ArithmeticMean, MajorityVote, WeightedGeometricMean
from keras_committee.models import Cascade, Ensemble, resnet, wide_resnet, with_input_size

SHAPE, EXAMPLES = (6, 6, 3), 30


def images(examples=EXAMPLES, shape=SHAPE):
    return np.random.default_rng(4).integers(0, 256, (examples, *shape)).astype("float32")


def linear(seed, shape=SHAPE, classes=4):
    """A member of weights that are the same on every backend."""
    image = keras.Input(shape, name="image")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 127)(image))
    dense = keras.layers.Dense(classes)
    model = keras.Model(image, dense(x), name="same")
    dense.set_weights([np.random.default_rng(seed).normal(0, 0.1, weight.shape) for weight in dense.weights])
    return model


def members(count=3):
    return [linear(seed) for seed in range(count)]


def answers(model, batch=None):
    return {
        key: keras.ops.convert_to_numpy(value) for key, value in model(images() if batch is None else batch).items()
    }


def ballots(of, head=None, temperatures=(1.0, 1.0, 1.0)):
    logits = np.stack([keras.ops.convert_to_numpy(m(images())) for m in of], axis=1) / np.array(temperatures)[:, None]
    votes = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return MemberPredictions(votes.astype("float32"), np.zeros(EXAMPLES, int), [2.0, 3.0, 7.0][: len(of)], head)


CASES = {
    "probability": ((0.6, 0.45), None, "max_probability", None),
    "margin": ((0.3, 0.2), None, "margin", ArithmeticMean()),
    "entropy, two stages": ((0.4,), (2, 3), "entropy", None),
    "agreement of a vote": ((0.9, 0.6), None, "agreement", MajorityVote()),
    "weights": ((0.6, 0.45), None, "max_probability", WeightedGeometricMean((0.2, 0.7, 0.1))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_model_is_the_arithmetic(case):
    thresholds, stages, kind, head = case
    of, temperatures = members(), (0.7, 1.9, 1.2)
    out = answers(Cascade(of, thresholds, stages, kind, head, temperatures))
    plan = CascadeConfig(order=(0, 1, 2), sizes=stages or (1, 2, 3), thresholds=thresholds, confidence=kind)
    cast = ballots(of, head, temperatures)
    run = simulate_cascade(cast, plan)
    np.testing.assert_array_equal(out["members_used"], run.members_used)
    np.testing.assert_allclose(out["probabilities"], run.probabilities, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["votes"], np.exp(cast.log_probabilities), rtol=1e-4, atol=1e-6)
    sure = [cast.confidences(range(used), kind)[place] for place, used in enumerate(run.members_used)]
    np.testing.assert_allclose(out["confidence"], sure, rtol=1e-4, atol=1e-6)


def test_the_cases_stop_at_different_stages():
    assert set(answers(Cascade(members(), (0.6, 0.45)))["members_used"]) == {1, 2, 3}


def test_a_confidence_that_just_reaches_the_threshold_answers():
    of, all_agree = members(), (1.0, 1.0)  # as one member always does
    plan = CascadeConfig(order=(0, 1, 2), sizes=(1, 2, 3), thresholds=all_agree, confidence="agreement")
    assert set(answers(Cascade(of, all_agree, confidence="agreement"))["members_used"]) == {1}
    assert set(simulate_cascade(ballots(of), plan).members_used) == {1}


@pytest.mark.parametrize("kind", CONFIDENCE_MEASURES)
def test_thresholds_of_zero_are_the_first_member_and_above_one_the_full_committee(kind):
    of = members()
    first, full = (answers(Cascade(of, (t, t), confidence=kind)) for t in (0.0, 1.01))
    alone = keras.ops.softmax(of[0](images()))
    np.testing.assert_allclose(first["probabilities"], alone, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(full["probabilities"], answers(Ensemble(of))["probabilities"], rtol=1e-6, atol=1e-7)
    assert (set(first["members_used"]), set(full["members_used"])) == ({1}, {3})


seeds = st.lists(st.integers(0, 99), min_size=1, max_size=3)


@settings(max_examples=8, deadline=None)
@given(seeds.flatmap(lambda chosen: st.tuples(st.just(chosen), st.permutations(chosen))))
def test_the_order_of_members_does_not_matter_for_a_committee(orders):
    said = [answers(Ensemble([linear(seed) for seed in order]))["probabilities"] for order in orders]
    np.testing.assert_allclose(*said, rtol=1e-5, atol=1e-7)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from([None, ArithmeticMean()]))
def test_a_committee_of_identical_members_is_the_member(seed, count, head):
    member = linear(seed)
    said = answers(Ensemble([member] * count, head))["probabilities"]
    np.testing.assert_allclose(said, keras.ops.softmax(member(images())), rtol=1e-5, atol=1e-7)


def test_a_saved_cascade_answers_as_before(tmp_path):
    cascade = Cascade(members(), (0.6,), (1, 3), "margin", ArithmeticMean(), (0.7, 1.9, 1.2), (7, 9), name="cascade")
    cascade.save(tmp_path / "cascade.keras")
    again = keras.saving.load_model(tmp_path / "cascade.keras")
    before, after = (answers(model, images(shape=(7, 9, 3))) for model in (cascade, again))
    assert max(np.abs(before[key] - after[key]).max() for key in before) == 0
    assert (type(again), again.name, type(again.head)) == (Cascade, "cascade", ArithmeticMean)
    assert again.get_config()["thresholds"] == [0.6]
    assert keras.saving.get_registered_name(Cascade) == "keras_committee>Cascade"


def test_config_round_trip():
    cascade = Cascade(members(), (0.6, 0.7), temperatures=(0.7, 1.9, 1.2), name="cascade")
    again = Cascade.from_config(cascade.get_config())
    assert again.get_config() == cascade.get_config()
    assert [tensor.name for tensor in again.inputs] == ["image"]


def test_members_of_another_size_see_the_image_resized():
    of = [linear(1, (4, 5, 3)), linear(2)]
    small = keras.ops.image.resize(images(), (4, 5), antialias=True)
    for model in (Ensemble(of, image_size="largest"), Cascade(of, (0.5,), image_size="largest")):
        assert model.inputs[0].shape == (None, *SHAPE)
        expected = keras.ops.softmax(of[0](small))
        np.testing.assert_allclose(answers(model)["votes"][:, 0], expected, rtol=1e-4, atol=1e-6)
        assert [member.input_shape[1:3] for member in model.members] == [(4, 5), (6, 6)]
    assert Ensemble(of, image_size=(9, 8)).inputs[0].shape == (None, 9, 8, 3)


@pytest.mark.parametrize("network", [lambda: wide_resnet(10, 1, classes=4, survival=0.5), lambda: resnet(8, classes=4)])
def test_a_network_asked_at_two_resolutions_has_one_set_of_weights(network, tmp_path):
    model = network()
    low = with_input_size(model, (24, 20))
    assert (low.input_shape, low.name) == ((None, 24, 20, 3), f"{model.name}_at_24x20")
    cascade = Cascade([low, model], (0.5,), image_size="largest")
    assert len(cascade.weights) == len(model.weights)
    cascade.save(tmp_path / "cascade.keras")
    again = keras.saving.load_model(tmp_path / "cascade.keras")
    assert len(again.weights) == len(model.weights)
    batch = images(3, (32, 32, 3))
    before, after = answers(cascade, batch), answers(again, batch)
    assert max(np.abs(before[key] - after[key]).max() for key in before) == 0


def test_a_network_for_one_size_only_is_refused():
    with pytest.raises(ValueError, match="'same' cannot take images of 9x9"):
        with_input_size(linear(1), (9, 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": (0.5,)}, r"each of 3 stages but the last\. Received: \[0\.5\]"),
        ({"stages": (1, 2)}, r"at last all 3\. Received: \[1, 2\]"),
        ({"confidence": "luck"}, "Received: 'luck'"),
        ({"temperatures": (1.0, 0.0, 2.0)}, r"one float above 0 for each member\. Received: \(1\.0, 0\.0, 2\.0\)"),
        ({"image_size": "smallest"}, r"None, 'largest' or \(height, width\)\. Received: 'smallest'"),
    ],
)
def test_what_is_no_cascade_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Cascade(**{"members": members(), "thresholds": (0.5, 0.5), **change})
