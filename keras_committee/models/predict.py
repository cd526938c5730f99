"""Predictions of one model on many images, in order."""

from collections.abc import Callable, Iterable

import keras
import numpy as np

from keras_committee.layers.heads import log_softmax


def log_probabilities(model: keras.Model, batches: Iterable) -> np.ndarray:
    """Return `Predictor(model)(batches)`, for a model that predicts once."""
    return Predictor(model)(batches)


class Predictor:
    """Runs a member on batches of images, each example once and in order.

    The model runs in inference mode with its current weights; its compilation and graph are not changed. It uses XLA
    on JAX only: on TensorFlow, XLA takes 1.7 times as long on a CPU and recompiles for a smaller last batch.

    Args:
        model: Functional model from raw pixels `(batch, height, width, channels)` to logits `(batch, classes)`.

    Call arguments:
        batches: Iterable of image arrays, or of tuples that start with one, such as a `tf.data.Dataset` of
            (images, labels). The last batch may be smaller.

    Returns:
        float32 array `(examples, classes)` of log-probabilities, -1e30 for log 0.

    Raises:
        ValueError: If there are no batches.
    """

    def __init__(self, model: keras.Model):
        # A new model, so that compiling it does not change the caller's.
        self._log_prob_model = transform_outputs(model, log_softmax)
        self._log_prob_model.compile(jit_compile=keras.backend.backend() == "jax")

    def __call__(self, batches: Iterable) -> np.ndarray:
        log_probs = []
        for batch in batches:
            images = np.asarray(batch[0] if isinstance(batch, (tuple, list)) else batch)
            # In the scope of a strategy each replica predicts the whole batch and the results are concatenated.
            log_probs.append(self._log_prob_model.predict_on_batch(images)[: len(images)])
        if not log_probs:
            raise ValueError("batches must hold at least one batch of images. Received: none. Is the iterator used up?")
        return np.concatenate(log_probs)


def transform_outputs(model: keras.Model, function: Callable, name: str | None = None) -> keras.Model:
    """Return a new model of the same input whose outputs are `function(model.outputs)`. `model` is not changed.

    It calls `model` instead of extending its graph: operations of a loaded model may have the names of new ones.
    """
    image = keras.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)
    return keras.Model(image, function(model(image)), name=name)
