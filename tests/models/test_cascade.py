"""Cascade: the same results as the NumPy simulation on member predictions."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee.evaluation.cascade import CascadeConfig, MemberPredictions, simulate_cascade
from keras_committee.layers import CONFIDENCE_MEASURES, ArithmeticMean, MajorityVote, WeightedGeometricMean
from keras_committee.models import Cascade, Ensemble, resnet, wide_resnet, with_input_size
from keras_committee.models.cascade import first_confident, is_confident, stage_outputs

SHAPE, EXAMPLES = (6, 6, 3), 30


def images(examples=EXAMPLES, shape=SHAPE):
    return np.random.default_rng(4).integers(0, 256, (examples, *shape)).astype("float32")


def linear(seed, shape=SHAPE, classes=4):
    """A member whose weights are the same on every backend."""
    image = keras.Input(shape, name="image")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 127)(image))
    dense = keras.layers.Dense(classes)
    model = keras.Model(image, dense(x), name="same")
    dense.set_weights([np.random.default_rng(seed).normal(0, 0.1, weight.shape) for weight in dense.weights])
    return model


def members(count=3):
    return [linear(seed) for seed in range(count)]


def outputs(model, batch=None):
    return {
        key: keras.ops.convert_to_numpy(value) for key, value in model(images() if batch is None else batch).items()
    }


def test_a_model_with_windows_is_the_simulation_also_after_saving(tmp_path):
    models = members()
    model = Cascade(models, (0.6, 0.45), lower_thresholds=(0.42, None), temperatures=(0.7, 1.9, 1.2))
    plan = CascadeConfig(order=(0, 1, 2), sizes=(1, 2, 3), thresholds=(0.6, 0.45), lower_thresholds=(0.42, 0.0))
    run = simulate_cascade(predictions(models, temperatures=(0.7, 1.9, 1.2)), plan)
    model.save(tmp_path / "cascade.keras")
    for each in (model, keras.saving.load_model(tmp_path / "cascade.keras")):
        out = outputs(each)
        np.testing.assert_array_equal(out["members_used"], run.members_used)
        np.testing.assert_allclose(out["probabilities"], run.probabilities, rtol=1e-5, atol=1e-6)
    assert ((run.members_used == 1) & (run.confidence < 0.42)).any()
    assert len(set(run.members_used)) > 1
    with pytest.raises(ValueError, match="lower_thresholds must hold None, or a number up to the threshold"):
        Cascade(models, (0.6, 0.45), lower_thresholds=(0.7, None))


def predictions(models, head="geometric_mean", temperatures=(1.0, 1.0, 1.0)):
    logits = (
        np.stack([keras.ops.convert_to_numpy(m(images())) for m in models], axis=1) / np.array(temperatures)[:, None]
    )
    log_probs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype("float32")
    return MemberPredictions(log_probs, np.zeros(EXAMPLES, int), [2.0, 3.0, 7.0][: len(models)], head)


CASES = {
    "probability": ((0.6, 0.45), None, "max_probability", None),
    "margin": ((0.3, 0.2), None, "margin", ArithmeticMean()),
    "entropy, two stages": ((0.4,), (2, 3), "entropy", None),
    "agreement, majority vote": ((0.9, 0.6), None, "agreement", MajorityVote()),
    "weights": ((0.6, 0.45), None, "max_probability", WeightedGeometricMean((0.2, 0.7, 0.1))),
}


@pytest.mark.jax
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_model_is_the_simulation(case):
    thresholds, stages, measure, head = case
    models, temperatures = members(), (0.7, 1.9, 1.2)
    out = outputs(Cascade(models, thresholds, stages, measure, head, temperatures))
    plan = CascadeConfig(order=(0, 1, 2), sizes=stages or (1, 2, 3), thresholds=thresholds, confidence=measure)
    member_predictions = predictions(models, head or "geometric_mean", temperatures)
    run = simulate_cascade(member_predictions, plan)
    np.testing.assert_array_equal(out["members_used"], run.members_used)
    np.testing.assert_allclose(out["probabilities"], run.probabilities, rtol=1e-5, atol=1e-6)
    expected = np.exp(member_predictions.log_probabilities)
    np.testing.assert_allclose(out["member_probabilities"], expected, rtol=1e-4, atol=1e-6)
    confidences = [
        member_predictions.confidences(range(used), measure)[index] for index, used in enumerate(run.members_used)
    ]
    np.testing.assert_allclose(out["confidence"], confidences, rtol=1e-4, atol=1e-6)


def test_the_cases_stop_at_different_stages():
    assert set(outputs(Cascade(members(), (0.6, 0.45)))["members_used"]) == {1, 2, 3}


def test_the_name_of_the_head_may_be_an_automatic_name():
    for name in ("weighted_geometric_mean", "weighted_geometric_mean_1"):
        keras.backend.clear_session()
        head = WeightedGeometricMean((0.2, 0.7, 0.1), name=name)
        assert Cascade(members(), (0.6, 0.45), head=head).head is head


def test_a_confidence_equal_to_the_threshold_stops_the_cascade():
    models, all_agree = members(), (1.0, 1.0)  # a single member always agrees with itself
    plan = CascadeConfig(order=(0, 1, 2), sizes=(1, 2, 3), thresholds=all_agree, confidence="agreement")
    assert set(outputs(Cascade(models, all_agree, confidence="agreement"))["members_used"]) == {1}
    assert set(simulate_cascade(predictions(models), plan).members_used) == {1}


@pytest.mark.parametrize("measure", CONFIDENCE_MEASURES)
def test_thresholds_of_zero_are_the_first_member_and_above_one_the_full_committee(measure):
    models = members()
    first, full = (outputs(Cascade(models, (t, t), confidence=measure)) for t in (0.0, 1.01))
    alone = keras.ops.softmax(models[0](images()))
    np.testing.assert_allclose(first["probabilities"], alone, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(full["probabilities"], outputs(Ensemble(models))["probabilities"], rtol=1e-6, atol=1e-7)
    assert (set(first["members_used"]), set(full["members_used"])) == ({1}, {3})


seeds = st.lists(st.integers(0, 99), min_size=1, max_size=3)


@settings(max_examples=8, deadline=None)
@given(seeds.flatmap(lambda chosen: st.tuples(st.just(chosen), st.permutations(chosen))))
def test_the_order_of_members_does_not_matter_for_a_committee(orders):
    probabilities = [outputs(Ensemble([linear(seed) for seed in order]))["probabilities"] for order in orders]
    np.testing.assert_allclose(*probabilities, rtol=1e-5, atol=1e-7)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from([None, ArithmeticMean()]))
def test_a_committee_of_identical_members_is_the_member(seed, count, head):
    member = linear(seed)
    probabilities = outputs(Ensemble([member] * count, head))["probabilities"]
    np.testing.assert_allclose(probabilities, keras.ops.softmax(member(images())), rtol=1e-5, atol=1e-7)


def test_a_saved_cascade_predicts_as_before(tmp_path):
    cascade = Cascade(members(), (0.6,), (1, 3), "margin", ArithmeticMean(), (0.7, 1.9, 1.2), (7, 9), name="cascade")
    cascade.save(tmp_path / "cascade.keras")
    loaded = keras.saving.load_model(tmp_path / "cascade.keras")
    before, after = (outputs(model, images(shape=(7, 9, 3))) for model in (cascade, loaded))
    assert max(np.abs(before[key] - after[key]).max() for key in before) == 0
    assert (type(loaded), loaded.name, type(loaded.head)) == (Cascade, "cascade", ArithmeticMean)
    assert loaded.get_config()["thresholds"] == [0.6]


def test_config_round_trip():
    cascade = Cascade(members(), (0.6, 0.7), temperatures=(0.7, 1.9, 1.2), name="cascade")
    loaded = Cascade.from_config(cascade.get_config())
    assert loaded.get_config() == cascade.get_config()
    assert [tensor.name for tensor in loaded.inputs] == ["image"]


def test_members_of_another_size_take_the_resized_image():
    models = [linear(1, (4, 5, 3)), linear(2)]
    small = keras.ops.image.resize(images(), (4, 5), antialias=True)
    for model in (Ensemble(models, image_size="largest"), Cascade(models, (0.5,), image_size="largest")):
        assert model.inputs[0].shape == (None, *SHAPE)
        expected = keras.ops.softmax(models[0](small))
        np.testing.assert_allclose(outputs(model)["member_probabilities"][:, 0], expected, rtol=1e-4, atol=1e-6)
        assert [member.input_shape[1:3] for member in model.members] == [(4, 5), (6, 6)]
    assert Ensemble(models, image_size=(9, 8)).inputs[0].shape == (None, 9, 8, 3)


@pytest.mark.parametrize("network", [lambda: wide_resnet(10, 1, classes=4, survival=0.5), lambda: resnet(8, classes=4)])
def test_a_network_at_two_resolutions_has_one_set_of_weights(network, tmp_path):
    model = network()
    low = with_input_size(model, (24, 20))
    assert (low.input_shape, low.name) == ((None, 24, 20, 3), f"{model.name}_at_24x20")
    cascade = Cascade([low, model], (0.5,), image_size="largest")
    assert len(cascade.weights) == len(model.weights)
    cascade.save(tmp_path / "cascade.keras")
    loaded = keras.saving.load_model(tmp_path / "cascade.keras")
    assert len(loaded.weights) == len(model.weights)
    batch = images(3, (32, 32, 3))
    before, after = outputs(cascade, batch), outputs(loaded, batch)
    assert max(np.abs(before[key] - after[key]).max() for key in before) == 0


def test_a_network_for_one_size_only_is_refused():
    with pytest.raises(ValueError, match="'same' cannot take images of 9x9"):
        with_input_size(linear(1), (9, 9))


@pytest.mark.jax
def test_the_stage_rule_selects_the_first_confident_stage():
    logits = np.log([[[0.6, 0.4], [0.1, 0.9]], [[0.9, 0.1], [0.2, 0.8]]]).astype("float32")
    head = WeightedGeometricMean((0.25, 0.75))
    stages = [stage_outputs(logits, size, "max_probability", head) for size in (1, 2)]
    assert keras.ops.convert_to_numpy(is_confident(stages[0], 0.7)).tolist() == [False, True]
    out = {name: keras.ops.convert_to_numpy(value) for name, value in first_confident(stages, [0.7]).items()}
    powers = np.array([0.6**0.25 * 0.1**0.75, 0.4**0.25 * 0.9**0.75])
    np.testing.assert_allclose(out["probabilities"], [powers / powers.sum(), [0.9, 0.1]], rtol=1e-5)
    assert out["members_used"].tolist() == [2, 1]
    assert out["members_used"].dtype == "int32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": (0.5,)}, r"each of the 3 stages except the last\. Received: \[0\.5\]"),
        ({"stages": (1, 2)}, r"to all 3 members\. Received: \[1, 2\]"),
        ({"confidence": "luck"}, "Received: 'luck'"),
        ({"temperatures": (1.0, 0.0, 2.0)}, r"one float above 0 for each member\. Received: \(1\.0, 0\.0, 2\.0\)"),
        ({"image_size": "smallest"}, r"None, 'largest' or \(height, width\)\. Received: 'smallest'"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Cascade(**{"members": members(), "thresholds": (0.5, 0.5), **change})
