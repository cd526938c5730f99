"""Untrained members of a recipe, and the dtype policies of networks."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_committee import schedules
from keras_committee.errors import RecipeError
from keras_committee.flops.counting import has_graph
from keras_committee.precision import training_device
from keras_committee.recipe import Recipe

_ADAPTATION_PIXELS = 5_000 * 32 * 32


def build_member(recipe: Recipe, index: int) -> keras.Model:
    """Build member `index` of a recipe, untrained, under the dtype policy of the recipe. The caller sets the seed.

    Precision `"auto"` is that of this machine; `Run.begin_precision` replaces it by that of the run.

    Raises:
        RecipeError: If it is not one graph of layers from an image of known size to one output.
    """
    precision = training_device().precision if recipe.precision == "auto" else recipe.precision
    with dtype_policy_scope(precision):
        model = recipe.member(index)
    if problem := _structure_problem(model):
        raise RecipeError(f"Recipe(member=...): {problem}")
    return model


def layers_to_adapt(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers that `adapt_layers` adapts: those with a method `adapt`, such as `PatchWhitening`."""
    return [layer for layer in model.layers if callable(getattr(layer, "adapt", None))]


def adaptation_examples(examples: int, image_shape: tuple[int, ...]) -> np.ndarray:
    """Return which training examples to adapt layers to, int64 `(k,)`: evenly spread, with 5 million pixels in all."""
    count = min(examples, max(1, _ADAPTATION_PIXELS // math.prod(image_shape[:2])))
    return np.arange(count) * examples // count


def adapt_layers(model: keras.Model, images: np.ndarray) -> None:
    """Adapt the layers that have a method `adapt` to training images, one after the other.

    Args:
        model: The member, just built. A layer inside a nested model is not adapted.
        images: Training images without augmentation, uint8 `(examples, height, width, channels)`.
    """
    for layer in layers_to_adapt(model):
        inputs = keras.Model(model.inputs, layer.input).predict(images.astype("float32"), batch_size=500, verbose=0)
        layer.adapt(inputs)


def multiply_learning_rates(recipe: Recipe, optimizer: keras.optimizers.Optimizer, model: keras.Model) -> None:
    """Give the weights of a member the learning rates of the recipe.

    Raises:
        RecipeError: If a pattern matches no weight.
    """
    if not recipe.learning_rate_multipliers:
        return
    try:
        schedules.multiply_learning_rates(optimizer, model.trainable_variables, recipe.learning_rate_multipliers)
    except ValueError as error:
        raise RecipeError(f"Recipe(learning_rate_multipliers=...): {error}") from error


def _structure_problem(model: Any) -> str | None:
    """Return why `model` cannot be a member, and the remedy; None if its structure is right."""
    if not isinstance(model, keras.Model):
        return f"it must return a Keras model. Received: {type(model).__name__}"
    if isinstance(model, keras.Sequential) and not model.built:
        return f"{model.name!r} is not built. Begin it with keras.Input((height, width, channels))."
    if not has_graph(model):
        return (
            f"{model.name!r}, a {type(model).__name__}, is not a graph of layers, which can be counted, saved without "
            "code and exported.\n  Define it as a functional model, keras.Model(inputs, outputs); layers of your own "
            "may be part of it."
        )
    if (len(model.inputs), len(model.outputs)) != (1, 1):
        received = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
        return f"{model.name!r} must have one input, the image, and one output, the logits. Received: {received}"
    if None in (shape := tuple(model.inputs[0].shape[1:])):
        return f"{model.name!r} takes images of shape {shape}. Pass the full shape to keras.Input."
    return None


@contextlib.contextmanager
def dtype_policy_scope(name: str) -> Iterator[None]:
    """Create the layers inside the block under the dtype policy `name`, such as `"mixed_bfloat16"`."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
