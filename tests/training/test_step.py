"""The options of a training step, each against its written definition."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee.data.mix import mix_targets
from keras_committee.errors import RecipeError
from keras_committee.training.devices import make_strategy
from keras_committee.training.train_step import make_train_step

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RATE = 0.3


def linear(strategy, dtype=None):
    keras.utils.set_random_seed(4)
    with strategy.scope():
        image = keras.Input((2, 2, 3), name="image")
        logits = keras.layers.Dense(5, kernel_regularizer=keras.regularizers.L2(0.02), dtype=dtype)(
            keras.layers.Flatten()(image)
        )
        model = keras.Model(image, logits)
        optimizer = keras.optimizers.SGD(RATE)
        optimizer.build(model.trainable_variables)
    return model, optimizer


def a_batch(examples=8):
    draw = np.random.default_rng(3)
    images = draw.normal(size=(examples, 2, 2, 3)).astype("float32")
    return images, draw.integers(0, 5, size=examples, dtype=np.int32)


def written(kernel, bias, images, targets):
    """The loss and its gradients, float64: softmax cross-entropy to the targets plus 0.02 times kernel squared."""
    x = images.reshape(len(images), -1).astype("float64")
    z = x @ kernel + bias
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = -(targets * np.log(p)).sum(axis=1).mean() + 0.02 * (kernel**2).sum()
    error = (p - targets) / len(images)
    return loss, x.T @ error + 0.04 * kernel, error.sum(axis=0)


def stepped(targets, images, strategy, **options):
    """The weights before one step and after it, and the objective and hits it told."""
    model, optimizer = linear(strategy)
    before = model.get_weights()
    step = make_train_step(model, optimizer, SPARSE, strategy, **options)
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors((images, targets)))
    objective, hits, _ = step(*next(iter(batches)))
    return before, model.get_weights(), float(objective), int(hits)


@pytest.fixture(params=["single", "mirrored"])
def strategy(request):
    return make_strategy(request.param, 8)


def test_accumulated_parts_are_the_step_of_the_whole_batch(strategy):
    images, labels = a_batch()
    (kernel, bias), (new_kernel, new_bias), objective, hits = stepped(
        labels, images, strategy, gradient_accumulation_steps=4
    )
    loss, kernel_gradient, bias_gradient = written(kernel, bias, images, np.eye(5)[labels])
    assert objective == pytest.approx(loss, rel=1e-5)
    assert hits == ((images.reshape(8, -1) @ kernel + bias).argmax(axis=1) == labels).sum()
    np.testing.assert_allclose(new_kernel, kernel - RATE * kernel_gradient, atol=1e-5)
    np.testing.assert_allclose(new_bias, bias - RATE * bias_gradient, atol=1e-5)


@pytest.mark.parametrize("norm", [0.2, 100.0])
def test_the_gradient_of_the_whole_batch_is_clipped_by_its_global_norm(strategy, norm):
    images, labels = a_batch()
    (kernel, bias), (new_kernel, new_bias), _, _ = stepped(labels, images, strategy, global_clipnorm=norm)
    _, *gradients = written(kernel, bias, images, np.eye(5)[labels])
    scale = min(1.0, norm / np.sqrt(sum((gradient**2).sum() for gradient in gradients)))
    np.testing.assert_allclose(new_kernel, kernel - RATE * scale * gradients[0], atol=1e-5)
    np.testing.assert_allclose(new_bias, bias - RATE * scale * gradients[1], atol=1e-5)


def test_a_loss_that_is_scaled_is_clipped_as_one_that_is_not(mirrored):
    images, labels = a_batch()
    model, inner = linear(mirrored)
    with mirrored.scope():
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
        optimizer.build(model.trainable_variables)
    step = make_train_step(model, optimizer, SPARSE, mirrored, global_clipnorm=0.2)
    step(*next(iter(mirrored.experimental_distribute_dataset(tf.data.Dataset.from_tensors((images, labels))))))
    _, (new_kernel, _), _, _ = stepped(labels, images, mirrored, global_clipnorm=0.2)  # from the same weights
    np.testing.assert_allclose(model.get_weights()[0], new_kernel, atol=1e-6)


def test_smoothed_labels_share_a_part_with_all_classes(strategy):
    images, labels = a_batch()
    (kernel, bias), (new_kernel, _), objective, hits = stepped(labels, images, strategy, label_smoothing=0.2)
    loss, kernel_gradient, _ = written(kernel, bias, images, 0.8 * np.eye(5)[labels] + 0.2 / 5)
    assert objective == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(new_kernel, kernel - RATE * kernel_gradient, atol=1e-5)
    assert hits == ((images.reshape(8, -1) @ kernel + bias).argmax(axis=1) == labels).sum()


def test_mixed_targets_are_trained_on_and_a_hit_is_their_larger_part(strategy):
    images, labels = a_batch()
    targets = mix_targets(labels, 0.7, 5).numpy()
    (kernel, bias), (new_kernel, _), objective, hits = stepped(targets, images, strategy)
    loss, kernel_gradient, _ = written(kernel, bias, images, targets)
    assert objective == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(new_kernel, kernel - RATE * kernel_gradient, atol=1e-5)
    assert hits == ((images.reshape(8, -1) @ kernel + bias).argmax(axis=1) == labels).sum()


def test_a_batch_that_has_no_equal_parts_is_refused():
    images, labels = a_batch(6)
    with pytest.raises(RecipeError, match="batch of 6 on one device cannot be divided into 4 equal parts"):
        stepped(labels, images, make_strategy("single", 6), gradient_accumulation_steps=4)


def test_a_loss_scale_halves_on_overflow_of_any_replica_and_leaves_the_weights(mirrored):
    model, inner = linear(mirrored, dtype="mixed_float16")
    with mirrored.scope():
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
        optimizer.build(model.trainable_variables)
    images, labels = a_batch()
    images[-1] = 1e6  # of the second replica: infinite in float16
    before = model.get_weights()
    step = make_train_step(model, optimizer, SPARSE, mirrored)
    step(*next(iter(mirrored.experimental_distribute_dataset(tf.data.Dataset.from_tensors((images, labels))))))
    assert float(optimizer.dynamic_scale.numpy()) == 32.0
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
