"""The contract of all registered classes: names, arguments, shapes, dtypes and files.

Registered names are part of the file format."""

import base64
import inspect
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_committee import Ensemble, layers, models, schedules

pytestmark = pytest.mark.jax
PACKAGE = Path(__file__).parents[2] / "keras_committee"
REGISTERED = re.compile(r'^@keras\.saving\.register_keras_serializable\(package="keras_committee"\)\nclass (\w+)', re.M)


def member(name):
    image = keras.Input((4, 4, 1))
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image)), name=name)


def graph():
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, (None, 2, 2, 1), name="image_in")
        kernel = tf.compat.v1.placeholder(tf.float32, (4, 3), name="kernel")
        tf.matmul(tf.reshape(image, (-1, 4)), kernel, name="rows")
    encoded = base64.b64encode(graph.as_graph_def().SerializeToString()).decode()
    return layers.TensorFlowGraph(encoded, "image_in", "rows:0", [("kernel", (4, 3), True)], classes=3)


OPTIONS = {"temperatures": (0.7, 1.2), "image_size": (4, 4)}
LAYERS = {  # a layer, and the shape of one example
    "ArithmeticMean": (layers.ArithmeticMean, (3, 4)),
    "BatchNormalization": (lambda: layers.BatchNormalization(synchronized=False, momentum=0.7), (3, 3, 2)),
    "GeometricMean": (layers.GeometricMean, (3, 4)),
    "MajorityVote": (layers.MajorityVote, (3, 4)),
    "PatchWhitening": (lambda: layers.PatchWhitening(3, 2, 2, epsilon=0.1), (7, 8, 2)),
    "QuickGELU": (layers.QuickGELU, (4,)),
    "Resize": (lambda: layers.Resize(2, 3), (5, 4, 1)),
    "StochasticDepth": (lambda: layers.StochasticDepth(keras.layers.Dense(4), survival=0.7, mode="sample"), (4,)),
    "WeightedGeometricMean": (lambda: layers.WeightedGeometricMean((0.2, 0.7, 0.1)), (3, 4)),
}
LAYERS |= {"TensorFlowGraph": (graph, (2, 2, 1))} if keras.backend.backend() == "tensorflow" else {}
OTHERS = {
    "Cascade": lambda: models.Cascade([member("one"), member("two")], (0.7,), name="both", **OPTIONS),
    "Ensemble": lambda: Ensemble([member("one"), member("two")], name="both", **OPTIONS),
    "PartialIdentity": lambda: layers.PartialIdentity("he_normal"),
    "PiecewiseLinear": lambda: schedules.triangular(20, 0.7),
    "ScaledSchedule": lambda: schedules.ScaledSchedule(schedules.cosine(20, 0.7), 0.5),
    "SequentialSchedule": lambda: schedules.SequentialSchedule(0.2, 7, schedules.cosine(20, 0.7)),
    "WarmUp": lambda: schedules.WarmUp(7, schedules.cosine(20, 0.7), delay=False),
    "WithInputSize": lambda: models.with_input_size(member("one"), (8, 6)),
}
EXAMPLES = {name: make for name, (make, _) in LAYERS.items()} | OTHERS


every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def batch(shape, examples=5):
    return np.random.default_rng(3).uniform(0.2, 0.7, (examples, *shape)).astype("float32")


def to_json(config):
    # Keras marks objects that a file stores once by an id.
    return re.sub(r'"shared_object_id": \d+', "", json.dumps(config))


def test_every_registered_class_is_tested_here():
    found = [name for path in sorted(PACKAGE.rglob("*.py")) for name in REGISTERED.findall(path.read_text())]
    assert sorted(found) == sorted({*EXAMPLES, "TensorFlowGraph"})


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_argument_is_in_the_config_under_its_own_name_and_is_restored(name):
    example = EXAMPLES[name]()
    config = example.get_config()
    parameters = inspect.signature(type(example).__init__).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    assert names - {"self"} <= set(config)
    restored = type(example).from_config(json.loads(json.dumps(config)))
    assert to_json(restored.get_config()) == to_json(config)
    assert keras.saving.get_registered_name(type(example)) == f"keras_committee>{name}"


@every_layer
def test_the_computed_output_shape_is_that_of_the_graph_and_of_the_outputs(make, shape):
    layer = make()
    assert layer(keras.Input(shape)).shape == layer.compute_output_shape((None, *shape))
    assert tuple(layer(batch(shape)).shape) == layer.compute_output_shape((5, *shape))


@every_layer
def test_under_mixed_precision_weights_stay_float32_and_the_symbolic_dtype_is_right(make, shape):
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = make()
    symbolic = layer(keras.Input(shape, dtype="float32"))
    assert keras.backend.standardize_dtype(layer(batch(shape)).dtype) == symbolic.dtype
    assert {str(weight.dtype) for weight in layer.weights} <= {"float32", "uint32", "int64"}


@pytest.mark.parametrize("name", ["ArithmeticMean", "GeometricMean", "MajorityVote", "Resize", "WeightedGeometricMean"])
def test_layers_that_stay_float32_accept_a_dtype_and_pass_the_layer_test_of_keras(name):
    from keras.src import testing

    make, shape = LAYERS[name]
    layer_class, arguments = type(make()), {**make().get_config(), "dtype": "mixed_bfloat16"}
    assert layer_class(**arguments).compute_dtype == "float32"
    testing.TestCase("run_layer_test").run_layer_test(
        layer_class,
        arguments,
        input_shape=(5, *shape),
        expected_output_shape=make().compute_output_shape((5, *shape)),
        expected_num_trainable_weights=0,
        expected_output_dtype="float32",
        run_training_check=False,
    )


def test_a_file_restores_all_layers_and_their_outputs(tmp_path):
    images = {name: keras.Input(shape, name=name) for name, (_, shape) in LAYERS.items()}
    model = keras.Model(images, {name: make()(images[name]) for name, (make, _) in LAYERS.items()})
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = {name: batch(LAYERS[name][1]) for name in LAYERS}
    assert keras.tree.map_structure(np.array_equal, loaded(inputs), model(inputs)) == dict.fromkeys(LAYERS, True)
