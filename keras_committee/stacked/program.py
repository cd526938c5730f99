"""Training steps of several members of one architecture as one JAX program.

Weights, optimizer state, batch statistics, seeds and moving averages have a leading axis of members. An epoch is one
call: `lax.scan` over its steps, and in each step `jax.vmap` over the members. The images stay on the device as uint8.
Members do not interact: each has its own batches, its own random numbers and its own learning rate.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras.optimizers.schedules import LearningRateSchedule

from keras_committee.data.augment import PadCropFlip
from keras_committee.layers.heads import log_softmax
from keras_committee.layers.normalization import moving_statistics
from keras_committee.models.blocks import block_kernels
from keras_committee.models.label_smoothing import smooth_labels, weigh_examples
from keras_committee.schedules import Lookahead, ema_decay
from keras_committee.stacked.convolution import use_packed_convolutions

MODES = ("vmap", "packed", "sequential")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackedState:
    """The training state of all members; every array has a leading axis of members.

    Attributes:
        weights: Trainable weights.
        variables: Other variables of the network: batch statistics, states of seed generators, survival probabilities.
        optimizer: Variables of the optimizer.
        averages: Exponential moving averages of the trainable weights and batch statistics; empty without them.
        slow: Slow weights of Lookahead, likewise; empty without it.
    """

    weights: list[jax.Array]
    variables: list[jax.Array]
    optimizer: list[jax.Array]
    averages: list[jax.Array]
    slow: list[jax.Array]

    def select(self, members: Sequence[int]) -> "StackedState":
        """Return the state of the members at these positions."""
        return jax.tree.map(lambda values: values[np.asarray(members)], self)


class StackedProgram:
    """The compiled training of the members of one architecture.

    Args:
        models: One model per member, just built, with equal layers. Their variables are the initial state. The first
            one is traced.
        optimizer: Keras optimizer, not built.
        loss: Keras loss of labels `(batch,)` and logits.
        augment: `PadCropFlip` or None.
        mode: `"vmap"` trains all members in each step; `"packed"` does so with convolutions that pack several members
            into a group (see `convolution`); `"sequential"` trains one member after another.
        label_smoothing: As in `Recipe`.
        global_clipnorm: As in `Recipe`.
        ema_momentum: As in `Recipe`.
        lookahead: As in `Recipe`.
        steps: Total number of training steps, for `lookahead`.
        packed_channels: Largest number of channels of a group of several members, with `"packed"`.
        class_weights: Weight of the loss of each class, float32 `(classes,)`; None is 1 for all.

    Raises:
        ValueError: If the mode is unknown, or the layers of the models differ.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        optimizer: keras.optimizers.Optimizer,
        loss: Any,
        augment: PadCropFlip | None = None,
        *,
        mode: str = "packed",
        label_smoothing: float = 0.0,
        global_clipnorm: float | None = None,
        ema_momentum: float | None = None,
        lookahead: Lookahead | None = None,
        steps: int = 1,
        packed_channels: int = 128,
        class_weights: np.ndarray | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}. Received: mode={mode!r}")
        _check_same_layers(models)
        self._models, self._model, self._mode = list(models), models[0], mode
        self._loss, self._label_smoothing, self._augment = loss, label_smoothing, augment
        self._global_clipnorm, self._ema_momentum = global_clipnorm, ema_momentum
        self._class_weights = class_weights
        self._optimizer = optimizer
        optimizer.learning_rate = self._rate = _MemberRate(optimizer._learning_rate)
        optimizer.build(self._model.trainable_variables)
        self._lookahead, self._steps = lookahead, steps
        self._statistics = _positions(self._model, moving_statistics(self._model))
        if mode == "packed":
            use_packed_convolutions(self._model, packed_channels)
        self._epoch_fn = jax.jit(self._sequential_epoch if mode == "sequential" else self._epoch, donate_argnums=0)
        self._predict_fn = jax.jit(self._predict)

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer of all members, built for the weights of the first model."""
        return self._optimizer

    def initial_state(self) -> StackedState:
        """Return the state of the models as they were given."""
        weights = [_stack(variables) for variables in zip(*(m.trainable_variables for m in self._models), strict=True)]
        others = zip(*(m.non_trainable_variables for m in self._models), strict=True)
        members = len(self._models)
        variables = [_stack(values) for values in others]
        optimizer = [jnp.stack([variable.value] * members) for variable in self._optimizer.variables]
        averages = self._averaged_arrays(weights, variables) if self._ema_momentum is not None else []
        slow = self._averaged_arrays(weights, variables) if self._lookahead is not None else []
        return StackedState(weights, variables, optimizer, averages, slow)

    def train_epoch(
        self,
        state: StackedState,
        images: jax.Array,
        labels: jax.Array,
        indices: np.ndarray,
        draws: np.ndarray,
        rate_factors: np.ndarray | None = None,
    ) -> tuple[StackedState, np.ndarray, np.ndarray, np.ndarray]:
        """Train all members on their batches.

        Args:
            state: The state. Its buffers are reused: do not use it after the call.
            images: All training images on the device, uint8 `(examples, height, width, channels)`.
            labels: int32 `(examples,)`.
            indices: Examples of each batch, integers `(members, steps, batch)`.
            draws: Draws of the augmentation, int32 `(members, steps, batch, k)`.
            rate_factors: Factors of the learning rate, float32 `(members,)`. None is 1 for all.

        Returns:
            The new state, the mean losses including penalties, float32 `(members, steps)`, the numbers of correctly
            classified examples, int32 `(members, steps)`, and the mean absolute gradients of the first kernels of the
            residual blocks over all steps, float32 `(members, blocks)`.
        """
        members = len(indices)
        factors = jnp.ones(members) if rate_factors is None else jnp.asarray(rate_factors, "float32")
        batches = (jnp.asarray(indices, "int32"), jnp.asarray(draws, "int32"))
        state, (losses, num_correct, gradients) = self._epoch_fn(state, images, labels, *batches, factors)
        return state, np.asarray(losses), np.asarray(num_correct), np.asarray(gradients)

    def log_probabilities(self, state: StackedState, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Return the members' log-probabilities, float32 `(members, examples, classes)`.

        Args:
            state: The state. Its moving averages replace the weights if there are any.
            images: uint8 `(examples, height, width, channels)`.
            batch_size: Examples of each member at a time.
        """
        count, batch_size = len(images), min(batch_size, len(images))
        padded = np.concatenate([images, np.zeros((-count % batch_size, *images.shape[1:]), images.dtype)])
        batches = jnp.asarray(padded.reshape(-1, batch_size, *images.shape[1:]))
        weights, variables = self.inference_arrays(state)
        log_probs = np.asarray(self._predict_fn(weights, variables, batches))  # (batches, members, batch, classes)
        return np.moveaxis(log_probs, 1, 0).reshape(log_probs.shape[1], -1, log_probs.shape[-1])[:, :count]

    def inference_arrays(self, state: StackedState) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return weights and other variables of the trained members: the moving averages where there are any."""
        if not state.averages:
            return state.weights, state.variables
        return self._with_averaged(state.averages, state.variables)

    def assign_member(self, state: StackedState, position: int, model: keras.Model) -> None:
        """Give `model` the trained variables of the member at `position`."""
        weights, variables = self.inference_arrays(state)
        for targets, values in ((model.trainable_variables, weights), (model.non_trainable_variables, variables)):
            for target, value in zip(targets, values, strict=True):
                target.assign(value[position])

    def set_variable(self, state: StackedState, variables: Sequence[keras.Variable], values: Sequence[float]):
        """Return the state in which variables of the first model have these values for every member."""
        arrays = list(state.variables)
        for index, value in zip(_positions(self._model, variables), values, strict=True):
            arrays[index] = jnp.full_like(arrays[index], value)
        return dataclasses.replace(state, variables=arrays)

    def values_of(self, state: StackedState, variables: Sequence[keras.Variable]) -> np.ndarray:
        """Return the values of scalar variables of the first model for each member, `(members, variables)`."""
        values = [np.asarray(state.variables[index]) for index in _positions(self._model, variables)]
        return np.stack(values, axis=1) if values else np.zeros((len(state.weights[0]), 0))

    def is_finite(self, state: StackedState) -> np.ndarray:
        """Return for each member whether all its weights are finite, boolean `(members,)`."""
        finite = [jnp.isfinite(array).reshape(len(array), -1).all(axis=1) for array in state.weights]
        return np.asarray(jnp.stack(finite).all(axis=0))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0, without the members' factors."""
        return float(np.asarray(self._rate.base(step)))

    def _epoch(self, state, images, labels, indices, draws, factors):
        padded = pad_images(images, self._augment)

        def step(state, batch):
            batch_indices, batch_draws = batch
            return self._step(state, padded, labels, batch_indices, batch_draws, factors)

        batches = (jnp.moveaxis(indices, 1, 0), jnp.moveaxis(draws, 1, 0))
        state, (losses, num_correct, gradients) = lax.scan(step, state, batches)
        return state, (losses.T, num_correct.T, gradients.mean(axis=0))

    def _sequential_epoch(self, state, images, labels, indices, draws, factors):
        padded = pad_images(images, self._augment)

        def one_member(arguments):
            state, indices, draws, factor = arguments

            def step(state, batch):
                batch_indices, batch_draws = batch
                return self._step(state, padded, labels, batch_indices, batch_draws, factor)

            state, (losses, num_correct, gradients) = lax.scan(step, state, (indices, draws))
            return state, (losses, num_correct, gradients.mean(axis=0))

        return lax.map(one_member, (state, indices, draws, factors))

    def _step(self, state, padded, labels, indices, draws, factors):
        """Return the state after one step of all members, their losses and correct predictions `(members,)`, and the
        mean absolute gradients of their blocks `(members, blocks)`.

        In sequential mode of one member, whose arrays then have no axis of members.
        """
        over_members = _one_member if self._mode == "sequential" else jax.vmap

        def objective(weights):
            losses, others = over_members(self._member_loss, in_axes=(0, 0, None, None, 0, 0))(
                weights, state.variables, padded, labels, indices, draws
            )
            return jnp.sum(losses), (losses, *others)  # the gradient of the sum is that of each member

        gradients, (losses, variables, num_correct) = jax.grad(objective, has_aux=True)(state.weights)
        weights, optimizer = over_members(self._update)(state.weights, gradients, state.optimizer, factors)
        iterations = self._iterations(optimizer)
        weights, variables, slow = self._look_ahead(state.slow, weights, variables, iterations)
        averages = self._update_averages(state.averages, weights, variables, iterations)
        block_gradients = over_members(self._mean_abs_gradients)(gradients)
        state = StackedState(weights, variables, optimizer, averages, slow)
        return state, (losses, num_correct, block_gradients)

    def _member_loss(self, weights, variables, padded, labels, indices, draws):
        inputs = keras.ops.cast(read_images(padded, indices, draws, self._augment), self._model.inputs[0].dtype)
        targets = labels[indices]
        logits, variables, penalties = self._model.stateless_call(
            weights, variables, inputs, training=True, return_losses=True
        )
        logits = logits.astype("float32")
        smoothed, loss_fn = smooth_labels(targets, logits.shape[-1], self._loss, self._label_smoothing)
        loss = loss_fn(smoothed, logits, **weigh_examples(targets, self._class_weights)) + sum(penalties)
        return loss, (variables, jnp.sum(jnp.argmax(logits, axis=-1) == targets))

    def _mean_abs_gradients(self, gradients):
        """Return those of one member, float32 `(blocks,)`."""
        positions = {id(weight): index for index, weight in enumerate(self._model.trainable_variables)}
        of_blocks = [gradients[positions[id(kernel)]] for kernel in block_kernels(self._model) if kernel is not None]
        return jnp.stack([jnp.mean(jnp.abs(gradient)) for gradient in of_blocks]) if of_blocks else jnp.zeros(0)

    def _update(self, weights, gradients, optimizer, factor):
        """Return weights and optimizer variables of one member after an update."""
        if self._global_clipnorm is not None:
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients))
            scale = self._global_clipnorm / jnp.maximum(norm, self._global_clipnorm)
            gradients = [gradient * scale for gradient in gradients]
        self._rate.factor = factor
        return self._optimizer.stateless_apply(optimizer, gradients, weights)

    def _averaged_arrays(self, weights, variables):
        """Return copies of what moving averages and slow weights are of: trainable weights and batch statistics."""
        return [jnp.array(values) for values in [*weights, *(variables[index] for index in self._statistics)]]

    def _with_averaged(self, arrays, variables):
        """Return weights and other variables with the values of `_averaged_arrays`."""
        variables, num_weights = list(variables), len(arrays) - len(self._statistics)
        for position, values in zip(self._statistics, arrays[num_weights:], strict=True):
            variables[position] = values
        return arrays[:num_weights], variables

    def _iterations(self, optimizer):
        """Return the number of steps so far, which all members share."""
        variables_and_values = zip(self._optimizer.variables, optimizer, strict=True)
        iterations = next(value for variable, value in variables_and_values if variable is self._optimizer.iterations)
        return jnp.max(iterations)

    def _look_ahead(self, slow, weights, variables, iterations):
        """Return weights, other variables and slow weights after Lookahead."""
        if self._lookahead is None:
            return weights, variables, []
        share = self._lookahead.share(iterations, self._steps)
        fast = self._averaged_arrays(weights, variables)
        slow = [old - (old - new) * (1.0 - share) for old, new in zip(slow, fast, strict=True)]
        pulled = [jnp.where(share < 1.0, old, new) for old, new in zip(slow, fast, strict=True)]
        return *self._with_averaged(pulled, variables), slow

    def _update_averages(self, averages, weights, variables, iterations):
        if not averages:
            return []
        decay = ema_decay(self._ema_momentum or 0.0, iterations)
        values = self._averaged_arrays(weights, variables)
        return [average - (average - value) * (1.0 - decay) for average, value in zip(averages, values, strict=True)]

    def _predict(self, weights, variables, batches):
        def member(weights, variables, batch):
            logits, _ = self._model.stateless_call(weights, variables, batch, training=False)
            return log_softmax(logits.astype("float32"))

        def one_batch(batch):
            inputs = keras.ops.cast(batch, self._model.inputs[0].dtype)
            if self._mode == "sequential":
                return lax.map(lambda arrays: member(arrays[0], arrays[1], inputs), (weights, variables))
            return jax.vmap(member, in_axes=(0, 0, None))(weights, variables, inputs)

        return lax.map(one_batch, batches)


def pad_images(images: jax.Array, augment: PadCropFlip | None) -> jax.Array:
    """Return all training images padded for `read_images`: each batch is then one gather of windows."""
    pad = 0 if augment is None else augment.pad
    return jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect") if pad else images


def read_images(padded: jax.Array, indices: jax.Array, draws: jax.Array, augment: PadCropFlip | None) -> jax.Array:
    """Return augmented training images, equal to `augment.apply(images[indices], draws)`.

    Args:
        padded: All images, from `pad_images`.
        indices: Integers `(batch,)`.
        draws: int32 `(batch, k)`, rows of `augment.draw`.
        augment: The augmentation, or None.

    Returns:
        uint8 `(batch, height, width, channels)`.
    """
    if augment is None:
        return padded[indices]
    height, width = padded.shape[1] - 2 * augment.pad, padded.shape[2] - 2 * augment.pad

    def crop(index, draw):
        # Slices, not single pixels: XLA gathers on a CPU in a loop.
        return lax.dynamic_slice(padded, (index, draw[0], draw[1], 0), (1, height, width, padded.shape[3]))[0]

    crops = jax.vmap(crop)(indices, draws)
    return jnp.where(draws[:, 2, None, None, None] == 1, crops[:, :, ::-1], crops)


def _one_member(function: Callable, in_axes: Any = 0) -> Callable:
    """Stand in for `jax.vmap` where there is one member: a conditional of a vmapped function computes both branches."""
    del in_axes
    return function


class _MemberRate(LearningRateSchedule):
    """A learning rate times the factor of the member in the trace."""

    def __init__(self, rate):
        super().__init__()
        value = rate if isinstance(rate, LearningRateSchedule) else float(keras.ops.convert_to_numpy(rate))
        self.base = value if callable(value) else lambda step: value
        self.factor: Any = 1.0

    def __call__(self, step):
        return self.base(step) * self.factor

    def get_config(self):
        raise NotImplementedError("A member's rate exists only while its program runs.")


def _stack(variables):
    return jnp.stack([jnp.asarray(variable.value) for variable in variables])


def _positions(model, variables):
    """Return the positions of some variables among the model's non-trainable variables."""
    positions = {id(variable): index for index, variable in enumerate(model.non_trainable_variables)}
    return [positions[id(variable)] for variable in variables]


def _check_same_layers(models):
    first = _structure(models[0])
    for position, model in enumerate(models):
        if _structure(model) != first:
            raise ValueError(f"The members must have the same layers. Model {position} differs from model 0.")


def _structure(model):
    """Return the config of a model with its layers and operations numbered, so that equal networks compare equal."""
    layers = [model, *model._flatten_layers()]
    operations = [operation for layer in layers for operation in getattr(layer, "operations", ())]
    names = {named.name: f"layer_{index}" for index, named in enumerate([*layers, *operations])}

    def normalize(value):
        if isinstance(value, dict):
            return {key: normalize(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [normalize(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    return normalize(model.get_config()), [(v.shape, str(v.dtype)) for v in model.variables]
