"""How large are the gradients of a network's residual blocks, and how often did each block run?"""

import re

import keras
import numpy as np
import tensorflow as tf

from keras_committee.layers.survival import blocks


class BlockGauges:
    """Reads what is worth knowing of each residual block while a network trains.

    The gradient of a block is the mean absolute gradient of its first convolution's kernel, over the global batch. A
    block is a `StochasticDepth` layer; in a network of constant depth, a convolution named `block_<number>_conv`, as
    our builders name the first of each block.

    Args:
        model: Any Keras model; one without residual blocks has gauges that show nothing.

    Source: the gradient is that of Figure 7 of Huang et al. 2016, arXiv:1603.09382.
    """

    def __init__(self, model: keras.Model):
        self._gated = blocks(model)
        self._kernels = [_first_kernel(block.branch) for block in self._gated] or _first_kernels(model)

    def gradients(self, gradients: list, weights: list):
        """float32 `(blocks,)`: each block's mean absolute gradient, 0 of one that is frozen.

        Called in a replica, with the weights that are trained and the gradient of each.
        """
        known = {id(weight): gradient for weight, gradient in zip(weights, gradients, strict=True)}
        chosen = [known.get(id(kernel), tf.zeros(())) for kernel in self._kernels]
        context = tf.distribute.get_replica_context()
        if chosen and context.num_replicas_in_sync > 1:
            chosen = context.all_reduce("SUM", chosen)
        return tf.stack([tf.reduce_mean(tf.abs(tf.cast(g, "float32"))) for g in chosen]) if chosen else tf.zeros((0,))

    def runs(self) -> np.ndarray:
        """float64 `(blocks,)`: the steps that each block ran in so far; empty for a network of constant depth."""
        return np.array([float(keras.ops.convert_to_numpy(block.runs)) for block in self._gated])


def _first_kernels(model):
    named = {layer.name: layer for layer in model._flatten_layers() if re.fullmatch(r"block_\d+_conv", layer.name)}
    return [_first_kernel(named[name]) for name in sorted(named, key=lambda name: int(name.split("_")[1]))]


def _first_kernel(layer):
    kernels = [weight for weight in layer.trainable_variables if len(weight.shape) > 1]
    if not kernels:
        raise ValueError(f"{layer.name} has no kernel to read a gradient of.")
    return kernels[0]
