"""What is computed of a model's outputs, in a model around it?"""

from collections.abc import Callable

import keras


def followed_by(model: keras.Model, function: Callable, name: str | None = None) -> keras.Model:
    """A new model of the same input whose outputs are `function` of those of `model`, which stays as it is.

    It stands around the model, not at its end: an operation of a loaded model may have the name of one of `function`'s.
    """
    image = keras.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)
    return keras.Model(image, function(model(image)), name=name)
