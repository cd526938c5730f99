"""Activations that Keras does not have."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_committee")
class QuickGELU(keras.layers.Layer):
    """`x * sigmoid(1.702 * x)`, the approximation of the Gaussian error linear unit that needs no error function.

    Call arguments:
        inputs: Float tensor of any shape.

    Returns:
        Tensor of the same shape and dtype.

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2.
    """

    def call(self, inputs):
        return quick_gelu(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


def quick_gelu(inputs):
    """Return `inputs * sigmoid(1.702 * inputs)`, see `QuickGELU`."""
    return inputs * ops.sigmoid(ops.cast(1.702, inputs.dtype) * inputs)
