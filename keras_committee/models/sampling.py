"""What do the sub-networks say that stochastic depth trained inside one network?"""

import keras
import numpy as np

from keras_committee.layers.survival import set_survival, stochastic_depth_blocks
from keras_committee.models.predict import transform_outputs


def mc_stochastic_depth(model: keras.Model, images, num_samples: int, seed: int) -> np.ndarray:
    """Asks `num_samples` random sub-networks: the implicit ensemble.

    For each draw every block is kept with its survival probability, one gate for all images; kept branches count in
    full. The network runs in inference mode, so batch normalisation uses its moving statistics, and closed branches are
    not computed. The votes are those of `num_samples` members: heads and metrics turn them into a mean and a spread.

    Args:
        model: Member with `StochasticDepth` layers, from images to logits `(batch, classes)`. Its survival
            probabilities are changed while this runs, and restored.
        images: Raw pixels `(examples, height, width, channels)`.
        num_samples: Number of sub-networks.
        seed: Integer; the same seed draws the same sub-networks.

    Returns:
        float32 probabilities `(examples, draws, classes)`.

    Raises:
        ValueError: If the model has no stochastic depth, or draws is below 1.

    Source: Huang et al. 2016, arXiv:1603.09382, section 3, "implicit model ensemble".
    """
    survival = [block.survival for block in stochastic_depth_blocks(model)]
    if not survival:
        raise ValueError(f"model must have StochasticDepth layers to sample from. Received: {model.name!r} without any")
    if num_samples < 1:
        raise ValueError(f"draws must be at least 1. Received: draws={num_samples}")
    keep_masks = np.random.default_rng(seed).random((num_samples, len(survival))) < survival
    predictor = transform_outputs(model, lambda logits: keras.ops.softmax(keras.ops.cast(logits, "float32")))
    predictor.compile(jit_compile=keras.backend.backend() == "jax")
    try:
        return np.stack([_predict_subnetwork(predictor, images, keep_mask) for keep_mask in keep_masks], axis=1)
    finally:
        set_survival(model, survival)


def _predict_subnetwork(predictor, images, keep_mask):
    """A survival of 0 or 1 closes or opens a branch at inference under either scaling."""
    set_survival(predictor, [float(keep) for keep in keep_mask])
    return predictor.predict(images, batch_size=128, verbose=0)
