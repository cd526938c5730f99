"""How do the outputs of a network from elsewhere become logits?"""

from typing import Literal

import keras
import numpy as np
from keras import ops

from keras_committee.errors import VerificationError
from keras_committee.models.following import followed_by

Outputs = Literal["logits", "softmax removed", "logarithms of its probabilities"]
_SUM = 1e-3  # so near to 1 the rows of probabilities sum
_LEAST = 1e-37  # float32 has hardly a smaller one


def to_logits(model: keras.Model) -> tuple[keras.Model, Outputs]:
    """The model with logits as outputs, and what was done for it. It shares its layers with `model`, which stays.

    A softmax that the model ends with is left out. Where one is deeper inside, which the outputs tell by rows that sum
    to 1, their logarithms are taken: but for a constant in each row, which no head sees, these are logits.

    Raises:
        VerificationError: If it gives a value that is not finite, or equal rows for all images, or ends with a sigmoid.
    """
    last = _last(model)
    if isinstance(last, keras.layers.Softmax) or (type(last) is keras.layers.Activation and _is_softmax(last)):
        return _ending(model, last.input), "softmax removed"
    if _is_softmax(last) and isinstance(last, keras.layers.Dense | keras.layers.Conv2D):
        return _ending(model, _without_activation(last)), "softmax removed"
    rows = _answers(model)
    if are_probabilities(rows):
        logits = followed_by(model, lambda outputs: ops.log(ops.maximum(outputs, _LEAST)), model.name)
        return logits, "logarithms of its probabilities"
    return model, "logits"


def are_probabilities(rows: np.ndarray) -> bool:
    """Whether rows `(examples, classes)` are: none is negative, and each sums to 1 to within 1e-3."""
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=-1) - 1) <= _SUM).all())


def _last(model):
    return model.outputs[0]._keras_history.operation


def _is_softmax(layer):
    return getattr(layer, "activation", None) is keras.activations.softmax


def _ending(model, tensor):
    return keras.Model(model.inputs[0], tensor, name=model.name)


def _without_activation(layer):
    copy = type(layer).from_config({**layer.get_config(), "activation": "linear", "name": f"{layer.name}_logits"})
    logits = copy(layer.input)
    copy.set_weights(layer.get_weights())
    return logits


def _answers(model):
    """To noise of every coarseness and colour."""
    shape = [size or 64 for size in model.inputs[0].shape[1:]]
    draw = np.random.default_rng(7)
    images = draw.uniform(0, 255, (8, 1, 1, shape[2])) * draw.uniform(0, 1, (8, *shape))
    rows = ops.convert_to_numpy(model(images.astype("float32"), training=False)).astype("float64")
    if not np.isfinite(rows).all():
        raise VerificationError(f"{model.name!r} gives values that are not finite numbers. It can be no member.")
    return rows
