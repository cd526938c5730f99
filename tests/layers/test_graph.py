"""A TensorFlow graph as a layer: its outputs, its cost, and the operations that it refuses."""

import base64

import keras
import numpy as np
import pytest

from keras_committee import flops
from keras_committee.layers import TensorFlowGraph
from keras_committee.layers import graph as graph_module

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it runs on TensorFlow only")


def encoded(build):
    """The graph that `build` makes, in base64."""
    with tf.Graph().as_default() as graph:
        build()
    return base64.b64encode(graph.as_graph_def().SerializeToString()).decode()


def linear():
    image = tf.compat.v1.placeholder(tf.float32, (None, 2, 2, 1), name="image_in")
    kernel = tf.compat.v1.placeholder(tf.float32, (4, 3), name="kernel")
    tf.matmul(tf.reshape(image, (-1, 4)), kernel, name="rows")


def layer_of(build, **changes):
    arguments = {"image_name": "image_in", "output_name": "rows:0", "weight_list": [("kernel", (4, 3), True)]}
    return TensorFlowGraph(**{"graph": encoded(build), "classes": 3, **arguments, **changes})


def linear_model():
    image = keras.Input((2, 2, 1))
    layer = layer_of(linear)
    model = keras.Model(image, layer(image))
    layer.set_weights([np.arange(12, dtype="float32").reshape(4, 3)])
    return model


def test_it_computes_the_graph_and_is_restored_from_its_file(tmp_path):
    model = linear_model()
    images = np.random.default_rng(2).normal(size=(5, 2, 2, 1)).astype("float32")
    expected = images.reshape(5, 4) @ np.arange(12).reshape(4, 3)
    np.testing.assert_allclose(model(images), expected, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), expected, rtol=1e-5)


def test_its_products_count_and_its_weights_are_frozen():
    model = linear_model()
    assert flops.multiply_adds(model) == 4 * 3
    assert flops.parameters(model) == 12
    assert model.trainable_variables == []


def reads_a_file():
    image = tf.compat.v1.placeholder(tf.float32, (None, 2, 2, 1), name="image_in")
    secret = tf.strings.length(tf.io.read_file("/etc/hostname"))
    tf.add(tf.reshape(image, (-1, 4)), tf.cast(secret, tf.float32), name="rows")


def reads_a_file_in_a_function():
    image = tf.compat.v1.placeholder(tf.float32, (None, 2, 2, 1), name="image_in")
    inner = tf.function(lambda x: x + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32))
    tf.identity(inner(tf.reshape(image, (-1, 4))), name="rows")


@pytest.mark.parametrize(
    ("build", "named"), [(reads_a_file, "ReadFile"), (reads_a_file_in_a_function, "PartitionedCall")]
)
def test_a_graph_with_other_operations_is_not_run(build, named):
    with pytest.raises(ValueError, match=rf"not allowed in a network: .*{named}.*It was not run"):
        layer_of(build, weight_list=[], classes=4)


def test_D20_a_file_with_such_a_graph_is_not_loaded(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        operations = {*graph_module.ALLOWED_OPERATIONS, "ReadFile", "StringLength"}
        patched.setattr(graph_module, "ALLOWED_OPERATIONS", operations)
        image = keras.Input((2, 2, 1))
        graph = layer_of(reads_a_file, weight_list=[], classes=4)
        keras.Model(image, graph(image)).save(tmp_path / "evil.keras")
    with pytest.raises((ValueError, TypeError), match="ReadFile"):
        keras.saving.load_model(tmp_path / "evil.keras", safe_mode=True)


def test_a_damaged_graph_is_refused():
    with pytest.raises(ValueError, match="The graph of 'broken' is damaged"):
        layer_of(linear, graph="bm8gZ3JhcGg=", name="broken")


def without_a_shape():
    image = tf.compat.v1.placeholder(tf.float32, (None, 3))
    tf.matmul(image, tf.zeros((3, 4)), name="rows")


def with_an_ellipsis():
    tf.einsum("...j,jk->...k", tf.zeros((2, 3)), tf.zeros((3, 4)), name="rows")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (without_a_shape, r"Cannot count multiply-adds of 'rows' \(MatMul\): its shapes are unknown"),
        (with_an_ellipsis, "Cannot count multiply-adds of .*: an Einsum with an ellipsis"),
    ],
)
def test_an_operation_of_unknown_cost_is_refused(build, message):
    with tf.Graph().as_default() as graph:
        build()
    with pytest.raises(ValueError, match=message):
        sum(graph_module.operation_multiply_adds(operation) for operation in graph.get_operations())


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: tf.nn.conv2d(tf.zeros((1, 8, 6, 3)), tf.zeros((3, 3, 3, 5)), 2, "SAME"), 4 * 3 * 5 * 27),
        (lambda: tf.nn.depthwise_conv2d(tf.zeros((1, 8, 6, 3)), tf.zeros((3, 3, 3, 2)), (1,) * 4, "SAME"), 48 * 6 * 9),
        (lambda: tf.nn.conv2d_transpose(tf.zeros((1, 4, 3, 5)), tf.zeros((3, 3, 2, 5)), (1, 8, 6, 2), 2), 12 * 5 * 18),
        (lambda: tf.matmul(tf.zeros((2, 7, 3)), tf.zeros((2, 3, 4))), 2 * 7 * 3 * 4),
        (lambda: tf.matmul(tf.zeros((3, 7)), tf.zeros((3, 4)), transpose_a=True), 7 * 3 * 4),
        (lambda: tf.einsum("bij,jk->bik", tf.zeros((2, 7, 3)), tf.zeros((3, 4))), 2 * 7 * 3 * 4),
        (lambda: tf.nn.relu(tf.zeros((2, 7))), 0),
    ],
)
def test_operations_cost_the_products_of_their_loops(build, expected):
    with tf.Graph().as_default() as graph:
        build()
    assert sum(graph_module.operation_multiply_adds(operation) for operation in graph.get_operations()) == expected
