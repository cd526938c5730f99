"""The gauges of residual blocks read what the written definitions say."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import Recipe, data, layers, models
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import train_committee
from keras_committee.training.devices import make_strategy
from keras_committee.training.train_step import BlockStats, make_train_step

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def two_blocks(survival):
    image = keras.Input((3,), name="image")
    x = image
    for probability in survival:
        branch = keras.Sequential([keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(3, use_bias=False)])
        x = layers.StochasticDepth(branch, survival=probability)(x)
    return keras.Model(image, keras.layers.Dense(4)(x))


def a_batch(examples=6):
    draw = np.random.default_rng(8)
    return draw.normal(size=(examples, 3)).astype("float32"), draw.integers(0, 4, size=examples).astype("int32")


def measured(model, strategy, batch):
    with strategy.scope():
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.build(model.trainable_variables)
    step = make_train_step(model, optimizer, LOSS, strategy, BlockStats(model))
    shared = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch))
    return step(*next(iter(shared)))[2].numpy()


def test_the_gradient_of_a_block_is_the_mean_absolute_one_of_its_first_kernel():
    model, (images, labels) = two_blocks([1.0, 1.0]), a_batch()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=model(images, training=True))
        )
    kernels = [model.layers[place].branch.trainable_variables[0] for place in (1, 2)]
    expected = [np.abs(gradient).mean() for gradient in tape.gradient(loss, [kernel.value for kernel in kernels])]
    np.testing.assert_allclose(measured(model, make_strategy("single", 6), (images, labels)), expected, rtol=1e-5)


def test_replicas_tell_the_gradient_of_the_global_batch(mirrored):
    batch = a_batch()
    with mirrored.scope():
        keras.utils.set_random_seed(4)
        shared = two_blocks([1.0, 1.0])
    keras.utils.set_random_seed(4)
    alone = two_blocks([1.0, 1.0])
    alone.set_weights(shared.get_weights())
    told = measured(shared, mirrored, batch)
    np.testing.assert_allclose(told, measured(alone, make_strategy("single", 6), batch), rtol=1e-4)


def test_a_closed_block_has_no_gradient_and_did_not_run():
    model = two_blocks([0.0, 1.0])
    gradients = measured(model, make_strategy("single", 6), a_batch())
    assert gradients[0] == 0.0
    assert gradients[1] > 0.0
    assert BlockStats(model).run_counts().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("survival", [None, 0.7])
def test_our_builders_have_a_gauge_for_each_block_in_their_order(survival):
    model = models.resnet(20, classes=10, survival=survival)
    gauges = BlockStats(model)
    markers = [tf.fill(tuple(weight.shape), float(place)) for place, weight in enumerate(model.trainable_variables)]
    places = gauges.mean_abs_gradients(markers, model.trainable_variables).numpy().astype(int)
    firsts = [model.trainable_variables[place] for place in places]
    assert [tuple(kernel.shape)[2:] for kernel in firsts] == (
        [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 2 + [(32, 64)] + [(64, 64)] * 2
    )
    assert sorted(places) == list(places)


def test_a_network_without_blocks_shows_nothing():
    image = keras.Input((3,), name="image")
    model = keras.Model(image, keras.layers.Dense(4)(image))
    gauges = BlockStats(model)
    assert gauges.mean_abs_gradients([tf.ones((3, 4)), tf.ones(4)], model.trainable_variables).shape == (0,)
    assert gauges.run_counts().shape == (0,)


def test_survival_changes_over_the_epochs_and_the_realised_depth_with_it(tmp_path):
    recipe = Recipe(
        data=data.digits(64),
        member=lambda index: models.resnet(8, classes=10, survival=0.7),
        members=1,
        optimizer=lambda steps: keras.optimizers.SGD(0.01),
        epochs=2,
        loss=LOSS,
        survival=lambda epoch: [1.0, 0.0][epoch],
    )
    file = tmp_path / "recipe.py"
    file.write_text("def recipe():\n    pass\n")
    run = Run.create(tmp_path / "run", RecipeFile.read(file), {}, command="test")
    train_committee(run, dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, limit=128)))
    rows = [json.loads(line) for line in run.member(0).history.read_text().splitlines()]
    assert rows[0]["realised_depth"] == 3.0
    # p = 2/3, 1/3 and 0 in the second epoch: the last block never runs.
    assert rows[1]["realised_depth"] <= 2.0
