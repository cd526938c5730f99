"""Confidence measures of a committee, computed with `keras.ops`.

Every measure lies in [0, 1]; higher means more confident. A cascade stops at the first stage whose confidence reaches
the threshold of that stage.
"""

import keras
from keras import ops

from keras_committee.layers.heads import top_class

CONFIDENCE_MEASURES = ("max_probability", "margin", "entropy", "agreement")


def confidence(measure: str, probabilities, predictions):
    """Return the confidence of a committee in each of its predictions.

    - `"max_probability"`: the largest probability.
    - `"margin"`: the largest probability minus the second largest.
    - `"entropy"`: 1 minus the entropy divided by the entropy of the uniform distribution.
    - `"agreement"`: the fraction of members whose most probable class is that of the committee.

    Args:
        measure: One of `CONFIDENCE_MEASURES`.
        probabilities: Float tensor `(batch, classes)`, the probabilities of the committee.
        predictions: Float tensor `(batch, members, classes)`, probabilities or logits of the members. Only
            `"agreement"` uses it.

    Returns:
        float32 tensor `(batch,)`.

    Raises:
        ValueError: If `measure` is unknown.

    Source: max probability: Wang et al. 2021, arXiv:2012.01988, section 4.
    """
    check_confidence(measure)
    probabilities = ops.cast(probabilities, "float32")
    if measure == "max_probability":
        return ops.max(probabilities, axis=-1)
    if measure == "margin":
        largest = ops.top_k(probabilities, 2)[0]
        return largest[..., 0] - largest[..., 1]
    if measure == "entropy":
        entropy = -ops.sum(probabilities * ops.log(ops.maximum(probabilities, keras.config.epsilon())), axis=-1)
        # Rounding may put the uniform distribution below 0, where even a threshold of 0 would not be reached.
        return ops.maximum(1.0 - entropy / ops.log(ops.cast(probabilities.shape[-1], "float32")), 0.0)
    committee_class = top_class(probabilities)
    agrees = ops.equal(top_class(predictions), ops.expand_dims(committee_class, 1))
    return ops.mean(ops.cast(agrees, "float32"), axis=1)


def check_confidence(measure: str) -> None:
    """Raise `ValueError` unless `measure` is one of `CONFIDENCE_MEASURES`."""
    if measure not in CONFIDENCE_MEASURES:
        raise ValueError(f"confidence must be one of {', '.join(CONFIDENCE_MEASURES)}. Received: {measure!r}")
