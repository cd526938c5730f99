"""How sure is a committee of its answer?

Every measure lies in [0, 1], and more is surer. A cascade answers early where the confidence of the members asked so
far reaches a threshold.
"""

import keras
from keras import ops

CONFIDENCE_MEASURES = ("max_probability", "margin", "entropy", "agreement")


def confidence(measure: str, probabilities, predictions):
    """The confidence of a committee in each of its answers.

    - `"max_probability"`: the largest probability.
    - `"margin"`: the largest probability less the second largest.
    - `"entropy"`: 1 less the entropy over that of the uniform distribution.
    - `"agreement"`: the share of members whose own most probable class is the committee's.

    Args:
        measure: One of `CONFIDENCE_MEASURES`.
        probabilities: Float tensor `(batch, classes)`, what the committee says.
        predictions: Float tensor `(batch, members, classes)`, probabilities or logits of its members; read by `"agreement"`
            alone.

    Returns:
        float32 tensor `(batch,)`.

    Raises:
        ValueError: If there is no such measure.

    Source: max probability: Wang et al. 2021, arXiv:2012.01988, section 4.
    """
    check_confidence(measure)
    probabilities = ops.cast(probabilities, "float32")
    if measure == "max_probability":
        return ops.max(probabilities, axis=-1)
    if measure == "margin":
        best, second = ops.unstack(ops.top_k(probabilities, 2)[0], axis=-1)
        return best - second
    if measure == "entropy":
        entropy = -ops.sum(probabilities * ops.log(ops.maximum(probabilities, keras.config.epsilon())), axis=-1)
        # Rounding may put the uniform distribution below 0, where no threshold would let it answer.
        return ops.maximum(1.0 - entropy / ops.log(ops.cast(probabilities.shape[-1], "float32")), 0.0)
    top = ops.argmax(probabilities, axis=-1)
    agrees = ops.equal(ops.argmax(predictions, axis=-1), ops.expand_dims(top, 1))
    return ops.mean(ops.cast(agrees, "float32"), axis=1)


def check_confidence(measure: str) -> None:
    """Raises ValueError unless `measure` is one of `CONFIDENCE_MEASURES`."""
    if measure not in CONFIDENCE_MEASURES:
        raise ValueError(f"confidence must be one of {', '.join(CONFIDENCE_MEASURES)}. Received: {measure!r}")
