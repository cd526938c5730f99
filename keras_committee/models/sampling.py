"""Monte Carlo stochastic depth: predictions of random subnetworks."""

import keras
import numpy as np

from keras_committee.layers.heads import log_softmax
from keras_committee.layers.survival import set_survival, stochastic_depth_blocks
from keras_committee.models.predict import transform_outputs


def mc_stochastic_depth(model: keras.Model, images, num_samples: int, seed: int) -> np.ndarray:
    """Return the predictions of `num_samples` random subnetworks, the implicit ensemble of stochastic depth.

    In each subnetwork every block is kept with its survival probability, the same blocks for all images, and a kept
    branch is not scaled. The network runs in inference mode: batch normalization uses its moving statistics, and
    dropped branches are not computed. The result has the shape of members' predictions, so heads and metrics apply.

    Args:
        model: Member with `StochasticDepth` layers, from images to logits `(batch, classes)`. Its survival
            probabilities change during the call and are restored.
        images: Raw pixels `(examples, height, width, channels)`.
        num_samples: Number of subnetworks.
        seed: Integer. The same seed selects the same subnetworks.

    Returns:
        float32 probabilities `(examples, num_samples, classes)`.

    Raises:
        ValueError: If the model has no `StochasticDepth` layers, or `num_samples` is below 1.

    Source: Huang et al. 2016, arXiv:1603.09382, section 3, "implicit model ensemble".
    """
    survival = [block.survival for block in stochastic_depth_blocks(model)]
    if not survival:
        raise ValueError(f"model must have StochasticDepth layers. Received: {model.name!r}, which has none")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1. Received: num_samples={num_samples}")
    keep_masks = np.random.default_rng(seed).random((num_samples, len(survival))) < survival
    predictor = transform_outputs(model, lambda logits: keras.ops.exp(log_softmax(logits)))
    predictor.compile(jit_compile=keras.backend.backend() == "jax")
    try:
        return np.stack([_predict_subnetwork(predictor, images, keep_mask) for keep_mask in keep_masks], axis=1)
    finally:
        set_survival(model, survival)


def _predict_subnetwork(predictor, images, keep_mask):
    # At inference a survival of 0 or 1 drops or keeps a branch under either scaling.
    set_survival(predictor, [float(keep) for keep in keep_mask])
    return predictor.predict(images, batch_size=128, verbose=0)
