"""The compiled batch normalization against its definition in float64, and what happens without a compiler."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.special

from keras_committee import kernels
from keras_committee.layers import BatchNormalization

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the kernels are TensorFlow's")
EPSILON = 1e-3
# Rows that are no whole number of periods, several chunks, channels beyond a period, a single row.
SHAPES = [(4, 5, 5, 3), (130, 9, 16, 20), (2, 3, 3, 130), (1, 1, 1, 8)]


@pytest.fixture(scope="module", autouse=True)
def operation():
    module = kernels.batch_norm_kernels()
    if module is None:
        pytest.skip(f"no kernels: {kernels.kernels_unavailable_reason()}")
    return module.keras_committee_batch_norm


def tensors(shape, dtype, num_addends):
    import tensorflow as tf

    rng = np.random.default_rng(1)
    x, addend = (tf.cast(rng.normal(3.0, 2.0, size=shape), dtype) for _ in range(2))
    scale, offset = (tf.constant(rng.normal(1.0, 0.5, size=shape[-1]), tf.float32) for _ in range(2))
    weights = [tf.cast(rng.normal(size=shape), dtype) for _ in range(1 + num_addends)]
    return x, [addend][:num_addends], scale, offset, weights


def activate(y, activation):
    """Return the activation of `y` and its derivative."""
    if activation == "quick_gelu":
        gate = scipy.special.expit(1.702 * y)
        return y * gate, gate + 1.702 * y * gate * (1 - gate)
    derivative = (y > 0) if activation == "relu" else np.ones_like(y)
    return y * derivative, derivative


def expected(x, addends, scale, offset, weights, activation):
    """Outputs and gradients of `sum(weights * outputs)`, from the definition."""
    total, scale, offset = sum([*addends], x), scale, offset
    mean, variance = total.mean((0, 1, 2)), total.var((0, 1, 2))
    normalized = (total - mean) / np.sqrt(variance + EPSILON)
    y = normalized * scale + offset
    activated, derivative = activate(y, activation)
    d = weights[-1] * derivative
    scale_gradient, offset_gradient = (d * normalized).sum((0, 1, 2)), d.sum((0, 1, 2))
    rows = np.prod(x.shape[:3])
    x_gradient = scale / np.sqrt(variance + EPSILON) * (d - offset_gradient / rows - normalized * scale_gradient / rows)
    x_gradient = x_gradient + (weights[0] if addends else 0.0)
    outputs = [total, activated, mean, variance][0 if addends else 1 :]
    return outputs, [x_gradient] * (1 + len(addends)) + [scale_gradient, offset_gradient], np.abs(y)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("num_addends", "activation"), [(0, "relu"), (1, "relu"), (0, "linear"), (0, "quick_gelu"), (1, "quick_gelu")]
)
def test_outputs_and_gradients_are_those_of_the_definition(operation, shape, dtype, num_addends, activation):
    import tensorflow as tf

    x, addends, scale, offset, weights = tensors(shape, dtype, num_addends)
    with tf.GradientTape() as tape:
        tape.watch(sources := [x, *addends, scale, offset])
        sums, y, mean, variance = operation(x, addends, scale, offset, epsilon=EPSILON, activation=activation)
        objective = [*sums, y]
    gradients = tape.gradient(objective, sources, weights)

    as_float64 = [
        tf.nest.map_structure(lambda t: t.numpy().astype("float64"), part) for part in (x, addends, scale, offset)
    ]
    # The sum is rounded to its dtype before it is normalized.
    if num_addends:
        rounded = (x + addends[0]).numpy().astype("float64")
        as_float64[0], as_float64[1] = rounded - as_float64[1][0], as_float64[1]
    wanted, wanted_gradients, distance_to_zero = expected(
        *as_float64, [w.numpy().astype("float64") for w in weights], activation
    )
    tolerance = 1e-5 if dtype == "float32" else 2**-7
    for result, value in zip([*sums, y, mean, variance], wanted, strict=True):
        np.testing.assert_allclose(result.numpy().astype("float64"), value, rtol=tolerance, atol=tolerance)
    decided = distance_to_zero > 1e-4  # elsewhere rounding decides whether the ReLU lets the gradient through
    for result, value in zip(gradients, wanted_gradients, strict=True):
        got = result.numpy().astype("float64")
        got, value = (got[decided], value[decided]) if got.shape == decided.shape else (got, value)
        np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance * max(1.0, np.abs(value).max()))


def test_the_variance_survives_a_mean_that_is_large_against_the_deviation(operation):
    x = np.random.default_rng(0).normal(1000.0, 0.1, size=(32, 16, 16, 2)).astype("float32")
    _, _, mean, variance = operation(x, [], np.ones(2, "f"), np.zeros(2, "f"), epsilon=EPSILON, activation="linear")
    np.testing.assert_allclose(mean, x.astype("float64").mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, x.astype("float64").var((0, 1, 2)), rtol=1e-4)


def test_a_value_that_is_not_finite_is_not_hidden_by_the_relu(operation):
    x = np.ones((1, 2, 2, 2), "float32")
    x[0, 0, 0, 0] = np.nan
    _, y, *_ = operation(x, [], np.ones(2, "f"), np.zeros(2, "f"), epsilon=EPSILON, activation="relu")
    assert np.isnan(y.numpy()[..., 0]).all()
    assert np.isfinite(y.numpy()[..., 1]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quick_gelu_is_right_from_the_smallest_to_the_largest_values(operation, dtype):
    import tensorflow as tf

    # Normalized values from about -670 to 670, and one that is not finite in the second channel.
    x = np.stack([np.sign(z := np.linspace(-1, 1, 4096)) * z**2, z], axis=-1).astype("float32")
    x[7, 1] = np.nan
    x, scale = tf.cast(x.reshape(1, 64, 64, 2), dtype), np.full(2, 300.0, "f")
    with tf.GradientTape() as tape:
        tape.watch(offset := tf.zeros(2))
        _, y, mean, variance = operation(x, [], scale, offset, epsilon=EPSILON, activation="quick_gelu")
    first, second = y.numpy().astype("float64")[0, :, :, 0], y.numpy()[0, :, :, 1].astype("float64")
    values = x.numpy().astype("float64")[0, :, :, 0] - mean.numpy()[0]
    wanted, derivative = activate(values * 300 / np.sqrt(variance.numpy()[0] + EPSILON), "quick_gelu")
    np.testing.assert_allclose(first, wanted, rtol=1e-5 if dtype == "float32" else 2**-7, atol=2e-4)
    assert np.isnan(second).all()
    assert np.isfinite(first).all()
    gradient = tape.gradient(y, offset).numpy()
    np.testing.assert_allclose(gradient[0], derivative.sum(), rtol=1e-4)


def test_an_empty_batch_has_no_outputs(operation):
    _, y, *_ = operation(
        np.zeros((0, 2, 2, 3), "f"), [], np.ones(3, "f"), np.zeros(3, "f"), epsilon=EPSILON, activation="relu"
    )
    assert y.shape == (0, 2, 2, 3)


@pytest.mark.parametrize(
    ("addends", "scale", "offset"),
    [
        ([np.zeros((2, 2, 2, 4), "f")], np.ones(3, "f"), np.zeros(3, "f")),
        ([np.zeros((2, 2, 2, 3), "f")] * 2, np.ones(3, "f"), np.zeros(3, "f")),
        ([], np.ones(2, "f"), np.zeros(2, "f")),
        ([], np.ones(3, "f"), np.zeros(2, "f")),
        ([], np.ones(0, "f"), np.zeros(0, "f")),
    ],
)
def test_inputs_that_do_not_fit_are_an_error(operation, addends, scale, offset):
    import tensorflow as tf

    with pytest.raises(tf.errors.InvalidArgumentError, match="batch normalization"):
        operation(np.zeros((2, 2, 2, 3), "f"), addends, scale, offset, epsilon=EPSILON, activation="relu")


def test_results_do_not_depend_on_the_number_of_cores(operation):
    import tensorflow as tf

    x, addends, scale, offset, weights = tensors((64, 32, 32, 16), "bfloat16", 1)
    cores = os.sched_getaffinity(0)

    def results():
        with tf.GradientTape() as tape:
            tape.watch(sources := [x, scale, offset])
            sums, y, mean, variance = operation(x, addends, scale, offset, epsilon=EPSILON, activation="relu")
        gradients = tape.gradient([*sums, y], sources, weights)
        return [tensor.numpy() for tensor in (*sums, y, mean, variance, *gradients)]

    on_all = results()
    try:
        os.sched_setaffinity(0, {min(cores)})
        on_one = results()
    finally:
        os.sched_setaffinity(0, cores)
    assert all(np.array_equal(a, b) for a, b in zip(on_all, on_one, strict=True))


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("KERAS_COMMITTEE_KERNELS", "0", "KERAS_COMMITTEE_KERNELS is 0"),
        ("CC", "no-such-compiler", "there is no C compiler no-such-compiler"),
        ("CC", sys.executable, "failed: "),  # it cannot compile C
    ],
)
def test_without_kernels_the_layer_computes_the_same(monkeypatch, tmp_path, variable, value, reason):
    layer = BatchNormalization()
    x = np.random.default_rng(2).normal(size=(4, 6, 6, 5)).astype("float32")
    layer.build(x.shape)
    with_kernels, statistics = layer(x, training=True).numpy(), layer.get_weights()
    layer.set_weights([np.ones(5), np.zeros(5), np.zeros(5), np.ones(5)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(kernels, "_load", kernels._load.__wrapped__)
    assert kernels.batch_norm_kernels() is None
    assert reason in kernels.kernels_unavailable_reason()
    np.testing.assert_allclose(layer(x, training=True).numpy(), with_kernels, rtol=1e-5, atol=1e-5)
    for mine, other in zip(layer.get_weights(), statistics, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_a_folder_that_others_may_write_is_not_trusted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with kernels._library_folder() as folder:
        assert folder == tmp_path / "keras-committee"
    folder.chmod(0o777)
    with kernels._library_folder() as other:
        assert other != folder
    assert not other.exists()
    monkeypatch.setattr(kernels.Path, "home", raises_runtime_error)
    monkeypatch.delenv("XDG_CACHE_HOME")
    with kernels._library_folder() as other:
        assert other.is_dir()


def raises_runtime_error():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.slow
def test_a_compilation_leaves_the_library_alone_in_its_folder(monkeypatch, tmp_path):
    import tensorflow as tf

    library = tmp_path / "batch_norm.so"
    kernels._compile("gcc", kernels.Path(tf.__file__).parent, library)
    assert list(tmp_path.iterdir()) == [library]
    with pytest.raises(subprocess.CalledProcessError):
        kernels._compile("false", kernels.Path(tf.__file__).parent, library)
    assert list(tmp_path.iterdir()) == [library]
