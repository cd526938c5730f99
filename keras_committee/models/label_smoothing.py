"""Label smoothing of training targets, and weights of their classes, on every backend."""

from typing import Any

import keras
from keras import ops


def smooth_labels(targets, num_classes: int, loss: keras.losses.Loss, smoothing: float):
    """Return the smoothed targets, as probabilities unless they are plain labels, and the loss that accepts them.

    Args:
        targets: Labels, int32 `(batch,)`, or probabilities, float32 `(batch, classes)`.
        num_classes: Number of classes.
        loss: Keras loss. With probabilities a `SparseCategoricalCrossentropy` is replaced by its categorical form.
        smoothing: Fraction in [0, 1) of each target that is spread evenly over all classes.
    """
    is_labels = len(targets.shape) == 1
    if is_labels and not smoothing:
        return targets, loss
    probabilities = ops.one_hot(targets, num_classes) if is_labels else targets
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        loss = keras.losses.CategoricalCrossentropy(from_logits=loss.from_logits, reduction=loss.reduction)
    return probabilities * (1.0 - smoothing) + smoothing / num_classes, loss


def weigh_examples(targets, class_weights) -> dict[str, Any]:
    """Return `{"sample_weight"}`, float32 `(batch,)`, the argument of a Keras loss; nothing without class weights.

    Args:
        targets: Labels, int32 `(batch,)`, or probabilities, float32 `(batch, classes)`, which have the mean weight of
            their classes.
        class_weights: Float32 `(classes,)`, or None.
    """
    if class_weights is None:
        return {}
    weights = ops.convert_to_tensor(class_weights, "float32")
    if len(targets.shape) == 1:
        return {"sample_weight": ops.take(weights, targets)}
    return {"sample_weight": ops.sum(ops.cast(targets, "float32") * weights, axis=-1)}
