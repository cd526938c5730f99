"""One training step, on one device or on several replicas."""

import keras
import numpy as np
import tensorflow as tf

from keras_committee.errors import RecipeError
from keras_committee.layers.fusion import fused_layers
from keras_committee.layers.survival import stochastic_depth_blocks
from keras_committee.models.blocks import block_kernels
from keras_committee.models.label_smoothing import smooth_labels, weigh_examples
from keras_committee.training.averaging import SlowWeights, WeightEMA
from keras_committee.training.devices import uses_xla
from keras_committee.training.distillation import Distillation


class BlockStats:
    """Statistics of each residual block of a network in training.

    The gradient of a block is the mean absolute gradient of its first convolution's kernel, over the global batch; see
    `models.blocks.block_kernels`. The gradient of a block without a kernel is 0.

    Args:
        model: Any Keras model; without residual blocks all statistics are empty.

    Source: the gradient is that of Figure 7 of Huang et al. 2016, arXiv:1603.09382.
    """

    def __init__(self, model: keras.Model):
        self._stochastic_depth_blocks = stochastic_depth_blocks(model)
        self._kernels = block_kernels(model)

    def mean_abs_gradients(self, gradients: list, weights: list):
        """Return the mean absolute gradient of each block, float32 `(blocks,)`; 0 for a frozen block.

        Call it in a replica context.

        Args:
            gradients: Gradient of each of `weights`.
            weights: The trainable weights.
        """
        gradient_by_weight_id = {id(weight): gradient for weight, gradient in zip(weights, gradients, strict=True)}
        kernel_gradients = [gradient_by_weight_id.get(id(kernel), tf.zeros(())) for kernel in self._kernels]
        if not kernel_gradients:
            return tf.zeros((0,))
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            kernel_gradients = context.all_reduce("SUM", kernel_gradients)
        return tf.stack([tf.reduce_mean(tf.abs(tf.cast(gradient, "float32"))) for gradient in kernel_gradients])

    def run_counts(self) -> np.ndarray:
        """Return in how many steps each block ran so far, float64 `(blocks,)`; empty without stochastic depth."""
        return np.array([float(keras.ops.convert_to_numpy(block.run_count)) for block in self._stochastic_depth_blocks])


def make_train_step(
    model: keras.Model,
    optimizer,
    loss: keras.losses.Loss,
    strategy: tf.distribute.Strategy,
    block_stats: BlockStats | None = None,
    *,
    gradient_accumulation_steps: int = 1,
    global_clipnorm: float | None = None,
    label_smoothing: float = 0.0,
    ema: WeightEMA | None = None,
    slow_weights: SlowWeights | None = None,
    distillation: Distillation | None = None,
    class_weights: np.ndarray | None = None,
):
    """Return a function of one global batch, `(images, targets)`, that updates the currently trainable weights.

    The targets are labels, int32 `(batch,)`, or probabilities, float32 `(batch, classes)`, as mixing augmentations
    yield them. The function returns, over the whole global batch: the mean loss including penalties, the number of
    examples whose top class was correct, and the gradients `(blocks,)` of `block_stats`.

    Args:
        model: Maps images to logits `(batch, classes)`.
        optimizer: A Keras optimizer, built.
        loss: Keras loss of labels `(batch,)` and logits. With probabilities as targets, a
            `SparseCategoricalCrossentropy` is replaced by its categorical form.
        strategy: Where the step runs; each replica takes an equal part of the batch.
        block_stats: Statistics of the residual blocks, or None.
        gradient_accumulation_steps: Number of parts in which a replica processes its batch, one after another: the same
            update in less memory. Batch normalization uses the statistics of each part.
        global_clipnorm: Maximum global norm of the gradient of the whole batch, or None.
        label_smoothing: Fraction in [0, 1) of each target that is spread evenly over all classes (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
        ema: Moving averages to update after the weights, or None.
        slow_weights: Slow weights of Lookahead to update after the weights and before the averages, or None.
        distillation: What is learned from a teacher, or None.
        class_weights: Weight of the loss of each class, float32 `(classes,)`, as in Keras' `fit`: the mean over the
            batch is not divided by their sum. None is 1 for all.

    Raises:
        RecipeError: When traced, if a replica's batch cannot be divided into `gradient_accumulation_steps` equal parts.
    """
    replicas = strategy.num_replicas_in_sync
    # Keras' optimizers clip before they sum over the replicas, and its loss scaling looks at one replica only: where
    # the size of the gradient matters, it is summed here first.
    sum_before_apply = replicas > 1 and (global_clipnorm is not None or hasattr(optimizer, "dynamic_scale"))
    weights = model.trainable_variables

    def compute_gradients(images, targets):
        """Return loss, correct predictions and gradients of a part of a replica's batch; the parts add up."""
        soft_targets = distillation.soft_targets(images) if distillation else None
        with tf.GradientTape(watch_accessed_variables=False) as tape:  # frozen layers are not even recorded
            tape.watch([weight.value for weight in weights])
            logits = tf.cast(model(images, training=True), tf.float32)
            smoothed_targets, loss_fn = smooth_labels(targets, logits.shape[-1], loss, label_smoothing)
            data_loss = loss_fn(smoothed_targets, logits, **weigh_examples(targets, class_weights))
            if distillation:
                data_loss = distillation.loss(data_loss, soft_targets, logits, loss)
            # Keras divides `loss` by the replicas already; the penalties are the same on each and must be, too.
            objective = (data_loss + sum(model.losses) / replicas) / gradient_accumulation_steps
            scaled_loss = optimizer.scale_loss(objective)
        gradients = tape.gradient(scaled_loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        num_correct = tf.math.count_nonzero(tf.equal(tf.argmax(logits, axis=-1), _class_indices(targets)))
        return objective, num_correct, gradients

    def replica_step(images, targets):
        objective, num_correct, gradients = _accumulate(compute_gradients, gradient_accumulation_steps, images, targets)
        block_gradients = block_stats.mean_abs_gradients(gradients, weights) if block_stats else tf.zeros((0,))
        if sum_before_apply:
            gradients = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
        if global_clipnorm is not None:  # Pascanu et al. 2013, arXiv:1211.5063
            gradients, _ = tf.clip_by_global_norm(gradients, global_clipnorm * optimizer.scale_loss(1.0))
        if sum_before_apply:  # the optimizer sums them once more
            gradients = [gradient / replicas for gradient in gradients]
        optimizer.apply(gradients, weights)
        return objective, num_correct, block_gradients

    supports_xla = all(layer.supports_jit for layer in model._flatten_layers())
    xla = uses_xla(strategy) and supports_xla and (distillation is None or distillation.supports_xla)

    @tf.function(jit_compile=xla, reduce_retracing=True)
    def step(images, targets):
        with fused_layers(model):
            objective, num_correct, block_gradients = strategy.run(replica_step, args=(images, targets))
        if slow_weights:
            slow_weights.update(optimizer.iterations)
        if ema:
            ema.update(optimizer.iterations)
        return (
            strategy.reduce("SUM", objective, axis=None),
            strategy.reduce("SUM", num_correct, axis=None),
            strategy.reduce("MEAN", block_gradients, axis=None),  # equal on all replicas
        )

    return step


def _accumulate(compute_gradients, num_parts: int, images, targets):
    """Return the sums of what `compute_gradients` returns for equal parts of the batch, one part after another.

    The loop is unrolled: replicas cannot exchange batch statistics inside a `tf.while_loop`.
    """
    if images.shape[0] is not None and images.shape[0] % num_parts:
        raise RecipeError(
            f"a batch of {images.shape[0]} on one device cannot be divided into {num_parts} equal parts. Choose "
            "Recipe(gradient_accumulation_steps=...) so that it divides the batch of each device."
        )
    sums = compute_gradients(*(_part_rows(tensor, 0, num_parts) for tensor in (images, targets)))
    for part_index in range(1, num_parts):
        with tf.control_dependencies(tf.nest.flatten(sums)):  # or TensorFlow would keep all parts in memory at once
            part = [tf.identity(_part_rows(tensor, part_index, num_parts)) for tensor in (images, targets)]
        sums = tf.nest.map_structure(tf.add, sums, compute_gradients(*part))
    return sums


def _part_rows(tensor, part_index: int, num_parts: int):
    size = tf.shape(tensor)[0] // num_parts
    rows = tensor[part_index * size : (part_index + 1) * size] if num_parts > 1 else tensor
    if tensor.shape[0] is not None:
        rows = tf.ensure_shape(rows, (tensor.shape[0] // num_parts, *tensor.shape[1:]))
    return rows


def _class_indices(targets):
    return tf.cast(targets if targets.shape.rank == 1 else tf.argmax(targets, axis=-1), tf.int64)
