"""A training step against its written definition, and the statistics of residual blocks."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import Recipe, data, layers, models
from keras_committee.data.mix import mix_targets
from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import train_committee
from keras_committee.training.devices import make_strategy
from keras_committee.training.distillation import Distillation
from keras_committee.training.train_step import BlockStats, make_train_step

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
    """The weights before and after one step, its loss and its number of correct examples."""
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


@pytest.mark.parametrize("mixed", [False, True])
def test_a_student_learns_from_labels_and_from_softened_answers_for_the_same_images(strategy, mixed):
    images, labels = a_batch()
    targets = mix_targets(labels, 0.7, 5).numpy() if mixed else labels
    with strategy.scope():
        teacher = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(5)])
    teacher.set_weights([np.random.default_rng(8).normal(size=weight.shape) for weight in teacher.weights])
    temperature, weight = 3.0, 0.7
    distillation = Distillation(teacher, temperature, weight)
    (kernel, bias), (new_kernel, new_bias), objective, _ = stepped(
        targets, images, strategy, label_smoothing=0.2, gradient_accumulation_steps=2, distillation=distillation
    )

    def softened(kernel, bias):
        p = np.exp((images.reshape(8, -1) @ kernel.astype("float64") + bias) / temperature)
        return p / p.sum(axis=1, keepdims=True)

    one_hot = targets if mixed else np.eye(5)[labels]
    loss, kernel_gradient, bias_gradient = written(kernel, bias, images, 0.8 * one_hot + 0.2 / 5)
    penalty, student, target = 0.02 * (kernel**2).sum(), softened(kernel, bias), softened(*teacher.get_weights())
    # Hinton et al. 2015, section 2: the gradient of T^2 H(q, p) to the logits is T (p - q).
    crossentropy = temperature**2 * -(target * np.log(student)).sum(axis=1).mean()
    error = temperature * (student - target) / 8
    assert objective == pytest.approx(0.3 * (loss - penalty) + 0.7 * crossentropy + penalty, rel=1e-5)
    kernel_step = 0.3 * (kernel_gradient - 0.04 * kernel) + 0.7 * images.reshape(8, -1).T @ error + 0.04 * kernel
    np.testing.assert_allclose(new_kernel, kernel - RATE * kernel_step, atol=1e-5)
    np.testing.assert_allclose(new_bias, bias - RATE * (0.3 * bias_gradient + 0.7 * error.sum(axis=0)), atol=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_class_weights_multiply_the_loss_of_each_example(strategy, mixed):
    images, labels = a_batch()
    weights = np.array([0.5, 1.0, 3.0, 0.25, 2.0], np.float32)
    targets = mix_targets(labels, 0.7, 5).numpy() if mixed else labels
    (kernel, bias), (new_kernel, new_bias), objective, _ = stepped(
        targets, images, strategy, label_smoothing=0.2, gradient_accumulation_steps=2, class_weights=weights
    )
    shares = (targets if mixed else np.eye(5)[labels]).astype("float64")
    z = images.reshape(8, -1) @ kernel.astype("float64") + bias
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss, error = 0.02 * float((kernel**2).sum()), np.zeros((8, 5))
    for row in range(8):
        weight = sum(share * weights[label] for label, share in enumerate(shares[row]))
        smoothed = 0.8 * shares[row] + 0.2 / 5
        loss -= weight * (smoothed * np.log(p[row])).sum() / 8
        error[row] = weight * (p[row] - smoothed) / 8
    assert objective == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(new_kernel, kernel - RATE * (images.reshape(8, -1).T @ error + 0.04 * kernel), atol=1e-5)
    np.testing.assert_allclose(new_bias, bias - RATE * error.sum(axis=0), atol=1e-5)


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


def two_blocks(survival):
    image = keras.Input((3,), name="image")
    x = image
    for probability in survival:
        branch = keras.Sequential([keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(3, use_bias=False)])
        x = layers.StochasticDepth(branch, survival=probability)(x)
    return keras.Model(image, keras.layers.Dense(4)(x))


def a_block_batch(examples=6):
    draw = np.random.default_rng(8)
    return draw.normal(size=(examples, 3)).astype("float32"), draw.integers(0, 4, size=examples).astype("int32")


def measured(model, strategy, batch):
    with strategy.scope():
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.build(model.trainable_variables)
    step = make_train_step(model, optimizer, SPARSE, strategy, BlockStats(model))
    shared = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch))
    return step(*next(iter(shared)))[2].numpy()


def test_the_gradient_of_a_block_is_the_mean_absolute_one_of_its_first_kernel():
    model, (images, labels) = two_blocks([1.0, 1.0]), a_block_batch()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=model(images, training=True))
        )
    kernels = [model.layers[place].branch.trainable_variables[0] for place in (1, 2)]
    expected = [np.abs(gradient).mean() for gradient in tape.gradient(loss, [kernel.value for kernel in kernels])]
    np.testing.assert_allclose(measured(model, make_strategy("single", 6), (images, labels)), expected, rtol=1e-5)


def test_replicas_return_the_gradient_of_the_global_batch(mirrored):
    batch = a_block_batch()
    with mirrored.scope():
        keras.utils.set_random_seed(4)
        shared = two_blocks([1.0, 1.0])
    keras.utils.set_random_seed(4)
    alone = two_blocks([1.0, 1.0])
    alone.set_weights(shared.get_weights())
    gradients = measured(shared, mirrored, batch)
    np.testing.assert_allclose(gradients, measured(alone, make_strategy("single", 6), batch), rtol=1e-4)


def test_a_closed_block_has_no_gradient_and_did_not_run():
    model = two_blocks([0.0, 1.0])
    gradients = measured(model, make_strategy("single", 6), a_block_batch())
    assert gradients[0] == 0.0
    assert gradients[1] > 0.0
    assert BlockStats(model).run_counts().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("survival", [None, 0.7])
def test_our_builders_have_statistics_for_each_block_in_their_order(survival):
    model = models.resnet(20, classes=10, survival=survival)
    block_stats = BlockStats(model)
    markers = [tf.fill(tuple(weight.shape), float(place)) for place, weight in enumerate(model.trainable_variables)]
    places = block_stats.mean_abs_gradients(markers, model.trainable_variables).numpy().astype(int)
    firsts = [model.trainable_variables[place] for place in places]
    assert [tuple(kernel.shape)[2:] for kernel in firsts] == (
        [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 2 + [(32, 64)] + [(64, 64)] * 2
    )
    assert sorted(places) == list(places)


def test_a_network_without_blocks_has_no_statistics():
    image = keras.Input((3,), name="image")
    model = keras.Model(image, keras.layers.Dense(4)(image))
    block_stats = BlockStats(model)
    assert block_stats.mean_abs_gradients([tf.ones((3, 4)), tf.ones(4)], model.trainable_variables).shape == (0,)
    assert block_stats.run_counts().shape == (0,)


def test_a_block_without_a_kernel_has_the_gradient_zero():
    image = keras.Input((3,), name="image")
    pooled = layers.StochasticDepth(keras.layers.ReLU(), survival=0.7)(image)
    dense = layers.StochasticDepth(keras.layers.Dense(3), survival=0.7)(pooled)
    model = keras.Model(image, dense)
    gradients = [tf.fill((3, 3), 0.25), tf.ones(3)]
    assert BlockStats(model).mean_abs_gradients(gradients, model.trainable_variables).numpy().tolist() == [0.0, 0.25]


@pytest.mark.slow
def test_survival_changes_over_the_epochs_and_the_observed_depth_with_it(tmp_path):
    recipe = Recipe(
        data=data.digits(64),
        member=lambda index: models.resnet(8, classes=10, survival=0.7),
        members=1,
        optimizer=lambda steps: keras.optimizers.SGD(0.01),
        epochs=2,
        loss=SPARSE,
        survival=lambda epoch: [1.0, 0.0][epoch],
    )
    file = tmp_path / "recipe.py"
    file.write_text("def recipe():\n    pass\n")
    run = Run.create(tmp_path / "run", RecipeFile.read(file), {}, command="test")
    train_committee(run, dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, limit=128)))
    rows = run.member(0).read_history()
    assert rows[0]["realised_depth"] == 3.0
    # p = 2/3, 1/3 and 0 in the second epoch: the last block never runs.
    assert rows[1]["realised_depth"] <= 2.0
