"""The lazy cascade equals the dense definition, and runs members only for the images that need them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from committees import CLASSES, SHAPE, choose, dense

from keras_committee import aggregation
from keras_committee.export.committee_graph import ServingCommittee, build_signatures, mutual_information
from keras_committee.export.inference_model import InferenceModel
from keras_committee.selection import Promise, SetRule

MEMBERS = 4


def linear(seed):
    keras.utils.set_random_seed(seed)
    image = keras.Input(SHAPE, name="image")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 90, offset=-1.3)(image))
    return keras.Model(image, keras.layers.Dense(len(CLASSES), kernel_initializer="glorot_normal")(x))


@pytest.fixture(scope="module")
def networks():
    return [InferenceModel(linear(seed), f"member_{seed}") for seed in range(MEMBERS)]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).uniform(0, 255, (40, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def logits(networks, images):
    return np.stack([network(tf.constant(images)).numpy() for network in networks], axis=1)


def assert_like(outputs, expected):
    for name in ("members_used", "class_id"):
        np.testing.assert_array_equal(outputs[name], expected[name])
    for name in ("probabilities", "confidence"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=2e-6)


@pytest.mark.parametrize("head", ["geometric_mean", "arithmetic_mean", "weighted_geometric_mean", "majority_vote"])
def test_every_head_combines_logits_with_temperatures_as_defined(networks, images, logits, head):
    weights = (0.1, 0.2, 0.4, 0.3) if head == "weighted_geometric_mean" else None
    selection = choose(MEMBERS, head=head, temperatures=[0.7, 1.0, 2.2, 1.3], weights=weights)
    assert_like(ServingCommittee(networks, selection, SHAPE).predict(images), dense(logits, selection))


def find_thresholds(kind, logits, temperatures):
    """Return thresholds that some images reach: quantiles of the confidence of the first 1, 2 and 3 members."""
    parts = [choose(n, confidence=kind, temperatures=temperatures[:n]) for n in (1, 2, 3)]
    return [np.quantile(dense(logits[:, : len(p.members)], p)["confidence"], 0.6) for p in parts]


@pytest.mark.parametrize("kind", ["max_probability", "margin", "entropy", "agreement"])
def test_a_cascade_of_four_stages_equals_the_dense_definition(networks, images, logits, kind):
    temperatures = [0.7, 1.0, 2.2, 1.3]
    # A first member always agrees with itself.
    thresholds = [1.1, 0.9, 0.6] if kind == "agreement" else find_thresholds(kind, logits, temperatures)
    selection = choose(MEMBERS, confidence=kind, thresholds=thresholds, temperatures=temperatures)
    expected = dense(logits, selection)
    assert len(set(expected["members_used"])) >= 3  # several stages stop
    assert_like(ServingCommittee(networks, selection, SHAPE).predict(images), expected)


def test_a_cascade_with_windows_runs_later_members_inside_them_only(networks, images, logits):
    temperatures = [0.7, 1.0, 2.2, 1.3]
    thresholds = find_thresholds("max_probability", logits, temperatures)
    first = dense(logits[:, :1], choose(1, temperatures=temperatures[:1]))["confidence"]
    lower = float(np.quantile(first, 0.3))
    selection = choose(4, thresholds=thresholds, temperatures=temperatures, lower_thresholds=[lower, None, None])
    expected = dense(logits, selection)
    assert set(expected["members_used"][first < lower]) == {1}
    assert len(set(expected["members_used"])) >= 3
    assert_like(ServingCommittee(networks, selection, SHAPE).predict(images), expected)


@pytest.mark.parametrize(("threshold", "used"), [(0.0, 1), (1.1, MEMBERS)])
def test_a_cascade_that_stops_at_once_or_never_gives_one_committee(networks, images, logits, threshold, used):
    selection = choose(MEMBERS, thresholds=[threshold] * 3)
    outputs = ServingCommittee(networks, selection, SHAPE).predict(images)
    assert set(outputs["members_used"].numpy()) == {used}
    assert_like(outputs, dense(logits, selection))


@pytest.mark.parametrize(("method", "thresholds"), [("lac", (0.3,)), ("aps", (0.4, 0.5, 0.2)), ("raps", (0.35,))])
def test_a_committee_has_the_outputs_of_its_promise_in_every_signature(networks, images, logits, method, thresholds):
    rule = SetRule(coverage=0.9, method=method, thresholds=thresholds, penalty=0.1, free_ranks=1)
    promise = Promise(split="validation", examples=9, chosen_on=9, sets=rule)
    selection = choose(MEMBERS, confidence="margin", promise=promise)
    expected = aggregation.selected_outputs(selection, logits)
    committee = ServingCommittee(networks, selection, SHAPE)
    for outputs in (committee.predict(images), committee.predict_all(images)):
        np.testing.assert_array_equal(outputs["prediction_set"], expected["prediction_set"])
        np.testing.assert_array_equal(outputs["set_size"], expected["set_size"])
        assert "accepted" not in outputs
    assert len(set(expected["set_size"])) > 1


def test_later_members_run_for_uncertain_images_only(networks, images, logits):
    seen = []

    class Watched:
        def __init__(self, network):
            self._network = network
            self.variables = network.variables

        def __call__(self, image):
            tf.py_function(lambda rows: seen.append(int(rows)), [tf.shape(image)[0]], [])
            return self._network(image)

    selection = choose(2, thresholds=[0.7])
    committee = ServingCommittee([Watched(network) for network in networks[:2]], selection, SHAPE)
    used = committee.predict(images)["members_used"].numpy()
    assert seen == [40, int((used == 2).sum())]
    assert 0 < seen[1] < 40


def test_each_image_alone_has_the_outputs_of_the_batch(networks, images, logits):
    selection = choose(MEMBERS, thresholds=find_thresholds("max_probability", logits, [1.0] * MEMBERS))
    committee = ServingCommittee(networks, selection, SHAPE)
    expected = dense(logits, selection)
    rows = [int(np.flatnonzero(expected["members_used"] == used)[0]) for used in sorted(set(expected["members_used"]))]
    assert len(rows) >= 3  # images that stop at different stages
    for row in rows:
        assert_like(committee.predict(images[[row]]), {name: value[[row]] for name, value in expected.items()})


@pytest.mark.parametrize("thresholds", [None, [0.7, 0.75, 0.8]])
def test_an_empty_batch_has_empty_outputs(networks, thresholds):
    outputs = ServingCommittee(networks, choose(MEMBERS, thresholds=thresholds), SHAPE).predict(
        np.zeros((0, *SHAPE), "float32")
    )
    assert {name: value.shape[0] for name, value in outputs.items()} == dict.fromkeys(outputs, 0)
    assert outputs["probabilities"].shape == (0, len(CLASSES))


def test_a_repeated_member_counts_twice_and_runs_once(networks, images, logits):
    selection = choose(3, temperatures=[1.0, 1.0, 0.5])
    committee = ServingCommittee([networks[0], networks[1], networks[0]], selection, SHAPE)
    assert len(committee.variables) == 2
    assert_like(committee.predict(images), dense(logits[:, [0, 1, 0]], selection))


def test_pixels_that_are_not_finite_are_rejected_and_others_are_clipped(networks, images, logits):
    committee = ServingCommittee(networks, choose(MEMBERS), SHAPE)
    wild = images.copy()
    wild[0, 0, 0, 0] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="image must be finite"):
        committee.predict(wild)
    wild[0] = np.float32(3e38)
    assert np.isfinite(committee.predict(wild)["probabilities"]).all()
    np.testing.assert_allclose(
        committee.predict(wild)["probabilities"][1:], committee.predict(images)["probabilities"][1:]
    )


@pytest.mark.parametrize("head", ["geometric_mean", "majority_vote"])
def test_one_member_alone_has_the_outputs_of_the_definition(networks, images, logits, head):
    selection = choose(1, head=head, temperatures=[0.7])
    committee = ServingCommittee(networks[:1], selection, SHAPE)
    outputs = committee.predict(images)
    assert_like(outputs, dense(logits[:, :1], selection))
    np.testing.assert_allclose(outputs["mutual_information"], 0, atol=2e-7)
    sums_over_members = graph_ops(build_signatures(committee)["serving_default"]) & {"Sum", "Mean"}
    assert bool(sums_over_members) == (head == "majority_vote")


def test_mutual_information_is_the_entropy_of_the_mean_minus_the_mean_entropy():
    probabilities = np.array([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]], np.float32)
    weights = np.array([0.25, 0.75], np.float32)

    def entropy(p):
        return -sum(value * np.log(value) for value in p)

    expected = [
        entropy(np.average(rows, axis=0, weights=weights)) - np.dot([entropy(p) for p in rows], weights)
        for rows in probabilities
    ]
    np.testing.assert_allclose(mutual_information(tf.math.log(probabilities), weights), expected, atol=1e-6)
    assert expected[0] > 0.1
    without_any = np.array([[[0.0, -np.inf, -np.inf], [-np.inf] * 3]], np.float32)  # certain, and uniform
    mean = np.array([0.25 + 0.25, 0.25, 0.25])
    np.testing.assert_allclose(mutual_information(without_any, weights), [entropy(mean) - 0.75 * np.log(3)], rtol=1e-5)


def graph_ops(function):
    """Return the types of the operations of a traced function and of the functions that it calls."""
    graph = function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for body in graph.library.function for node in body.node_def)]
    return {node.op for node in nodes}


@pytest.mark.parametrize("kind", ["max_probability", "margin", "entropy", "agreement"])
@pytest.mark.parametrize("head", ["geometric_mean", "arithmetic_mean", "weighted_geometric_mean", "majority_vote"])
def test_the_signatures_of_pixels_use_no_operation_that_onnx_and_tensorflow_lite_lack(networks, head, kind):
    weights = (0.2, 0.3, 0.5) if head == "weighted_geometric_mean" else None
    selection = choose(3, head=head, confidence=kind, thresholds=[0.6, 0.5], weights=weights)
    functions = build_signatures(ServingCommittee(networks[:3], selection, SHAPE))
    ops = graph_ops(functions["serving_default"]) | graph_ops(functions["predict_members"])
    assert "TopKV2" in ops or kind != "margin"
    assert ops & {"Xlogy", "BitwiseAnd", "Bitcast", "Unpack"} == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "kind", "first_threshold"), [("geometric_mean", "entropy", 0.6), ("majority_vote", "margin", 1.1)]
)
def test_a_cascade_converted_to_tensorflow_lite_gives_the_same_outputs(
    networks, images, tmp_path, head, kind, first_threshold
):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    thresholds = [first_threshold, 0.5]  # the margin of one vote is always 1
    selection = choose(3, head=head, confidence=kind, thresholds=thresholds, temperatures=[0.7, 1.0, 2.2])
    committee = ServingCommittee(networks[:3], selection, SHAPE)
    root = tf.Module()
    root.variables_to_save = [list(variables.values()) for variables in committee.variables]
    tf.saved_model.save(root, str(tmp_path), signatures=build_signatures(committee))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path), signature_keys=["serving_default"])
    runner = interpreter.Interpreter(model_content=converter.convert()).get_signature_runner("serving_default")
    outputs, expected = runner(image=images), committee.predict(images)
    assert set(outputs) == set(expected) - {"member_probabilities"}
    assert len(set(outputs["members_used"])) >= 2
    for name in ("class_id", "label", "members_used"):
        np.testing.assert_array_equal(outputs[name], expected[name])
    for name in ("probabilities", "confidence", "mutual_information"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-6)


def test_the_mutual_information_counts_classes_of_probability_0_as_0():
    logits = np.array([[[0.0, -np.inf, 2.0], [0.0, -np.inf, -1.0]]], np.float32)
    weights = np.array([0.3, 0.7], np.float32)
    probabilities = np.exp([[0.0, 2.0], [0.0, -1.0]])
    probabilities /= probabilities.sum(-1, keepdims=True)
    mean = weights @ probabilities
    expected = -(mean * np.log(mean)).sum() + weights @ (probabilities * np.log(probabilities)).sum(-1)
    np.testing.assert_allclose(mutual_information(logits, weights), [expected], rtol=1e-5)
