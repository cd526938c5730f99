"""What do the sub-networks say that stochastic depth trained inside one network?"""

import keras
import numpy as np

from keras_committee.layers.survival import blocks, set_survival
from keras_committee.models.predict import followed_by


def sample_subnetworks(model: keras.Model, images, draws: int, seed: int) -> np.ndarray:
    """Asks `draws` random sub-networks: the implicit ensemble.

    For each draw every block is kept with its survival probability, one gate for all images; kept branches count in
    full. The network runs in inference mode, so batch normalisation uses its moving statistics, and closed branches are
    not computed. The votes are those of `draws` members: heads and metrics turn them into a mean and a spread.

    Args:
        model: Member with `StochasticDepth` layers, from images to logits `(batch, classes)`. Its survival
            probabilities are changed while this runs, and restored.
        images: Raw pixels `(examples, height, width, channels)`.
        draws: Number of sub-networks.
        seed: Integer; the same seed draws the same sub-networks.

    Returns:
        float32 probabilities `(examples, draws, classes)`.

    Raises:
        ValueError: If the model has no stochastic depth, or draws is below 1.

    Source: Huang et al. 2016, arXiv:1603.09382, section 3, "implicit model ensemble".
    """
    survival = [block.survival for block in blocks(model)]
    if not survival:
        raise ValueError(f"model must have StochasticDepth layers to sample from. Received: {model.name!r} without any")
    if draws < 1:
        raise ValueError(f"draws must be at least 1. Received: draws={draws}")
    gates = np.random.default_rng(seed).random((draws, len(survival))) < survival
    predictor = followed_by(model, lambda logits: keras.ops.softmax(keras.ops.cast(logits, "float32")))
    predictor.compile(jit_compile=keras.backend.backend() == "jax")
    try:
        return np.stack([_predict(predictor, images, kept) for kept in gates], axis=1)
    finally:
        set_survival(model, survival)


def _predict(predictor, images, kept):
    """A survival of 0 or 1 closes or opens a branch at inference under either scaling."""
    set_survival(predictor, [float(gate) for gate in kept])
    return predictor.predict(images, batch_size=128, verbose=0)
