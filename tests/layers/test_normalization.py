"""The fused BatchNormalization against Keras' own."""

import keras
import numpy as np
import pytest

from keras_committee.layers import BatchNormalization

tf_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the fused operation and the strategies are TensorFlow's"
)
SHAPE = (6, 5, 4, 3)
OPTIONS = [
    {},
    {"scale": False},
    {"center": False},
    {"scale": False, "center": False},
    {"momentum": 0.7, "epsilon": 1e-5, "synchronized": False},
    {"axis": 3, "momentum": 0.9},
]


def pixels(shape=SHAPE, seed=3):
    """Channels of distinct means and scales."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return (noise * np.linspace(0.3, 2.0, shape[-1]) + np.linspace(-1.0, 4.0, shape[-1])).astype("float32")


def pair(shape=SHAPE, dtype="float32", **options):
    """Our layer and Keras', with equal, uneven weights."""
    ours = BatchNormalization(dtype=dtype, **options)
    theirs = keras.layers.BatchNormalization(dtype=dtype, **options)
    rng = np.random.default_rng(5)
    for layer in (ours, theirs):
        layer.build((None, *shape[1:]))
    values = [rng.uniform(0.3, 1.7, size=weight.shape) for weight in theirs.weights]
    ours.set_weights(values)
    theirs.set_weights(values)
    return ours, theirs


def numpy(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_moving_statistics_are_those_of_keras(options, training):
    ours, theirs = pair(**options)
    x = pixels()
    np.testing.assert_allclose(
        numpy(ours(x, training=training)), numpy(theirs(x, training=training)), rtol=1e-4, atol=1e-5
    )
    for mine, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5)


def test_the_moving_variance_takes_the_biased_variance_of_the_batch():
    layer = BatchNormalization(momentum=0.7)
    x = pixels((2, 1, 2, 3))  # four values a channel: the unbiased variance is a third larger
    layer(x, training=True)
    np.testing.assert_allclose(numpy(layer.moving_variance), 0.7 + 0.3 * x.var((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(numpy(layer.moving_mean), 0.3 * x.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_keeps_float32_statistics(dtype, training):
    ours, theirs = pair(dtype=dtype)
    x = keras.ops.cast(pixels(), ours.compute_dtype)
    outputs, expected = ours(x, training=training), theirs(x, training=training)
    assert keras.backend.standardize_dtype(outputs.dtype) == ours.compute_dtype
    np.testing.assert_allclose(numpy(outputs), numpy(expected), rtol=2e-2, atol=2e-2)
    for mine, expected in zip(ours.weights, theirs.weights, strict=True):
        assert mine.dtype == "float32"
        np.testing.assert_allclose(numpy(mine), numpy(expected), rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_one_single_pixel_gives_no_nan(training):
    layer = BatchNormalization(momentum=0.7)
    out = layer(pixels((1, 1, 1, 3)), training=training)
    assert np.isfinite(numpy(out)).all()
    assert all(np.isfinite(weight).all() for weight in layer.get_weights())


def test_a_frozen_layer_stays_in_inference_mode():
    ours, theirs = pair()
    ours.trainable = theirs.trainable = False
    before = ours.get_weights()
    x = pixels()
    np.testing.assert_allclose(numpy(ours(x, training=True)), numpy(theirs(x, training=True)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(before), np.concatenate(ours.get_weights()))


@pytest.mark.parametrize(
    ("shape", "options"),
    [((6, 3), {}), ((6, 4, 3), {}), ((6, 3, 5, 4), {"axis": 1}), ((2, 3, 2, 4, 3), {}), (SHAPE, {"renorm": True})],
)
def test_keras_computes_what_the_fused_operation_does_not_support(shape, options):
    ours, theirs = pair(shape, **options)
    x = pixels(shape)
    np.testing.assert_allclose(numpy(ours(x, training=True)), numpy(theirs(x, training=True)), rtol=1e-5, atol=1e-6)
    for mine, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5)


def test_keras_computes_a_mask():
    ours, theirs = pair()
    x, mask = pixels(), np.arange(6 * 5 * 4).reshape(6, 5, 4) % 3 > 0
    outputs, expected = ours(x, training=True, mask=mask), theirs(x, training=True, mask=mask)
    np.testing.assert_allclose(numpy(outputs), numpy(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("synchronized", [None, False])
def test_each_layer_is_created_from_the_config_of_the_other(synchronized):
    ours = BatchNormalization(momentum=0.7, scale=False, synchronized=synchronized, name="norm")
    theirs = keras.layers.BatchNormalization.from_config(ours.get_config())
    restored = BatchNormalization.from_config(theirs.get_config())
    assert ours.get_config() == theirs.get_config() == restored.get_config()


@pytest.mark.parametrize("source", [BatchNormalization, keras.layers.BatchNormalization])
@pytest.mark.parametrize("target", [BatchNormalization, keras.layers.BatchNormalization])
def test_each_layer_loads_the_weights_file_of_the_other(source, target, tmp_path):
    saved, loaded = (keras.Sequential([keras.Input(SHAPE[1:]), layer()]) for layer in (source, target))
    saved.set_weights([np.random.default_rng(7).uniform(0.2, 0.9, 3) for _ in range(4)])
    saved.save_weights(tmp_path / "w.weights.h5")
    loaded.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(np.stack(saved.get_weights()), np.stack(loaded.get_weights()))


def test_a_saved_model_predicts_as_before(tmp_path):
    model = keras.Sequential([keras.Input((None, None, 3)), BatchNormalization()])
    model.set_weights([np.random.default_rng(7).uniform(0.2, 0.9, 3) for _ in range(4)])
    model.save(tmp_path / "m.keras")
    x, loaded = pixels(), keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


# The tests below need TensorFlow.


def operations(layer, training, shape=(None, 5, 4, 3)):
    """Names of the operations in the layer's graph."""
    import tensorflow as tf

    traced = tf.function(lambda x: layer(x, training=training))
    return {node.type for node in traced.get_concrete_function(tf.TensorSpec(shape)).graph.get_operations()}


@tf_only
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("synchronized", [None, True, False])
def test_the_fused_operation_runs_under_one_replica(training, synchronized):
    fused = {"FusedBatchNormV3", *(["KerasCommitteeBatchNorm"] if training else [])}  # the latter if it was compiled
    assert fused & operations(BatchNormalization(synchronized=synchronized), training)


@tf_only
def test_the_fused_operation_does_not_run_for_channels_first():
    fused = {"FusedBatchNormV3", "KerasCommitteeBatchNorm"}
    assert fused.isdisjoint(operations(BatchNormalization(axis=1), training=True))


@tf_only
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_keras(training, jit_compile):
    import tensorflow as tf

    x, target = pixels(), pixels(seed=11)

    def gradients(layer):
        @tf.function(jit_compile=jit_compile)
        def run(inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                loss = tf.reduce_sum(tf.square(layer(inputs, training=training) - target))
            return tape.gradient(loss, [inputs, layer.gamma.value, layer.beta.value])

        return run(tf.constant(x))

    ours, theirs = pair(synchronized=False)
    for mine, expected in zip(gradients(ours), gradients(theirs), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.get_weights()[3], theirs.get_weights()[3], rtol=1e-5)


@tf_only
@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_not_taken_moves_no_statistics_and_gets_no_gradient(taken):
    import tensorflow as tf

    layer, _ = pair()
    before = layer.get_weights()

    @tf.function
    def run(inputs, gate):
        with tf.GradientTape() as tape:
            out = tf.cond(gate, lambda: layer(inputs, training=True), lambda: tf.zeros_like(inputs))
            loss = tf.reduce_sum(out**3)
        return tape.gradient(loss, layer.gamma.value)

    gradient = run(tf.constant(pixels()), tf.constant(taken))
    moved = [np.abs(now - then).max() > 0 for now, then in zip(layer.get_weights(), before, strict=True)]
    assert moved == [False, False, taken, taken]
    assert bool(np.abs(gradient).max() > 0) is taken


@tf_only
@pytest.mark.parametrize("synchronized", [None, True])
def test_two_replicas_share_the_statistics_of_the_global_batch(synchronized, mirrored):
    import tensorflow as tf

    x = pixels((8, 5, 4, 3))
    x[4:] += 3.0  # the second replica sees another distribution
    with mirrored.scope():
        layer = BatchNormalization(momentum=0.7, synchronized=synchronized)
        layer.build((None, 5, 4, 3))
    halves = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.constant(np.split(x, 2)[context.replica_id_in_sync_group])
    )
    outputs = mirrored.run(tf.function(lambda half: layer(half, training=True)), args=(halves,))

    single = keras.layers.BatchNormalization(momentum=0.7)
    expected = numpy(single(x, training=True))
    np.testing.assert_allclose(
        np.concatenate(mirrored.experimental_local_results(outputs)), expected, rtol=1e-3, atol=1e-4
    )
    for weight, single_weight in zip(layer.weights, single.weights, strict=True):
        for replica in mirrored.experimental_local_results(weight.value):
            np.testing.assert_allclose(replica, numpy(single_weight), rtol=1e-4, atol=1e-5)


LARGE_MEANS = [  # shape, mean, deviation, epsilon
    ((32, 8, 8, 4), 100, 1, 1e-5),
    ((32, 8, 8, 4), 1000, 1, 1e-3),
    ((1, 16, 16, 3), -1000, 1, 1e-5),
    ((6, 5, 4, 3), 255, 0, 1e-5),
]


@tf_only
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_mean_that_is_large_against_the_deviation_loses_no_precision(dtype, jit_compile):
    import tensorflow as tf

    rounding = {"float32": 1e-3, "mixed_float16": 3e-3, "mixed_bfloat16": 3e-2}[dtype]  # of the outputs
    for shape, mean, deviation, epsilon in LARGE_MEANS:
        # TensorFlow's kernel for float16 rounds the mean on CPUs without float16 instructions.
        has_rounded_mean = dtype == "mixed_float16" and not jit_compile
        rounding_of_mean = float(np.spacing(np.float32(abs(mean)))) if has_rounded_mean else 0.0
        tolerance = rounding + rounding_of_mean / (deviation**2 + epsilon) ** 0.5
        layer = BatchNormalization(dtype=dtype, epsilon=epsilon, momentum=0.0)
        layer.build((None, *shape[1:]))
        x = tf.cast(np.random.default_rng(3).normal(mean, deviation, shape), layer.compute_dtype)
        exact = np.asarray(tf.cast(x, "float64"))
        expected = keras.layers.BatchNormalization(epsilon=epsilon, dtype="float64")(exact, training=True)
        outputs = tf.function(layer, jit_compile=jit_compile)(x, training=True)
        np.testing.assert_allclose(tf.cast(outputs, "float64"), expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(layer.moving_mean, exact.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            layer.moving_variance, exact.var((0, 1, 2)), rtol=1e-3, atol=1.01 * rounding_of_mean**2
        )
    outputs = tf.function(layer, jit_compile=jit_compile)(x, training=False)
    np.testing.assert_allclose(tf.cast(outputs, "float64"), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("shape", "options"), [((64, 3), {}), ((16, 3, 5, 4), {"axis": 1}), ((8, 3, 2, 4, 3), {})])
def test_a_large_mean_loses_no_precision_without_the_fused_operation(shape, options):
    ours, theirs = pair(shape, **options)
    x = pixels(shape) + 1000
    np.testing.assert_allclose(numpy(ours(x, training=True)), numpy(theirs(x, training=True)), rtol=0, atol=1e-3)


@tf_only
def test_two_replicas_lose_no_precision_at_a_large_mean(mirrored):
    import tensorflow as tf

    x = pixels((8, 5, 4, 3)) + 1000
    x[4:] += 3.0
    with mirrored.scope():
        layer = BatchNormalization()
        layer.build((None, 5, 4, 3))
    halves = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.constant(np.split(x, 2)[context.replica_id_in_sync_group])
    )
    outputs = mirrored.run(tf.function(lambda half: layer(half, training=True)), args=(halves,))
    expected = keras.layers.BatchNormalization(dtype="float64")(x.astype("float64"), training=True)
    np.testing.assert_allclose(np.concatenate(mirrored.experimental_local_results(outputs)), expected, atol=1e-3)
