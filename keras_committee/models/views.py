"""One network on several views of an image: mirrored and shifted."""

import keras
from keras import ops


def with_views(model: keras.Model, *, mirror: bool = True, shifts: int = 0, name: str | None = None) -> keras.Model:
    """Return a network whose logits are the means of a network's logits for several views of the image.

    The views are the image; with `shifts`, the image shifted up and left, and down and right, by that many pixels, with
    reflected borders; with `mirror`, each of these also mirrored left to right. The image and its mirror image count
    half, the shifted ones together the other half. Each view costs as much as the network.

    Args:
        model: Functional model from one image `(batch, height, width, channels)` to logits `(batch, classes)`.
        mirror: Whether to mirror. Leave it out where a mirrored image belongs to another class, as with digits.
        shifts: Pixels of the shifts, 0 for none.
        name: Name of the new model. None is that of `model` with `_views`.

    Returns:
        Functional model with the input and the output of `model`, which it contains.

    Raises:
        ValueError: If there is no view beside the image, or a shift is negative or as large as the image.

    Source: Jordan 2024, arXiv:2404.00498, the code of the paper ("multi-crop" test-time augmentation).
    """
    height, width, channels = model.input_shape[1:]
    if not 0 <= shifts < min(height, width):
        raise ValueError(f"shifts must be 0 or more pixels, fewer than those of the image. Received: {shifts=}")
    if not (mirror or shifts):
        raise ValueError("There is no view beside the image. Set mirror=True, or shifts to 1 or more pixels.")
    image = keras.Input((height, width, channels), dtype=model.inputs[0].dtype, name="image")
    views, weights = [image], [1.0]
    if shifts:
        padded = ops.pad(image, ((0, 0), (shifts, shifts), (shifts, shifts), (0, 0)), mode="reflect")
        far = 2 * shifts
        views += [padded[:, :height, :width], padded[:, far : far + height, far : far + width]]
        weights = [0.5, 0.25, 0.25]
    if mirror:
        views += [ops.flip(view, axis=2) for view in views]
        weights = [weight / 2 for weight in [*weights, *weights]]
    logits = [model(view) * weight for view, weight in zip(views, weights, strict=True)]
    outputs = keras.layers.Add(dtype="float32", name="mean_logits")(logits)
    return keras.Model(image, outputs, name=name or f"{model.name}_views")
