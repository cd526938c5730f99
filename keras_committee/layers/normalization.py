"""Batch normalization in one pass over memory instead of five."""

import keras
from keras import ops

from keras_committee.kernels import batch_norm_kernels
from keras_committee.layers import row_window
from keras_committee.layers.activations import quick_gelu

_ACTIVATIONS = {"linear": keras.activations.linear, "relu": ops.relu, "quick_gelu": quick_gelu}


@keras.saving.register_keras_serializable(package="keras_committee")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with TensorFlow's fused operation.

    Config, weights, weight files and results equal those of `keras.layers.BatchNormalization`; each layer loads files
    that the other saved. The fused operation runs if the backend is TensorFlow, the input is a float32, bfloat16 or
    float16 tensor of shape `(batch, height, width, channels)`, there is neither a mask nor renorm, and no statistics
    are exchanged between replicas. In all other cases Keras' own `call` runs. In training on a CPU the operation is our
    own, see `keras_committee.kernels`, where it can be compiled.

    XLA computes the variance of the fused operation as E(x^2) - E(x)^2, which is wrong by far, even negative, where the
    mean is large against the deviation. Under XLA each channel is therefore shifted first: in training by its mean over
    the first example, which is within sqrt(batch) deviations of the mean of the batch, in inference by the moving mean.

    Like Keras, the moving variance uses the biased variance of the batch. The fused operation returns the unbiased
    variance, which is multiplied by (n - 1) / n, where n = batch * height * width.

    Args:
        *args: Positional arguments of `keras.layers.BatchNormalization`.
        synchronized: Boolean or None. Whether training uses the statistics of the batch across all replicas. None, the
            default, means True on TensorFlow and False elsewhere, and stays None in the config, so that a saved model
            loads on every backend. Keras' layer treats None as False.
        **kwargs: Other arguments of `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: Tensor of any rank.
        training: Boolean or None. With `trainable=False` the layer stays in inference mode, as in Keras.
        mask: Boolean tensor with one dimension less than the inputs, or None.
        activation: `"linear"`, `"relu"` or `"quick_gelu"`, the activation that follows: in training on a CPU, in the
            same operation.

    Returns:
        Tensor of the shape of the inputs, in the compute dtype. The statistics are float32.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    def __init__(self, *args, synchronized: bool | None = None, **kwargs):
        self._synchronized_argument = synchronized
        if synchronized is None:
            synchronized = keras.backend.backend() == "tensorflow"
        super().__init__(*args, synchronized=synchronized, **kwargs)

    def call(self, inputs, training=None, mask=None, activation="linear"):
        training = bool(training and self.trainable)
        if mask is not None or not self._can_fuse(inputs, training):
            outputs = super().call(inputs, training=training, mask=mask)
        elif training and (kernels := _kernels_for(inputs)):
            return self._call_kernel(kernels, inputs, [], activation)[1]
        else:
            outputs = self._call_fused(inputs, training)
        return _ACTIVATIONS[activation](outputs)

    def add_and_normalize(self, x, addend, *, activation: str = "linear"):
        """Return `x + addend` and its normalization in training, behind the activation, in one operation.

        Returns:
            `(sum, outputs)`; None, without any effect, where one operation cannot do it.
        """
        can_add = x.shape == addend.shape and x.dtype == addend.dtype == self.compute_dtype
        kernels = _kernels_for(x) if can_add and self.trainable and self._can_fuse(x, True) else None
        return None if kernels is None else self._call_kernel(kernels, x, [addend], activation)

    def get_config(self):
        return {**super().get_config(), "synchronized": self._synchronized_argument}

    def _can_fuse(self, inputs, training):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)  # the CPU kernel supports channels last only
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "bfloat16", "float16")
            and not self.renorm
            and not (training and self.synchronized and row_window.num_replicas() > 1)
        )

    def _call_fused(self, inputs, training):
        import tensorflow as tf

        moving_mean, moving_variance = self._float32(self.moving_mean), self._float32(self.moving_variance)
        shift = tf.zeros_like(moving_mean)
        if _compiles_with_xla():
            inputs = self._float32(inputs)
            shift = tf.stop_gradient(tf.reduce_mean(inputs[:1], (0, 1, 2))) if training else moving_mean
            inputs -= shift
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self._float32(self.gamma) if self.scale else tf.ones_like(moving_mean),
            offset=self._float32(self.beta) if self.center else tf.zeros_like(moving_mean),
            mean=moving_mean - shift,  # read at inference only
            variance=moving_variance,
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            count = tf.cast(tf.size(inputs, out_type=tf.int64) // inputs.shape[-1], tf.float32)
            # multiply_no_nan: the unbiased variance of a single pixel is 0 / 0, and some kernels return NaN.
            self._update_statistics(mean + shift, tf.math.multiply_no_nan(variance, (count - 1.0) / count))
        return ops.cast(outputs, self.compute_dtype)

    def _call_kernel(self, kernels, inputs, addends, activation):
        """Return the sum of the inputs and the addends, and the normalized sum behind the activation."""
        moving_mean = self._float32(self.moving_mean)
        sums, outputs, mean, variance = kernels.keras_committee_batch_norm(
            x=inputs,
            addends=addends,
            scale=self._float32(self.gamma) if self.scale else ops.ones_like(moving_mean),
            offset=self._float32(self.beta) if self.center else ops.zeros_like(moving_mean),
            epsilon=self.epsilon,
            activation=activation,
        )
        self._update_statistics(mean, variance)
        return sums[0] if addends else inputs, ops.cast(outputs, self.compute_dtype)

    def _update_statistics(self, mean, variance):
        """Move the statistics toward the mean and the biased variance of a batch."""
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(self._float32(moving) * self.momentum + value * (1.0 - self.momentum))

    def _moments(self, inputs, mask):
        """Return the mean and the variance of the batch across all replicas.

        Keras computes synchronized variances as E(x^2) - E(x)^2, even for one replica.
        """
        if mask is not None or not self.synchronized:
            return super()._moments(inputs, mask)
        if row_window.num_replicas() == 1:
            return ops.moments(inputs, axes=self._reduction_axes)
        import tensorflow as tf

        def sum_over_replicas(values):
            total = tf.reduce_sum(values, axis=self._reduction_axes, keepdims=True)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, total)

        count = sum_over_replicas(tf.ones_like(inputs))
        mean = tf.math.divide_no_nan(sum_over_replicas(inputs), count)
        variance = tf.math.divide_no_nan(sum_over_replicas(tf.square(inputs - mean)), count)
        return tf.squeeze(mean, self._reduction_axes), tf.squeeze(variance, self._reduction_axes)

    def _float32(self, values):
        return ops.cast(values, "float32")


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Return the moving means and variances of all batch normalizations of a model, Keras' own included."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    return [variable for layer in layers for variable in layer.non_trainable_variables]


def _kernels_for(inputs):
    """Return our own operations for training with `inputs`, on a CPU without XLA; None elsewhere."""
    import tensorflow as tf

    is_known_dtype = keras.backend.standardize_dtype(inputs.dtype) in ("float32", "bfloat16")
    if not is_known_dtype or tf.config.list_logical_devices("GPU") or _compiles_with_xla():
        return None
    return batch_norm_kernels()


def _compiles_with_xla():
    """Return whether the graph in construction belongs to a function with `jit_compile=True`."""
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util  # pyright: ignore[reportAttributeAccessIssue]

    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
