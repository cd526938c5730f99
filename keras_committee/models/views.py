"""Views of an image, mirrored and shifted: one network on a view, and on several at once."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_committee.selection import View, views_to_try


class ViewModel(keras.Model):
    """A network on one view of the image. It shares the layers and the weights of the network.

    It is made where it is used and never saved: a selection records the view.

    Args:
        network: Functional model from one image `(batch, height, width, channels)` to logits `(batch, classes)`.
        view: The view.

    Raises:
        ValueError: If the shift is as large as the image.
    """

    def __init__(self, network: keras.Model, view: View):
        image = _image_input(network)
        super().__init__(image, network(view_of(image, view)), name=f"{network.name}_view")
        self.view = view

    @property
    def network(self) -> keras.Model:
        """The network, without the view."""
        return next(layer for layer in self.layers if isinstance(layer, keras.Model))


def view_models(networks: Sequence[keras.Model], views: Sequence[View | None]) -> list[keras.Model]:
    """Return for each network its `ViewModel`, or the network itself for the view None; equal pairs share one model."""
    models: dict[tuple[int, View | None], keras.Model] = {}
    for network, view in zip(networks, views, strict=True):
        if (id(network), view) not in models:
            models[id(network), view] = network if view is None else ViewModel(network, view)
    return [models[id(network), view] for network, view in zip(networks, views, strict=True)]


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
    if shifts < 0:
        raise ValueError(f"shifts must be 0 or more pixels. Received: {shifts=}")
    if not (mirror or shifts):
        raise ValueError("There is no view beside the image. Set mirror=True, or shifts to 1 or more pixels.")
    image = _image_input(model)
    views = (View(), *views_to_try(mirror=mirror, shifts=shifts))
    weights = [(1.0 if not shifts else 0.25 if view.shift else 0.5) / (2 if mirror else 1) for view in views]
    logits = [model(view_of(image, view)) * weight for view, weight in zip(views, weights, strict=True)]
    outputs = keras.layers.Add(dtype="float32", name="mean_logits")(logits)
    return keras.Model(image, outputs, name=name or f"{model.name}_views")


def view_of(image, view: View | None):
    """Return a view of images, a tensor of the same shape.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        view: The view; None for the image itself.

    Raises:
        ValueError: If the shift is as large as the image.
    """
    if view is None:
        return image
    if view.shift:
        pixels = abs(view.shift)
        if any(size is not None and pixels >= size for size in image.shape[1:3]):
            raise ValueError(
                f"shifts must be fewer pixels than the image has. Received: shifts={pixels}, an image of "
                f"{image.shape[1]}x{image.shape[2]}"
            )
        image = ops.pad(image, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
        image = image[:, : -2 * pixels, : -2 * pixels] if view.shift > 0 else image[:, 2 * pixels :, 2 * pixels :]
    return ops.flip(image, axis=2) if view.mirror else image


def _image_input(network: keras.Model):
    return keras.Input(network.input_shape[1:], dtype=network.inputs[0].dtype, name="image")
