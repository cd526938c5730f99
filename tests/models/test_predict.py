"""Predictions: one row for each image, in order."""

import contextlib

import keras
import numpy as np
import pytest

from keras_committee.models import log_probabilities, wide_resnet

tf_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="strategies and XLA on demand are TensorFlow's"
)


def member():
    return wide_resnet(10, 1, classes=4, image_shape=(8, 8, 3), dropout=0.3)


def images(examples=7):
    return np.random.default_rng(4).integers(0, 256, (examples, 8, 8, 3)).astype("uint8")


def expected(model):
    logits = keras.ops.convert_to_numpy(model(images().astype("float32"), training=False)).astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_log_probabilities_of_every_image_in_order_and_a_ragged_tail():
    model = member()
    out = log_probabilities(model, [images()[:3], images()[3:6], images()[6:]])
    assert (out.shape, out.dtype) == ((7, 4), "float32")
    np.testing.assert_allclose(out, expected(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", [tuple, list], ids=["tuple", "list"])
def test_labels_next_to_the_images_are_ignored(wrap):
    model = member()
    batches = (wrap([images()[at : at + 4], np.zeros(4)]) for at in (0, 4))
    np.testing.assert_array_equal(
        log_probabilities(model, batches), log_probabilities(model, [images()[:4], images()[4:]])
    )


def test_huge_logits_stay_finite():
    image = keras.Input((2,), name="image")
    model = keras.Model(image, keras.ops.multiply(image, 1e4))
    np.testing.assert_array_equal(log_probabilities(model, [np.array([[1, 3]], "uint8")]), [[-2e4, 0.0]])


def test_infinite_logits_have_the_log_probabilities_of_the_limit():
    image = keras.Input((3,), name="image")
    largest, infinity = float(np.finfo("float32").max), np.inf
    logits = [
        [-infinity] * 3,
        [0, -infinity, 0],
        [largest, -largest, 0],
        [-largest, -infinity, -largest],
        [0, np.nan, 0],
    ]
    expected = np.log([[1 / 3] * 3, [0.5, 1, 0.5], [1] * 3, [0.5, 1, 0.5], [np.nan] * 3])
    expected[[1, 2, 2, 3], [1, 1, 2, 1]] = -1e30, -1e30, -1e30, -1e30
    out = log_probabilities(keras.Model(image, keras.ops.multiply(image, 1.0)), [np.array(logits, "float32")])
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_a_model_of_another_process_may_have_operations_of_any_name():
    """Automatic names restart in each process, and a loaded model keeps its own."""
    keras.backend.clear_session()
    image = keras.Input((2,), name="image")
    model = keras.Model(image, keras.ops.log_softmax(keras.ops.cast(image, "float32")))
    keras.backend.clear_session()
    out = log_probabilities(model, [np.array([[0.2, 0.7]], "float32")])
    np.testing.assert_allclose(np.exp(out).sum(), 1.0, rtol=1e-6)


def test_the_output_of_a_half_precision_model_is_float32():
    keras.config.set_dtype_policy("bfloat16")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    out = log_probabilities(model, [images()])
    assert out.dtype == "float32"
    np.testing.assert_allclose(np.exp(out).sum(-1), 1.0, rtol=1e-5)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match=r"at least one batch of images\. Received: none"):
        log_probabilities(member(), [])


def test_the_model_and_its_compilation_are_not_changed():
    model = member()
    optimizer = keras.optimizers.SGD(0.3)
    model.compile(optimizer, "mse", jit_compile=True, metrics=["mae"])
    before = model.get_weights()
    log_probabilities(model, [images()])
    assert model.optimizer is optimizer
    assert (model.jit_compile, model.compiled, model.predict_function) == (True, True, None)
    assert all(np.array_equal(new, old) for new, old in zip(model.get_weights(), before, strict=True))


# The tests below need TensorFlow.


@tf_only
def test_a_dataset_of_images_and_labels_is_accepted():
    import tensorflow as tf

    model = member()
    dataset = tf.data.Dataset.from_tensor_slices((images(), np.arange(7))).batch(3)
    np.testing.assert_allclose(log_probabilities(model, dataset), expected(model), rtol=1e-4, atol=1e-5)


@tf_only
def test_xla_is_not_used():
    import tensorflow as tf

    class Python(keras.layers.Layer):
        """Runs Python, which XLA does not support."""

        def call(self, inputs):
            return tf.ensure_shape(tf.numpy_function(lambda x: x, [inputs], tf.float32), (None, 3))

        def compute_output_shape(self, input_shape):
            return input_shape

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, Python()(keras.layers.GlobalAveragePooling2D()(image)))
    assert log_probabilities(model, [images()]).shape == (7, 3)
    model.compile(jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="XLA"):
        model.predict_on_batch(images())


@tf_only
@pytest.mark.parametrize("inside", [True, False])
def test_a_member_created_under_a_strategy_predicts_outside_and_inside_of_it(inside, mirrored):
    with mirrored.scope():
        model = member()
    with mirrored.scope() if inside else contextlib.nullcontext():
        out = log_probabilities(model, [images()[:4], images()[4:]])
    assert out.shape == (7, 4)
    alone = member()
    alone.set_weights(model.get_weights())
    np.testing.assert_allclose(out, expected(alone), rtol=1e-4, atol=1e-5)
