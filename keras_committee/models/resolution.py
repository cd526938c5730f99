"""How does one network see images of another size?"""

import keras


@keras.saving.register_keras_serializable(package="keras_committee")
class WithInputSize(keras.Model):
    """The layers of a model, called on images of another size: the same weights, another cost.

    Args:
        model: Functional model of one image, of layers that take images of any size, such as convolutions and global
            pooling.
        size: `(height, width)` of the image that it is to take.
        name: Name of the model; the model's own with the size where None.

    Raises:
        ValueError: If a layer takes images of its own size only.
    """

    def __init__(self, model: keras.Model, size: tuple[int, int], name: str | None = None, **kwargs):
        image = keras.Input((*size, model.inputs[0].shape[3]), dtype=model.inputs[0].dtype, name="image")
        try:
            resized = keras.models.clone_model(model, input_tensors=image, clone_function=lambda layer: layer)
        except ValueError as error:
            raise ValueError(f"{model.name!r} cannot take images of {size[0]}x{size[1]}: {error}") from error
        name = name or f"{model.name}_at_{size[0]}x{size[1]}"
        super().__init__(inputs=image, outputs=resized.outputs[0], name=name, **kwargs)
        # Behind a function, where Keras does not look for weights to save: they are those of the layers.
        self._original = lambda: model
        self._size = [int(side) for side in size]

    def get_config(self):
        model = keras.saving.serialize_keras_object(self._original())
        # Keras marks what it meets twice, but too late for a copy of the config that holds the first.
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
    """The same network on images of `(height, width)`; for a cascade that asks one network at two resolutions.

    Both share their weights, also after they were saved and loaded as members of one cascade.

    Raises:
        ValueError: If a layer takes images of its own size only.

    Source: "self-cascades", Wang et al. 2021, arXiv:2012.01988, section 5.
    """
    return WithInputSize(model, size)
