"""One member: the step is the written definition, replicas change nothing, and the folder is complete."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import layers
from keras_committee.errors import RecipeError
from keras_committee.training.devices import make_strategy
from keras_committee.training.train_step import make_train_step
from keras_committee.training_run import check_fit

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small_network(l2=0.01):
    image = keras.Input((6, 6, 3), name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(l2))(x)
    x = layers.BatchNormalization(synchronized=True, momentum=0.7)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(image, keras.layers.Dense(5)(x))


def a_batch(examples=8, shape=(6, 6, 3), classes=5):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, size=(examples, *shape), dtype=np.uint8)
    return images, rng.integers(0, classes, size=examples, dtype=np.int32)


def weights_after_steps(strategy, steps=3):
    keras.utils.set_random_seed(11)
    images, labels = a_batch()
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat(steps)
    with strategy.scope():
        model = small_network()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
        optimizer.build(model.trainable_variables)
    step = make_train_step(model, optimizer, CROSSENTROPY, strategy)
    shared = strategy.experimental_distribute_dataset(batches)
    results = [[float(value) for value in step(*batch)[:2]] for batch in shared]
    return model.get_weights(), results


def test_one_step_is_the_written_gradient_step():
    image = keras.Input((2, 2, 3), name="image")
    logits = keras.layers.Dense(5, kernel_regularizer=keras.regularizers.L2(0.02))(keras.layers.Flatten()(image))
    model = keras.Model(image, logits)
    kernel, bias = model.get_weights()
    images, labels = a_batch(examples=7, shape=(2, 2, 3))
    images = (images / 100).astype("float32")

    x = images.reshape(7, 12).astype("float64")
    z = x @ kernel + bias
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    error = (p - np.eye(5)[labels]) / 7
    loss = -np.log(p[np.arange(7), labels]).mean() + 0.02 * (kernel**2).sum()

    optimizer = keras.optimizers.SGD(0.3)
    step = make_train_step(model, optimizer, CROSSENTROPY, make_strategy("single", 7))
    objective, hits, _ = step(images, labels)

    np.testing.assert_allclose(objective, loss, rtol=1e-5)
    assert int(hits) == (z.argmax(axis=1) == labels).sum()
    np.testing.assert_allclose(model.get_weights()[0], kernel - 0.3 * (x.T @ error + 0.04 * kernel), atol=1e-5)
    np.testing.assert_allclose(model.get_weights()[1], bias - 0.3 * error.sum(axis=0), atol=1e-5)


def test_two_replicas_train_as_one_device_does_on_the_same_global_batch():
    one, results_of_one = weights_after_steps(make_strategy("single", 8))
    two, results_of_two = weights_after_steps(make_strategy("mirrored", 8))
    np.testing.assert_allclose(results_of_two, results_of_one, rtol=1e-5)
    for ours, theirs in zip(two, one, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_finished_member_leaves_a_model_a_history_and_scalars(trained):
    run, recipe = trained
    folder = run.member(1)
    assert keras.saving.load_model(folder.model, compile=False).name == "linear_1"
    rows = folder.read_history()
    steps = recipe.data.load().steps_per_epoch
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, steps), (2, 2 * steps)]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert set(rows[0]) == {
        "epoch", "step", "learning_rate", "loss", "accuracy", "images_per_second",
        "validation_accuracy", "validation_nll", "validation_ece", "validation_brier",
    }  # fmt: skip


def test_members_start_with_different_weights(trained):
    run, _ = trained
    kernels = [keras.saving.load_model(run.member(index).model).get_weights()[0] for index in range(3)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    assert np.abs(kernels[1] - kernels[2]).max() > 0.01


def test_a_model_for_other_classes_than_the_data_has_is_refused(new_run):
    _, train = new_run(["classes=9"])
    with pytest.raises(RecipeError, match=r"member 0 .* outputs of shape \(9,\); the data has 10 classes"):
        train()


def test_a_model_for_other_images_than_the_data_has_is_refused(trained):
    _, recipe = trained
    with pytest.raises(RecipeError, match=r"takes images of shape \(6, 6, 3\); the data has \(32, 32, 3\)"):
        check_fit(small_network(), recipe.data.load(), 0)


def test_C08_a_member_that_returns_probabilities_is_refused(trained):
    _, recipe = trained
    image = keras.Input((32, 32, 3))
    flat = keras.layers.Flatten()(image)
    powers = keras.ops.exp(keras.layers.Dense(10)(keras.layers.Rescaling(1 / 255)(flat)))
    ends_with_softmax = [
        keras.layers.Dense(10, activation="softmax")(flat),
        keras.layers.Softmax()(keras.layers.Dense(10)(flat)),
        keras.layers.Activation("softmax")(keras.layers.Dense(10)(flat)),
        keras.ops.softmax(keras.layers.Dense(10)(flat)),
        keras.layers.Activation("linear", dtype="float32")(keras.layers.Dense(10, "softmax", dtype="float16")(flat)),
        keras.Sequential([keras.layers.Dense(10, "softmax")])(flat),
    ]
    splits = recipe.data.load()
    ends = [
        *((end, "ends with a softmax") for end in ends_with_softmax),
        (keras.layers.Dense(10, activation="sigmoid")(flat), "ends with a sigmoid"),
        (powers / keras.ops.sum(powers, axis=-1, keepdims=True), "returns probabilities"),
    ]
    for end, words in ends:
        with pytest.raises(RecipeError, match=rf"member 4 .* {words}\. A member must return logits"):
            check_fit(keras.Model(image, end), splits, 4)
