"""How is one model asked about many images, each of them once and in order?"""

from collections.abc import Callable, Iterable

import keras
import numpy as np


def log_probabilities(model: keras.Model, batches: Iterable) -> np.ndarray:
    """What `Predictor(model)(batches)` returns; for a model that is asked once."""
    return Predictor(model)(batches)


class Predictor:
    """Runs a member over batches of images, every example once and in order, as often as it is called.

    The model runs in inference mode, with the weights that it has when called; its compilation and graph stay as they
    are. It is compiled on JAX only: on TensorFlow XLA costs 1.7x the time on a CPU, and compiles anew for the ragged
    last batch.

    Args:
        model: Functional model from raw pixels `(batch, height, width, channels)` to logits `(batch, classes)`.

    Call arguments:
        batches: Iterable of image arrays or of tuples that begin with one, such as a `tf.data.Dataset` of
            (images, labels). The last batch may be smaller.

    Returns:
        float32 array `(examples, classes)` of natural logarithms.

    Raises:
        ValueError: If there are no batches.
    """

    def __init__(self, model: keras.Model):
        # A model of its own, so that compiling it leaves the caller's alone.
        self._log_prob_model = transform_outputs(
            model, lambda logits: keras.ops.log_softmax(keras.ops.cast(logits, "float32"))
        )
        self._log_prob_model.compile(jit_compile=keras.backend.backend() == "jax")

    def __call__(self, batches: Iterable) -> np.ndarray:
        log_probs = []
        for batch in batches:
            images = np.asarray(batch[0] if isinstance(batch, (tuple, list)) else batch)
            # Inside a strategy's scope each replica answers the whole batch, one after another; the first suffices.
            log_probs.append(self._log_prob_model.predict_on_batch(images)[: len(images)])
        if not log_probs:
            raise ValueError(
                "batches must hold at least one batch of images. Received none; an iterator already used up?"
            )
        return np.concatenate(log_probs)


def transform_outputs(model: keras.Model, function: Callable, name: str | None = None) -> keras.Model:
    """A new model of the same input whose outputs are `function` of those of `model`, which stays as it is.

    It stands around the model, not at its end: an operation of a loaded model may have the name of one of `function`'s.
    """
    image = keras.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)
    return keras.Model(image, function(model(image)), name=name)
