"""One network at another image size."""

import keras


@keras.saving.register_keras_serializable(package="keras_committee")
class WithInputSize(keras.Model):
    """The layers of a model on images of another size: the same weights at another cost.

    Args:
        model: Functional model of one image whose layers take images of any size, such as convolutions and global
            pooling.
        size: `(height, width)` of the new image.
        name: Name of the new model. None is the name of `model` with the size.
        **kwargs: Other arguments of `keras.Model`.

    Call arguments:
        image: Tensor `(batch, height, width, channels)` of the new size, in the dtype of `model`.

    Returns:
        The output of `model`.

    Raises:
        ValueError: If a layer requires the original image size.
    """

    def __init__(self, model: keras.Model, size: tuple[int, int], name: str | None = None, **kwargs):
        image = keras.Input((*size, model.inputs[0].shape[3]), dtype=model.inputs[0].dtype, name="image")
        try:
            resized = keras.models.clone_model(model, input_tensors=image, clone_function=lambda layer: layer)
        except ValueError as error:
            raise ValueError(f"{model.name!r} cannot take images of {size[0]}x{size[1]}: {error}") from error
        name = name or f"{model.name}_at_{size[0]}x{size[1]}"
        super().__init__(inputs=image, outputs=resized.outputs[0], name=name, **kwargs)
        # In a function, which Keras does not search for weights: they are saved once, with the layers.
        self._original = lambda: model
        self._size = [int(side) for side in size]

    def get_config(self):
        model = keras.saving.serialize_keras_object(self._original())
        # Keras sets this id only when it meets an object for the second time, after this copy of the config exists.
        model["shared_object_id"] = id(self._original())
        return {
            "model": model,
            "size": self._size,
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})


def with_input_size(model: keras.Model, size: tuple[int, int]) -> keras.Model:
    """Return the same network for images of another size, for cascades that run one network at two resolutions.

    Both share their weights, even after they are saved and loaded as members of one cascade.

    Args:
        model: As in `WithInputSize`.
        size: `(height, width)` of the new image.

    Raises:
        ValueError: If a layer requires the original image size.

    Source: "self-cascades", Wang et al. 2021, arXiv:2012.01988, section 5.
    """
    return WithInputSize(model, size)
