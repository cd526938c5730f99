"""Exactly the layers that a recipe names train, in their epochs; all others keep every bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import Recipe, data, layers
from keras_committee.errors import RecipeError
from keras_committee.training.averaging import WeightEMA
from keras_committee.training.devices import make_strategy
from keras_committee.training.freezing import LayerFreezer
from keras_committee.training.train_step import make_train_step

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    """A stem, a block that may be skipped, a nested model, logits."""
    image = keras.Input((4, 4, 3), name="image")
    x = keras.layers.Conv2D(3, 3, padding="same", kernel_regularizer=keras.regularizers.L2(0.01), name="stem")(image)
    x = layers.BatchNormalization(momentum=0.7, name="stem_bn")(x)
    inside = [keras.layers.Conv2D(3, 3, padding="same", name="inner"), layers.BatchNormalization(synchronized=False)]
    x = layers.StochasticDepth(keras.Sequential(inside, name="branch"), survival=0.7, name="block")(x)
    x = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(6, name="wide")], name="trunk")(x)
    return keras.Model(image, keras.layers.Dense(5, dtype="float32", name="logits")(x), name="ours")


def a_batch(examples=8):
    rng = np.random.default_rng(3)
    images = rng.normal(size=(examples, 4, 4, 3)).astype("float32")
    return images, rng.integers(0, 5, size=examples, dtype=np.int32)


def freezer(model, *patterns):
    return LayerFreezer(model, lambda epoch: patterns, epochs=1)


def layers_that_train(model):
    names = {id(v): layer.name for layer in model._flatten_layers() for v in layer._trainable_variables}
    return sorted({names[id(weight)] for weight in model.trainable_variables})


def bits(variables):
    parts = [getattr(variable.value, "values", (variable.value,)) for variable in variables]
    return [[part.numpy().tobytes() for part in own] for own in parts]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["logits"], ["logits"]),
        (["stem*", "trunk"], ["stem", "stem_bn", "wide"]),  # a name around a layer counts for it
        (["branch", "logits"], ["batch_normalization", "inner", "logits"]),
        (["[!s]tem", "inner", "wid?"], ["inner", "wide"]),
    ],
)
def test_a_layer_trains_whose_name_or_one_around_it_matches(patterns, expected):
    model = network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerFreezer, "_check_matches", lambda *_: None)  # "[!s]tem" is nobody's name
        freezer(model, *patterns).begin_epoch(0)
    assert [name.rstrip("_0123456789") for name in layers_that_train(model)] == expected


def test_what_the_builder_froze_stays_frozen_and_all_else_thaws():
    model = network()
    model.get_layer("stem").trainable = False
    everything = bits(model.trainable_variables)
    freezing = freezer(model, "stem*", "logits")
    freezing.begin_epoch(0)
    assert layers_that_train(model) == ["logits", "stem_bn"]
    freezing.unfreeze()
    assert bits(model.trainable_variables) == everything
    assert [part.name for part in model._flatten_layers() if not part.trainable] == ["stem"]


def test_a_shared_layer_trains_if_one_of_its_places_does():
    image, shared = keras.Input((3,)), keras.layers.Dense(3, name="shared")
    first = keras.Sequential([shared], name="first")
    second = keras.Sequential([shared], name="second")
    model = keras.Model(image, second(first(image)))
    freezer(model, "first").begin_epoch(0)
    assert layers_that_train(model) == ["shared"]


OPTIONS = {
    "plain": {},
    "in parts and clipped": {"gradient_accumulation_steps": 2, "global_clipnorm": 0.3},
    "bfloat16": {"dtype": "mixed_bfloat16"},
    "float16": {"dtype": "mixed_float16"},
}


def trained(strategy, patterns, dtype="float32", **options):
    """A network after three steps of the layers that `patterns` select, its optimizer, averages and earlier bits."""
    keras.config.set_dtype_policy(dtype)
    with strategy.scope():
        model = network()
        optimizer = keras.optimizers.RMSprop(0.05, momentum=0.9, weight_decay=0.02)
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 64.0) if dtype == "mixed_float16" else optimizer
        optimizer.build(model.trainable_variables)
    averages = WeightEMA(model, 0.7, strategy)
    freezer(model, *patterns).begin_epoch(0)
    before = bits([*model.variables, *averages.variables])
    step = make_train_step(model, optimizer, LOSS, strategy, ema=averages, **options)
    for batch in strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(a_batch()).repeat(3)):
        step(*batch)
    return model, optimizer, averages, before


CASES = [("single", name) for name in OPTIONS] + [("mirrored", "in parts and clipped")]
CASES += [pytest.param("mirrored", name, marks=pytest.mark.slow) for name in ("plain", "bfloat16", "float16")]


@pytest.mark.parametrize(("strategy", "options"), CASES)
def test_frozen_weights_statistics_and_averages_keep_every_bit(strategy, options):
    model, _, averages, before = trained(make_strategy(strategy, 8), ["logits"], **OPTIONS[options])
    variables = [*model.variables, *averages.variables]
    changed = {id(v) for v, old, new in zip(variables, before, bits(variables), strict=True) if old != new}
    logits = {id(v) for v in [*model.get_layer("logits").variables, *averages.variables[-6:-4]]}  # 4 statistics follow
    counters = {id(v) for v in model.variables if "runs" in v.path or "seed" in v.path}
    assert changed - counters == logits


def test_slots_of_weights_that_are_yet_to_train_are_zero():
    _, optimizer, _, _ = trained(make_strategy("single", 8), ["logits"])
    slots = [v for v in optimizer.variables if "velocity" in v.path or "momentum" in v.path]
    changed = [bool(np.any(keras.ops.convert_to_numpy(slot))) for slot in slots]
    assert (changed.count(True), changed.count(False)) == (4, 20)  # kernel and bias of the logits; 10 other weights


def test_a_frozen_normalization_is_the_same_in_training_and_inference():
    model = network()
    norm = model.get_layer("stem_bn")
    x = np.random.default_rng(1).normal(3, 2, (4, 4, 4, 3)).astype("float32")
    assert np.abs(norm(x, training=True) - norm(x)).max() > 0.1
    freezer(model, "logits").begin_epoch(0)
    np.testing.assert_array_equal(norm(x, training=True), norm(x))


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["logit"], r"Recipe\(trainable_layers=\.\.\.\): ours has no layer 'logit'\. Did you mean 'logits'\?"),
        (["flatten*"], r"\['flatten\*'\] trains no weight of ours\. Name layers with weights"),
        ([], r"\[\] trains no weight of ours"),
    ],
)
def test_a_name_that_trains_nothing_is_refused_before_training(patterns, words):
    with pytest.raises(RecipeError, match=words):
        LayerFreezer(network(), lambda epoch: ["*"] if epoch < 3 else patterns, epochs=4)


def test_one_name_for_a_list_of_names_is_refused():
    with pytest.raises(RecipeError, match=r"must return a list of layer names.*for epoch 0: 'logits'"):
        LayerFreezer(network(), lambda epoch: "logits", epochs=1)


def test_a_smoke_recipe_trains_the_layers_of_the_first_epoch_and_those_of_the_last():
    recipe = Recipe(
        data=data.digits(32), member=lambda index: None, members=1, optimizer=lambda steps: None, epochs=7, loss=LOSS,
        trainable_layers=lambda epoch: [f"layers of epoch {epoch}"],
    )  # fmt: skip
    smoke = recipe.for_smoke_run()
    assert [list(smoke.trainable_layers(epoch)) for epoch in range(smoke.epochs)] == [
        [f"layers of epoch {n}"] for n in (0, 6)
    ]
