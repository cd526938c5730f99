"""How is each image of a batch given to the one of many functions that was drawn for it?"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_committee.errors import RecipeError

BRANCHES = 8  # of one choice


def for_each_image(vary: Callable, images, draws):
    """`vary(image, row)` of each image, uint8 `(height, width, channels)`, and its draws: uint8, of the same shape."""

    def one(example):
        return tf.ensure_shape(vary(*example), images.shape[1:])

    return tf.map_fn(one, (images, draws), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8))


def chooser(functions: Sequence[Callable]) -> Callable:
    """A graph function `(number, ...)` that is the one of `functions` with that number; all give tensors of one kind.

    TensorFlow visits each node of every branch that is not taken, 2.4 ms for an image and the 46 branches of policy v0.
    A call that may not be inlined is one node, and a tree of calls has few branches to visit.
    """
    calls = [tf.function(each, autograph=False, experimental_attributes={"_noinline": True}) for each in functions]
    if len(calls) > BRANCHES:
        groups = [chooser(functions[start : start + BRANCHES]) for start in range(0, len(functions), BRANCHES)]
        inner = chooser([lambda number, *rest, group=group: group(number, *rest) for group in groups])
        return lambda number, *rest: inner(number // BRANCHES, number % BRANCHES, *rest)
    return lambda number, *rest: tf.switch_case(number, [lambda call=call: call(*rest) for call in calls])


def check_coloured(images, name: str) -> None:
    """Raise a `RecipeError` where images, `(batch, height, width, channels)`, have not three channels."""
    if images.shape[-1] != 3:
        raise RecipeError(
            f"{name} varies images of three channels, red, green and blue. "
            f"Received: images of shape {tuple(images.shape[1:])}. "
            "Repeat a grey channel three times, or leave the augmentation out."
        )
