"""What is a member before its first step?"""

import keras
import tensorflow as tf

from keras_committee.data import Splits
from keras_committee.errors import RecipeError
from keras_committee.models.precision import under_policy
from keras_committee.recipe import Recipe
from keras_committee.training.averages import Averages
from keras_committee.training.initial import copy_weights
from keras_committee.training.state import MemberState


def build_member(recipe: Recipe, index: int, splits: Splits, strategy: tf.distribute.Strategy) -> MemberState:
    """The untrained member, its optimizer and its moving averages, built under `recipe.seed + index`.

    Raises:
        RecipeError: If the model does not fit the data, or the initial weights do not fit the model.
    """
    keras.utils.set_random_seed(recipe.seed + index)
    with strategy.scope():
        with under_policy(recipe.precision):
            model = recipe.member(index)
        check_fit(model, splits, index)
        copy_weights(recipe.initial, model, index)
        optimizer = recipe.optimizer(recipe.epochs * splits.steps_per_epoch)
        if recipe.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
    averages = Averages(model, recipe.ema, strategy) if recipe.ema is not None else None
    return MemberState(model, optimizer, averages)


def check_fit(model: keras.Model, splits: Splits, index: int) -> None:
    """Raise a RecipeError unless `model` takes the images of `splits` gives one logit for each of its classes, and can
    be trained."""
    takes, gives = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    has, wants = tuple(splits.train.image_shape), (len(splits.classes),)
    if takes != has:
        raise RecipeError(f"member {index} ({model.name}) takes images of shape {takes}; the data has {has}.")
    if _gives_probabilities(model):
        raise RecipeError(
            f"member {index} ({model.name}) ends with a softmax. A member returns logits: leave the activation of its "
            "last layer out."
        )
    if not model.trainable_variables:
        raise RecipeError(
            f"member {index} ({model.name}) has no weight to train. `keras-committee adopt` takes it as it is."
        )
    if gives != wants:
        raise RecipeError(
            f"member {index} ({model.name}) has outputs of shape {gives}; the data has {wants[0]} classes.\n"
            "  A member returns one logit for each class: give its builder `classes` to match the data."
        )


def _gives_probabilities(model: keras.Model) -> bool:
    last = model.outputs[0]._keras_history.operation
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax
