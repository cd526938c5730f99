"""How does a member of another resolution see the committee's image?"""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_committee")
class Resize(keras.layers.Layer):
    """Bilinear resizing, antialiased where the image shrinks, as two products with constant matrices.

    Gives what `keras.layers.Resizing(height, width, antialias=True)` does. That one is `ScaleAndTranslate` in
    TensorFlow, which XLA cannot compile; `fit` and `predict` compile on a GPU.

    Args:
        height: Rows wanted.
        width: Columns wanted.

    Call arguments:
        image: Tensor `(batch, rows, columns, channels)` of known rows and columns.

    Returns:
        float32 tensor `(batch, height, width, channels)`, under every dtype policy.

    Raises:
        ValueError: If the image's size is not known.
    """

    def __init__(self, height: int, width: int, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.height, self.width = int(height), int(width)

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:3]:
            raise ValueError(f"Resize takes images of a known size. Received: shape={tuple(input_shape)}")
        self._row_matrix = interpolation_matrix(input_shape[1], self.height)
        self._column_matrix = interpolation_matrix(input_shape[2], self.width)
        self.built = True

    def call(self, image):
        image = ops.einsum("hr,brwc->bhwc", ops.convert_to_tensor(self._row_matrix), image)
        return ops.einsum("wr,bhrc->bhwc", ops.convert_to_tensor(self._column_matrix), image)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.height, self.width, input_shape[3])

    def multiply_adds(self, input_shape, output_shape):
        """Of both products, for `flops`."""
        _, rows, columns, channels = input_shape
        return self.height * columns * channels * (rows + self.width)

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return {**config, "height": self.height, "width": self.width}


def interpolation_matrix(input_size: int, output_size: int) -> np.ndarray:
    """The float32 matrix `(after, before)` that resizes one axis: triangles as wide as the coarser of the two grids."""
    scale = input_size / output_size
    centers = (np.arange(output_size) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(input_size) - centers[:, None]) / max(scale, 1))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
