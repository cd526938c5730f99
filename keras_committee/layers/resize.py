"""Bilinear resizing that XLA can compile."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_committee")
class Resize(keras.layers.Layer):
    """Bilinear resizing with antialiasing, as two products with constant matrices.

    The result equals that of `keras.layers.Resizing(height, width, antialias=True)`. Keras' layer runs
    `ScaleAndTranslate` on TensorFlow, which XLA cannot compile; `fit` and `predict` use XLA on a GPU.

    Args:
        height: Integer, output height in pixels.
        width: Integer, output width in pixels.

    Call arguments:
        image: Tensor `(batch, rows, columns, channels)` with known rows and columns.

    Returns:
        float32 tensor `(batch, height, width, channels)`, under every dtype policy.

    Raises:
        ValueError: If the image size is unknown.
    """

    def __init__(self, height: int, width: int, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # the images and matrices are float32 under every policy
        self.height = int(height)
        self.width = int(width)

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:3]:
            raise ValueError(f"Resize takes images of a known size. Received: shape={tuple(input_shape)}")
        self._row_matrix = _interpolation_matrix(input_shape[1], self.height)
        self._column_matrix = _interpolation_matrix(input_shape[2], self.width)
        self.built = True

    def call(self, image):
        image = ops.einsum("hr,brwc->bhwc", ops.convert_to_tensor(self._row_matrix), image)
        return ops.einsum("wr,bhrc->bhwc", ops.convert_to_tensor(self._column_matrix), image)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.height, self.width, input_shape[3])

    def multiply_adds(self, input_shape, output_shape):
        """Return the multiply-adds of both products for one image. `flops` calls this method."""
        _, rows, columns, channels = input_shape
        return self.height * columns * channels * (rows + self.width)

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return {**config, "height": self.height, "width": self.width}


def _interpolation_matrix(input_size: int, output_size: int) -> np.ndarray:
    """Return the float32 matrix `(output_size, input_size)` that resizes one axis.

    Each row is a triangle as wide as the coarser of the two grids.
    """
    scale = input_size / output_size
    centers = (np.arange(output_size) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(input_size) - centers[:, None]) / max(scale, 1))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
