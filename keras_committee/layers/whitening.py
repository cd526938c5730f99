"""A first convolution that whitens the patches of the images."""

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="keras_committee")
class PatchWhitening(keras.layers.Conv2D):
    """Convolution whose outputs are the principal components of small patches, with variance 1, and their negatives.

    `adapt` computes the kernel from images; training changes only the bias. A member is adapted to the training images
    before its first step. Without `adapt` the outputs are the pixels of the patch and their negatives.

    Args:
        size: Integer >= 1. Height and width of a patch in pixels.
        channels: Integer >= 1. Channels of the images. The layer has `2 * size * size * channels` filters.
        stride: Integer >= 1. Distance between two patches in pixels.
        epsilon: Float > 0, added to the variances of the components, so that those of almost no variance stay small.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, height, width, channels)`.

    Returns:
        Tensor `(batch, (height - size) // stride + 1, (width - size) // stride + 1, filters)`.

    Source: Jordan 2024, arXiv:2404.00498, section 3.2.
    """

    def __init__(self, size: int = 2, channels: int = 3, stride: int = 1, epsilon: float = 5e-4, **kwargs):
        super().__init__(2 * size * size * channels, size, strides=stride, padding="valid", **kwargs)
        self.size, self.channels, self.stride, self.epsilon = size, channels, stride, epsilon

    def build(self, input_shape):
        if input_shape[-1] != self.channels:
            raise ValueError(f"PatchWhitening(channels={self.channels}) received images of {input_shape[-1]} channels.")
        shape = (self.size, self.size, self.channels, self.filters)
        self._kernel = self.add_weight(name="kernel", shape=shape, initializer="zeros", trainable=False)
        self._kernel.assign(self._signed_kernel(np.eye(self.filters // 2)))
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer=self.bias_initializer)
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: self.channels})
        self.built = True

    def adapt(self, images: np.ndarray) -> None:
        """Compute the kernel from all patches of some images.

        Args:
            images: Inputs of the layer, float `(examples, height, width, channels)`.

        Raises:
            ValueError: If the images are smaller than a patch.
        """
        if min(images.shape[1:3]) < self.size:
            raise ValueError(f"PatchWhitening(size={self.size}) received images of {images.shape[1:3]} pixels.")
        windows = np.lib.stride_tricks.sliding_window_view(images, (self.size, self.size), axis=(1, 2))
        patches = np.moveaxis(windows, 3, -1).reshape(-1, self.filters // 2)  # rows of (height, width, channels)
        covariance = np.zeros((self.filters // 2, self.filters // 2))
        for rows in np.array_split(patches, -(-len(patches) // 2**18)):  # float64 for a part at a time
            covariance += rows.T.astype("float64") @ rows
        variances, components = np.linalg.eigh(covariance / len(patches))
        # An eigenvector may have either sign: the largest entry is positive on every machine.
        components *= np.sign(components[np.abs(components).argmax(axis=0), np.arange(len(variances))])
        self._kernel.assign(self._signed_kernel(components / np.sqrt(variances + self.epsilon)))

    def get_config(self):
        own = {"size": self.size, "channels": self.channels, "stride": self.stride, "epsilon": self.epsilon}
        return {**keras.layers.Layer.get_config(self), **own}

    def _signed_kernel(self, components):
        """Return the kernel of some components, the columns of a matrix, and of their negatives."""
        signed = np.concatenate([components, -components], axis=1)
        return signed.reshape(self.size, self.size, self.channels, self.filters).astype("float32")
