"""The program of K members against a plain loop that trains one member with Keras' own stateless functions."""

import pathlib

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("needs KERAS_BACKEND=jax", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_committee import data
from keras_committee.layers import stochastic_depth_blocks
from keras_committee.recipe_file import RecipeFile
from keras_committee.schedules import multiply_learning_rates, scale_learning_rate
from keras_committee.stacked.program import MODES, StackedProgram, pad_images, read_images
from keras_committee.stacked.train import build_program

pytestmark = pytest.mark.jax
STEPS = 20


def build(**parameters):
    file = RecipeFile.read(pathlib.Path(__file__).with_name("small.py"))
    return file.build(file.resolve([f"{name}={value}" for name, value in parameters.items()]))


@pytest.fixture(scope="module")
def splits():
    return build().data.load()


def batches(splits, recipe, members):
    arrays = [splits.batch_indices(recipe.seed + index, 0, STEPS) for index in range(members)]
    return (np.stack(parts) for parts in zip(*arrays, strict=True))


def train_alone(recipe, splits, index):
    """Train one member for STEPS steps: a plain loop, Keras' loss and optimizer, one jitted step."""
    keras.utils.set_random_seed(recipe.seed + index)
    model = recipe.member(index)
    optimizer = recipe.optimizer(recipe.epochs * splits.steps_per_epoch)
    scale_learning_rate(optimizer, recipe.learning_rate_scale(index))
    optimizer.build(model.trainable_variables)
    multiply_learning_rates(optimizer, model.trainable_variables, recipe.learning_rate_multipliers)
    statistics = [i for i, v in enumerate(model.non_trainable_variables) if v.name.startswith("moving_")]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None)
    class_weights = np.array([1.0, 0.5, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "float32")

    @jax.jit
    def step(weights, variables, state, images, targets, example_weights):
        def objective(weights):
            logits, new, penalties = model.stateless_call(weights, variables, images, training=True, return_losses=True)
            return jnp.mean(example_weights * loss(targets, logits)) + sum(penalties), new

        (value, variables), gradients = jax.value_and_grad(objective, has_aux=True)(weights)
        norm = jnp.sqrt(sum(jnp.vdot(gradient, gradient) for gradient in gradients))
        gradients = [gradient * jnp.minimum(1.0, 1.0 / norm) for gradient in gradients]
        weights, state = optimizer.stateless_apply(state, gradients, weights)
        return weights, variables, state, value

    indices, draws = splits.batch_indices(recipe.seed + index, 0, STEPS)
    weights, variables = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
    state, losses = [v.value for v in optimizer.variables], []
    slow, total = [*weights, *(variables[i] for i in statistics)], recipe.epochs * splits.steps_per_epoch
    for number, (batch, rows) in enumerate(zip(indices, draws, strict=True), start=1):
        images = np.pad(splits.train.images.numpy()[batch], ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        crops = np.stack([image[y : y + 32, x : x + 32] for image, (y, x, _) in zip(images, rows, strict=True)])
        labels = splits.train.labels[batch]
        targets, inputs = np.eye(10, dtype="float32")[labels] * 0.9 + 0.01, crops.astype("float32")
        weights, variables, state, value = step(weights, variables, state, inputs, targets, class_weights[labels])
        losses.append(float(value))
        if number % 3 == 0:  # Lookahead, from its definition
            share, fast = 0.2 + 0.6 * number / total, [*weights, *(variables[i] for i in statistics)]
            slow = [share * old + (1 - share) * new for old, new in zip(slow, fast, strict=True)]
            weights, variables = slow[: len(weights)], list(variables)
            for i, value in zip(statistics, slow[len(weights) :], strict=True):
                variables[i] = value
    assert len(statistics) == 2
    return losses, weights, variables


@pytest.mark.parametrize("mode", MODES)
def test_a_member_equals_the_one_trained_alone(splits, mode):
    recipe = build()
    _, program = build_program(recipe, [0, 1, 2], splits, mode)
    indices, draws = batches(splits, recipe, 3)
    factors = np.array([recipe.learning_rate_scale(index) for index in range(3)])
    state, losses, *_ = program.train_epoch(
        program.initial_state(), jnp.asarray(splits.train.images.numpy()), jnp.asarray(splits.train.labels),
        indices, draws, factors,
    )  # fmt: skip
    for position in range(3):
        expected, weights, variables = train_alone(recipe, splits, position)
        np.testing.assert_allclose(losses[position], expected, atol=1e-4)
        for result, target in zip([*state.weights, *state.variables], [*weights, *variables], strict=True):
            np.testing.assert_allclose(result[position], target, atol=1e-4)


def test_members_do_not_depend_on_their_neighbors(splits):
    recipe = build()
    indices, draws = batches(splits, recipe, 3)
    images, labels = jnp.asarray(splits.train.images.numpy()), jnp.asarray(splits.train.labels)
    _, program = build_program(recipe, [0, 1, 2], splits)
    state, *_ = program.train_epoch(program.initial_state(), images, labels, indices, draws)
    _, other = build_program(recipe, [2], splits)
    alone, *_ = other.train_epoch(other.initial_state(), images, labels, indices[2:], draws[2:])
    for result, target in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(np.asarray(result[2]), np.asarray(target[0]), atol=1e-5)


def test_each_member_has_its_own_gates(splits):
    recipe = build()
    members, program = build_program(recipe, [0, 1, 2], splits)
    blocks = stochastic_depth_blocks(members[0])
    indices, draws = batches(splits, recipe, 3)
    state = program.set_variable(program.initial_state(), [block._survival for block in blocks], [0.5])
    state, *_ = program.train_epoch(
        state, jnp.asarray(splits.train.images.numpy()), jnp.asarray(splits.train.labels), indices, draws
    )
    runs = program.values_of(state, [block.run_count for block in blocks])
    assert runs.shape == (3, 1)
    assert len(set(runs[:, 0])) > 1
    assert ((runs > 2) & (runs < 18)).all()


def test_predictions_are_those_of_the_members_with_their_averages(splits):
    recipe = build()
    members, program = build_program(recipe, [0, 1, 2], splits)
    indices, draws = batches(splits, recipe, 3)
    train_images, labels = jnp.asarray(splits.train.images.numpy()), jnp.asarray(splits.train.labels)
    state, *_ = program.train_epoch(program.initial_state(), train_images, labels, indices, draws)
    images = splits.test.images.numpy()[:37]
    log_probs = program.log_probabilities(state, images, batch_size=10)
    assert log_probs.shape == (3, 37, 10)
    for position, model in enumerate(members):
        program.assign_member(state, position, model)
        expected = jax.nn.log_softmax(model(images.astype("float32"), training=False))
        np.testing.assert_allclose(log_probs[position], expected, atol=1e-4)
        np.testing.assert_array_equal(model.trainable_variables[0].value, state.averages[0][position])


@pytest.mark.parametrize("flip", [False, True, "alternate"])
@pytest.mark.parametrize("pad", [0, 3])
def test_images_are_augmented_as_in_every_other_training(flip, pad):
    rng = np.random.default_rng(3)
    images, indices = rng.integers(0, 256, (12, 9, 7, 3), dtype=np.uint8), rng.integers(0, 12, 30)
    augment = data.pad_crop_flip(pad, flip=flip)
    draws = augment.draw(rng, 30)
    result = read_images(pad_images(jnp.asarray(images), augment), jnp.asarray(indices), jnp.asarray(draws), augment)
    padded = np.pad(images[indices], ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    for image, source, (top, left, is_flipped) in zip(np.asarray(result), padded, draws, strict=True):
        crop = source[top : top + 9, left : left + 7]
        np.testing.assert_array_equal(image, crop[:, ::-1] if is_flipped else crop)


def network(filters):
    layers = [keras.layers.Conv2D(filters, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


def test_members_of_two_architectures_are_refused():
    networks = [network(3), network(4)]
    with pytest.raises(ValueError, match=r"must have the same layers\. Model 1 differs"):
        StackedProgram(networks, keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy())


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"one of vmap, packed, sequential\. Received: mode='fast'"):
        StackedProgram([network(3)], keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(), mode="fast")
