"""Stochastic depth: distribution, outputs, gradients and state of the branch, against the paper's definition."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_committee.layers.normalization import BatchNormalization
from keras_committee.layers.stochastic_depth import MODES, SCALINGS, StochasticDepth

BACKEND = keras.backend.backend()
tf_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="replicas, XLA's choice and keras_cv are TensorFlow's")
traced_only = pytest.mark.skipif(BACKEND == "torch", reason="Keras traces nothing on PyTorch")


class Counting(keras.layers.Layer):
    """Computes `slope * x` and counts its calls and rows."""

    def build(self, shape):
        self.slope = self.add_weight(shape=(), initializer=keras.initializers.Constant(3.0))
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.rows = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        self.rows.assign_add(ops.cast(ops.shape(x)[0], "float32"))
        return ops.cast(self.slope, x.dtype) * x


def block(survival, branch=None, shape=(None, 4), **options):
    layer = StochasticDepth(branch or Counting(), survival=survival, **options)
    layer.build(shape)
    return layer


def normalized_branch(filters=3, **options):
    return keras.Sequential(
        [keras.layers.Conv2D(filters, 3, padding="same", **options), BatchNormalization(synchronized=False)]
    )


def data(shape=(6, 4), seed=3):
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def compiled(function):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if BACKEND == "torch":
        return function
    import jax

    return jax.jit(function)


def values(variables):
    return [ops.convert_to_tensor(v) * 1 for v in variables]


def training_calls(layer):
    """`layer(x, training=True)`, compiled; the state is kept from call to call."""
    if BACKEND != "jax":
        return compiled(lambda *x: layer(*x, training=True))
    step = compiled(lambda weights, state, *x: layer.stateless_call(weights, state, *x, training=True))

    def call(*x):
        outputs, state = step(values(layer.trainable_variables), values(layer.non_trainable_variables), *x)
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
        return outputs

    return call


def after_calls(layer, x, times):
    """The layer's state after training calls in one compiled loop, and how often the branch was added to each row."""
    weights = values(layer.trainable_variables)

    def step(_, before):
        grown, state = before
        out, state = layer.stateless_call(weights, state, x, training=True)
        return grown + ops.reshape(ops.cast(out[:, 0] > x[:, 0], "float32"), x.shape[:1]), state

    @compiled
    def loop(grown, state):
        return ops.fori_loop(0, times, step, (grown, state))

    grown, state = loop(ops.zeros(x.shape[0]), values(layer.non_trainable_variables))
    return dict(zip((v.path for v in layer.non_trainable_variables), map(numpy, state), strict=True)), numpy(grown)


def gradients(layer, x, *shortcut):
    """Gradients of `sum(layer(x)^2)` for x and the weights, compiled if the backend compiles; none is None."""
    return gradient_function(layer)(x, *shortcut)


def gradient_function(layer):
    """`gradients` of one layer, which is compiled once."""
    make = {"tensorflow": tensorflow_gradients, "jax": jax_gradients, "torch": torch_gradients}[BACKEND]
    backend_gradients = make(layer)
    return lambda *inputs: [numpy(g) for g in backend_gradients(*inputs)]


def tensorflow_gradients(layer):
    import tensorflow as tf

    def run(x, *shortcut):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = ops.sum(ops.square(layer(x, *shortcut, training=True)))
        return tape.gradient(loss, [x, *layer.trainable_variables])

    graph = tf.function(run, autograph=False)

    def run_both(*inputs):
        tensors = list(map(ops.convert_to_tensor, inputs))
        seed = numpy(layer.seed_generator.state)
        eager = run(*tensors)
        layer.seed_generator.state.assign(seed)
        result = graph(*tensors)
        assert all(g is not None for g in (*eager, *result))
        return result

    return run_both


def jax_gradients(layer):
    """As in Keras' trainer; the new state is assigned."""
    import jax

    def loss(x, weights, state, *shortcut):
        outputs, state = layer.stateless_call(weights, state, x, *shortcut, training=True)
        return ops.sum(ops.square(outputs)), state

    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    def run(x, *shortcut):
        state = values(layer.non_trainable_variables)
        (to_x, to_weights), state = step(x, values(layer.trainable_variables), state, *shortcut)
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
        return to_x, *to_weights

    return run


def torch_gradients(layer):
    import torch

    def run(x, *shortcut):
        x = ops.convert_to_tensor(x).requires_grad_()
        loss = ops.sum(ops.square(layer(x, *shortcut, training=True)))
        return torch.autograd.grad(loss, [x, *(v.value for v in layer.trainable_variables)])  # raises where one is None

    return run


def within_four_sigma(successes, trials, probability):
    return abs(successes - trials * probability) <= 4 * np.sqrt(trials * probability * (1 - probability))


@pytest.mark.jax
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("scaling", "slope"), [("inference", 0.7 * 3), ("training", 3.0)])
def test_at_inference_the_branch_is_added_with_its_scale(mode, scaling, slope):
    layer = block(0.7, mode=mode, scaling=scaling)
    np.testing.assert_allclose(numpy(layer(data())), (1 + slope) * data(), rtol=1e-6)
    assert float(layer.run_count) == 0


@pytest.mark.jax
@pytest.mark.parametrize(("scaling", "slope"), [("inference", 3.0), ("training", 3 / 0.2)])
def test_during_training_the_branch_is_kept_or_dropped_for_the_whole_batch(scaling, slope):
    call = training_calls(block(0.2, scaling=scaling))
    ratios = np.array([np.round(numpy(call(data())) / data(), 3) for _ in range(40)])
    assert (ratios == ratios[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(ratios), [1.0, 1 + slope])


@pytest.mark.jax
@pytest.mark.parametrize("survival", [0.2, 0.7])
def test_a_batch_keeps_the_branch_with_the_survival_probability(survival):
    layer = block(survival)
    state, _ = after_calls(layer, ops.convert_to_tensor(data()), 10_000)
    assert within_four_sigma(state[layer.run_count.path], 10_000, survival)
    assert state[layer.branch.calls.path] == state[layer.run_count.path]


@pytest.mark.jax
@pytest.mark.parametrize("survival", [0.2, 0.7])
def test_each_sample_keeps_the_branch_with_the_survival_probability(survival):
    layer = block(survival, mode="sample")
    ratio = numpy(layer(np.ones((10_000, 4), "float32"), training=True))
    assert set(np.unique(ratio)) == {1.0, 4.0}
    assert (ratio == ratio[:, :1]).all()
    kept = np.count_nonzero(ratio[:, 0] > 1)
    assert within_four_sigma(kept, 10_000, survival)
    assert float(layer.run_count) == pytest.approx(kept / 10_000)


@pytest.mark.jax
@pytest.mark.parametrize("survival", [0.2, 0.7])
@pytest.mark.parametrize("rows", [1, 7, 24])
def test_each_row_of_a_subset_survives_with_the_survival_probability(survival, rows):
    layer = block(survival, mode="subset")
    state, survived = after_calls(layer, ops.ones((rows, 4)), 2_000)
    assert all(within_four_sigma(count, 2_000, survival) for count in survived)
    assert within_four_sigma(survived.sum() / rows, 2_000, survival)
    assert state[layer.run_count.path] == pytest.approx(survived.sum() / rows, rel=1e-4)
    assert state[layer.branch.rows.path] == survived.sum()


@pytest.mark.parametrize("has_shortcut", [False, True], ids=["identity", "shortcut"])
def test_a_subset_gives_the_outputs_and_gradients_of_its_mask(has_shortcut):
    x = data((10, 4)) - 1.0
    shortcut = (2 * x,) if has_shortcut else ()
    start = shortcut[0] if has_shortcut else x
    layer = block(0.7, mode="subset")
    gradients_of_layer = gradient_function(layer)
    for seed in range(6):
        layer.seed_generator.state.assign([seed, 0])
        out = numpy(layer(x, *shortcut, training=True))
        layer.seed_generator.state.assign([seed, 0])
        to_x, to_slope = gradients_of_layer(x, *shortcut)
        kept = (np.abs(out - start) > 1e-3).any(axis=1, keepdims=True)
        np.testing.assert_allclose(out, start + 3 * kept * x, rtol=1e-5)
        np.testing.assert_allclose(to_x, 2 * out * (3 * kept + (not has_shortcut)), rtol=1e-5)
        np.testing.assert_allclose(to_slope, (2 * out * kept * x).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("survival", "rows", "sizes"),
    [(0.2, 7, {0, 3, 4}), (0.7, 7, {3, 4, 7}), (0.5, 7, {3, 4}), (0.2, 1, {0, 1}), (0.7, 1, {0, 1})],
)
def test_a_subset_is_the_batch_or_one_half_or_nothing(survival, rows, sizes):
    call = training_calls(block(survival, mode="subset"))
    kept = np.array([numpy(call(np.ones((rows, 4), "float32"))[:, 0] > 1) for _ in range(100)])
    assert set(kept.sum(axis=1).astype(int).tolist()) == sizes
    assert (np.abs(np.diff(kept, axis=1)).sum(axis=1) <= 1).all()


def test_batch_normalization_in_a_subset_sees_the_surviving_rows_only():
    x = data((10, 5, 4, 3))
    norm = BatchNormalization(momentum=0.0, scale=False, center=False, synchronized=False)
    layer = block(0.5, norm, shape=x.shape, mode="subset")
    out = numpy(training_calls(layer)(x))
    kept = (out != x).any(axis=(1, 2, 3))
    assert kept.sum() == 5
    np.testing.assert_allclose(numpy(norm.moving_mean), x[kept].mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(out[~kept], x[~kept])


@pytest.mark.parametrize(  # each two of the three in all combinations
    ("seed", "kept", "scaling", "scale", "remat"),
    [
        (0, slice(3), "inference", 1.0, False),
        (0, slice(3), "training", 1 / 0.5, True),
        (11, slice(3, 7), "inference", 1.0, True),
        (11, slice(3, 7), "training", 1 / 0.5, False),
    ],
)
def test_a_half_is_the_plain_residual_of_its_rows(seed, kept, scaling, scale, remat):
    x = data((7, 5, 4, 3))
    options = {"mode": "subset", "scaling": scaling, "remat": remat, "seed": seed}
    layer = block(0.5, normalized_branch(), x.shape, **options)
    plain = block(1.0, keras.Sequential([normalized_branch(), keras.layers.Rescaling(scale)]), x[kept].shape)
    plain.branch.set_weights(layer.branch.get_weights())
    to_x, *to_weights = gradients(layer, x)
    expected_to_x = 2 * x
    expected_to_x[kept], *expected = gradients(plain, x[kept])
    np.testing.assert_allclose(to_x, expected_to_x, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(to_weights, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    for ours, theirs in zip(layer.branch.get_weights(), plain.branch.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.jax
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("remat", [False, True])
def test_a_dropped_branch_has_gradients_of_exactly_zero(mode, remat):
    x = data((6, 5, 4, 3))
    layer = block(0.0, normalized_branch(), x.shape, mode=mode, remat=remat)
    to_x, *to_weights = gradients(layer, x)
    np.testing.assert_allclose(to_x, 2 * x, rtol=1e-6)
    assert all((g == 0).all() for g in to_weights)
    np.testing.assert_array_equal(numpy(layer(x, training=True)), x)


@pytest.mark.parametrize("mode", ["batch", "subset"])
def test_a_dropped_branch_keeps_its_moving_statistics(mode):
    layer = block(0.0, normalized_branch(), (None, 5, 4, 3), mode=mode)
    before = layer.branch.get_weights()
    training_calls(layer)(data((6, 5, 4, 3)))
    for old, new in zip(before, layer.branch.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("remat", [False, True])
def test_a_kept_branch_is_the_plain_residual_block(mode, scaling, remat):
    x = data((6, 5, 4, 3))
    layer = block(1.0, normalized_branch(), x.shape, mode=mode, scaling=scaling, remat=remat)
    plain = normalized_branch()
    plain.build(x.shape)
    plain.set_weights(layer.branch.get_weights())
    np.testing.assert_allclose(numpy(layer(x, training=True)), x + numpy(plain(x, training=True)), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(layer.branch.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(numpy(layer(x)), x + numpy(plain(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_survival_of_zero_never_adds_the_branch_and_is_not_nan(mode, scaling):
    layer = block(0.0, mode=mode, scaling=scaling)
    for training in (True, False):
        np.testing.assert_array_equal(numpy(layer(data(), training=training)), data())


@pytest.mark.parametrize("mode", ["batch", "subset"])
def test_a_survival_of_zero_never_runs_the_branch(mode):
    layer = block(0.0, mode=mode)
    layer(data(), training=True)
    layer(data())
    assert float(layer.branch.calls) == 0


@pytest.mark.jax
@pytest.mark.parametrize("mode", MODES)
def test_rematerialization_changes_no_gradient(mode):
    x = data((6, 5, 4, 3))
    stored, recomputed = (
        block(0.7, normalized_branch(), x.shape, mode=mode, remat=remat, seed=5) for remat in (False, True)
    )
    recomputed.branch.set_weights(stored.branch.get_weights())
    for one, other in zip(gradients(stored, x), gradients(recomputed, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    for one, other in zip(stored.branch.get_weights(), recomputed.branch.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("remat", [False, True])
def test_a_frozen_branch_passes_the_gradient_on(mode, remat):
    norm = BatchNormalization(epsilon=0.21)  # of mean 0 and variance 1: x / 1.1
    twice = keras.layers.Dense(4, kernel_initializer=keras.initializers.Identity(2.0))
    layer = block(1.0, keras.Sequential([norm, twice]), mode=mode, remat=remat)
    layer.branch.trainable = False
    (to_x,) = gradients(layer, data())
    np.testing.assert_allclose(to_x, 2 * (1 + 2 / 1.1) ** 2 * data(), rtol=1e-5)


def test_dropout_in_a_rematerialized_branch_draws_once():
    x = data((50, 4))
    layer = block(1.0, keras.Sequential([keras.layers.Dropout(0.3)]), remat=True, seed=5)
    (to_x,) = gradients(layer, x)
    out = (
        to_x / 2 / np.where(np.isclose(to_x, 2 * x, rtol=1e-4), 1, 1 + 1 / 0.7)
    )  # out = slope * x, to_x = 2 * slope * out
    assert set(np.unique(np.round(out / x, 3))) == {1.0, round(1 + 1 / 0.7, 3)}


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 5, 4, 3), (6, 5, 2, 4, 3)], ids=len)
@pytest.mark.parametrize("mode", MODES)
def test_branches_of_any_rank(shape, mode):
    layer = block(0.7, keras.layers.Dense(shape[-1]), (None, *shape[1:]), mode=mode)
    assert numpy(layer(data(shape), training=True)).shape == shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_mixed_precision(mode, policy, scaling):
    keras.config.set_dtype_policy(policy)
    x = data((6, 5, 4, 3))
    layer = block(0.7, normalized_branch(), x.shape, mode=mode, scaling=scaling)
    for training in (True, True, True, False):
        out = layer(x, training=training)
        assert keras.backend.standardize_dtype(out.dtype) == policy.removeprefix("mixed_")
        assert np.isfinite(numpy(out)).all()
    assert layer.survival == 0.7


def test_noise_is_drawn_in_float32():
    layer = block(0.996, mode="sample", dtype="bfloat16")  # bfloat16 has 0.9961 and 0.9922 only
    layer(np.ones((40_000, 4), "float32"), training=True)
    assert within_four_sigma(float(layer.run_count) * 40_000, 40_000, 0.996)


def functional(mode="batch", survival=0.7, **options):
    image = keras.Input((5, 4, 3))
    x = StochasticDepth(normalized_branch(), survival=survival, mode=mode, name="first", **options)(image)
    shortcut = keras.layers.Conv2D(4, 1)(x)
    x = StochasticDepth(normalized_branch(4), survival=0.3, mode=mode, name="second", **options)(x, shortcut)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D(dtype="float32")(x))


@pytest.mark.jax
@pytest.mark.parametrize("mode", MODES)
def test_the_file_round_trip_keeps_everything(mode, tmp_path):
    model = functional(mode, scaling="training", seed=7, remat=True)
    model.get_layer("first").set_survival(0.2)
    assert model.input_shape[0] is None
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(data((6, 5, 4, 3)))), numpy(model(data((6, 5, 4, 3)))))
    assert loaded.get_layer("first").survival == 0.2
    ours, theirs = (m.get_layer("second").get_config() for m in (model, loaded))
    assert ours.pop("branch")["class_name"] == theirs.pop("branch")["class_name"] == "Sequential"
    assert ours == theirs


@pytest.mark.parametrize("mode", MODES)
def test_a_model_trains_and_counts_the_branches_that_run(mode):
    image = keras.Input((4,))
    x = image
    for survival in (0.7, 0.2, 0.0, 1.0):
        x = StochasticDepth(Counting(), survival=survival, mode=mode)(x)
    model = keras.Model(image, keras.layers.Dense(2)(x))
    model.compile("sgd", "mse")
    model.fit(data((20, 4)), data((20, 2)), batch_size=4, epochs=3, verbose=0)
    blocks = model.layers[1:-1]
    rows = [float(block.branch.rows) for block in blocks]
    runs = [float(block.run_count) for block in blocks]
    expected = {"batch": [4 * r for r in runs], "subset": [4 * r for r in runs], "sample": [60.0] * 4}[mode]
    np.testing.assert_allclose(rows, expected, rtol=1e-5)
    assert runs[2:] == [0, 15]


@pytest.mark.parametrize("mode", MODES)
def test_a_network_with_normalized_branches_trains(mode):
    model = functional(mode, survival=0.7)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_layer("first").branch.get_weights()
    loss = model.fit(data((14, 5, 4, 3)), data((14, 4)), batch_size=4, epochs=8, verbose=0).history["loss"]
    assert loss[-1] < 0.5 * loss[0]
    after = model.get_layer("first").branch.get_weights()
    assert all(np.abs(new - old).max() > 1e-4 for old, new in zip(before, after, strict=True) if old.size > 3)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_penalty_on_the_weights_of_a_branch_counts_once():
    layer = block(0.2, normalized_branch(kernel_regularizer=keras.regularizers.L2(0.1)), (None, 5, 4, 3))
    layer(data((6, 5, 4, 3)), training=True)
    (loss,) = layer.losses
    kernel = numpy(layer.branch.layers[0].kernel)
    assert numpy(loss) == pytest.approx(0.1 * (kernel**2).sum(), rel=1e-5)


def keeps(layer, times=40):
    call = training_calls(layer)
    return [bool(numpy(call(np.ones((1, 4), "float32")))[0, 0] > 1) for _ in range(times)]


def test_two_blocks_without_a_seed_differ_and_repeat_under_the_same_global_seed():
    first, second = keeps(block(0.7)), keeps(block(0.7))
    keras.utils.set_random_seed(20)
    assert (keeps(block(0.7)), first != second) == (first, True)


def test_two_blocks_with_the_same_integer_seed_decide_alike():
    assert keeps(block(0.7, seed=5)) == keeps(block(0.7, seed=5)) != keeps(block(0.7, seed=6))


@traced_only
def test_survival_changes_without_tracing_again():
    layer = block(0.0)
    traces = []

    @compiled
    def call(state, x):
        traces.append(1)
        return layer.stateless_call(weights, state, x, training=True)[0]

    weights = values(layer.trainable_variables)
    for survival, factor in [(0.0, 1), (1.0, 4)]:
        layer.set_survival(survival)
        state = values(layer.non_trainable_variables)
        np.testing.assert_allclose(numpy(call(state, ops.convert_to_tensor(data()))), factor * data())
    assert (layer.survival, len(traces)) == (1.0, 1)


@tf_only
@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_xla_compiles_the_conditional(mode):
    import tensorflow as tf

    layer = block(0.7, mode=mode)
    fast = tf.function(lambda x: layer(x, training=True)[:, 0], jit_compile=True, autograph=False)
    out = np.array([numpy(fast(np.ones((8, 4), "float32"))) for _ in range(40)])
    assert set(out.ravel().tolist()) == {1.0, 4.0}
    assert (out > 1).mean(axis=1).sum() == pytest.approx(float(layer.run_count))


@tf_only
@pytest.mark.parametrize(("mode", "alike"), [("batch", True), ("sample", False), ("subset", False)])
def test_replicas_share_the_decision_in_batch_mode_only(mirrored, mode, alike):
    import tensorflow as tf

    with mirrored.scope():
        layer = block(0.7, mode=mode)

    @tf.function(autograph=False)
    def step(x):
        return mirrored.run(lambda: layer(x, training=True)[:, 0] > 1)

    kept = [
        [numpy(replica) for replica in mirrored.experimental_local_results(step(np.ones((24, 4), "f")))]
        for _ in range(8)
    ]
    first, second = np.array(kept).swapaxes(0, 1)
    assert (first == second).all() == alike
    assert 0.4 < first.mean() < 1.0
    assert numpy(layer.run_count) == pytest.approx(first.mean(axis=1).sum())  # the value of the first replica


@tf_only
def test_replicas_train_a_normalized_branch_inside_a_conditional(mirrored):
    with mirrored.scope():
        model = functional()
        model.compile("sgd", "mse")
    model.fit(data((8, 5, 4, 3)), data((8, 4)), batch_size=4, verbose=0)
    layer = model.get_layer("first")
    layer.set_survival(0.2)
    assert layer.survival == 0.2
    assert numpy(layer.run_count) in (0, 1, 2)


@tf_only
def test_synchronized_statistics_inside_a_conditional_are_refused(mirrored):
    import tensorflow as tf

    with mirrored.scope():
        layer = block(0.7, BatchNormalization(name="synced"))
        masked = block(0.7, BatchNormalization(), mode="sample")

    @tf.function(autograph=False)
    def run(layer):
        return mirrored.run(lambda: layer(data(), training=True))

    run(masked)
    with pytest.raises(ValueError, match=r"synced in the branch .* exchanges its statistics .* synchronized=False"):
        run(layer)


@tf_only
@pytest.mark.slow  # imports keras_cv; the tests above check the probability
@pytest.mark.filterwarnings("ignore")  # of the import of keras_cv
def test_the_mean_is_that_of_keras_cv():
    from keras_cv.layers import StochasticDepth as Theirs

    x = np.ones((1, 4), "float32")
    theirs = Theirs(rate=0.3)
    ours = block(0.7, mode="batch")
    np.testing.assert_allclose(numpy(ours(x)), np.array(theirs([x, 3 * x], training=False)), rtol=1e-6)
    call = training_calls(ours)
    draws = np.array([[numpy(call(x))[0, 0], np.array(theirs([x, 3 * x], training=True))[0, 0]] for _ in range(600)])
    assert set(draws.ravel().tolist()) == {1.0, 4.0}
    assert all(within_four_sigma(kept, 600, 0.7) for kept in (draws > 1).sum(axis=0))


@pytest.mark.parametrize("survival", [-0.1, 1.2, float("nan")])
def test_survival_must_be_a_probability(survival):
    with pytest.raises(ValueError, match=r"survival must be a probability in \[0, 1\]. Received: survival="):
        block(survival)
    with pytest.raises(ValueError, match=r"survival must be a probability in \[0, 1\]"):
        block(0.7).set_survival(survival)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "row"}, "mode must be one of batch, sample, subset. Received: mode='row'"),
        ({"scaling": "test"}, "scaling must be one of inference, training. Received: scaling='test'"),
        ({"branch": "relu"}, "branch must be a Keras layer or model. Received: branch='relu'"),
        ({"branch": keras.layers.Dense(3)}, r"must return the shape of the shortcut.*branch \(None, 3\)"),
        (
            {"branch": keras.layers.Dense(4, activity_regularizer="l2", name="active")},
            "A branch cannot have an activity_regularizer. Received: active",
        ),
    ],
)
def test_arguments_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        block(0.7, **options)


def test_survival_is_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        StochasticDepth(Counting(), 0.7)
