"""Initial weights that Keras does not have."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_committee")
class PartialIdentity(keras.initializers.Initializer):
    """Kernel of a convolution whose first filters pass on one input channel each; the others are random.

    Filter `i` is 1 at the center pixel of channel `i`, for every `i` below both channel counts.

    Args:
        remainder: Keras initializer of the other filters.

    Source: Jordan 2024, arXiv:2404.00498, section 3.3; Zagoruyko & Komodakis 2017, arXiv:1706.00388 (Dirac).
    """

    def __init__(self, remainder: keras.initializers.Initializer | str = "glorot_uniform"):
        self.remainder = keras.initializers.get(remainder)

    def __call__(self, shape, dtype=None):
        height, width, inputs, outputs = shape
        same = min(inputs, outputs)
        center = ops.reshape(ops.one_hot(height // 2 * width + width // 2, height * width), (height, width, 1, 1))
        identity = ops.cast(center * ops.eye(inputs, same), dtype or keras.config.floatx())
        return ops.concatenate([identity, self.remainder(shape, dtype=dtype)[..., same:]], axis=-1)

    def get_config(self):
        return {"remainder": keras.saving.serialize_keras_object(self.remainder)}
