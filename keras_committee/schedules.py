"""Learning rate schedules.

Each function returns a Keras schedule. The rate depends only on the step, counted from 0, so a resumed optimizer
continues with the same rate.
"""

import itertools
from collections.abc import Sequence

import keras
from keras import ops
from keras.optimizers.schedules import CosineDecay, ExponentialDecay, LearningRateSchedule, PiecewiseConstantDecay

__all__ = [
    "ScaledSchedule",
    "SequentialSchedule",
    "WarmUp",
    "cosine",
    "lr_efficientnet",
    "lr_stochastic_depth",
    "lr_wide_resnet",
    "scale_learning_rate",
    "step_decay",
]


def step_decay(steps: int, rate: float, drops: Sequence[float], factor: float) -> PiecewiseConstantDecay:
    """Multiply `rate` by `factor` after each of the `drops`.

    Args:
        steps: Integer >= 1. Total number of training steps.
        rate: Float > 0. Learning rate of the first step.
        drops: One or more fractions of the training, ascending within (0, 1). The step nearest to each fraction is the
            last one before the drop.
        factor: Float in (0, 1).

    Raises:
        ValueError: If an argument is out of range.
    """
    return PiecewiseConstantDecay(_boundaries(steps, drops), _decayed_rates(rate, drops, factor))


def lr_wide_resnet(steps: int, rate: float = 0.1) -> PiecewiseConstantDecay:
    """Divide the rate by 5 after 30 %, 60 % and 80 % of the training: epochs 60, 120 and 160 of the paper's 200.

    Args:
        steps: Integer >= 1. Total number of training steps.
        rate: Float > 0. Learning rate of the first step.

    Raises:
        ValueError: If an argument is out of range.

    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146, section 3.
    """
    return step_decay(steps, rate, drops=(0.3, 0.6, 0.8), factor=0.2)


def lr_stochastic_depth(
    steps: int, rate: float = 0.1, drops: Sequence[float] = (0.5, 0.75), warmup_steps: int = 0
) -> PiecewiseConstantDecay:
    """Divide the rate by 10 after 50 % and 75 % of the training: epochs 250 and 375 of the paper's 500 on CIFAR.

    Args:
        steps: Integer >= 1. Total number of training steps.
        rate: Float > 0. Learning rate of the first step after the warm-up.
        drops: Fractions of the training after which the rate is divided by 10; (0.6, 0.7) for the paper's SVHN.
        warmup_steps: Number of first steps at `rate / 10`, included in `steps`; 10 of 300 epochs for the paper's 1202
            layers.

    Raises:
        ValueError: If an argument is out of range, or the warm-up ends after the first drop.

    Source: Huang et al. 2016, arXiv:1603.09382, section 4.
    """
    boundaries, rates = _boundaries(steps, drops), _decayed_rates(rate, drops, factor=0.1)
    if not 0 <= warmup_steps <= boundaries[0]:
        raise ValueError(
            f"warmup_steps must be 0 or more and at most the step of the first drop, {boundaries[0]}. "
            f"Received: {warmup_steps=}, {steps=}, {drops=}"
        )
    if warmup_steps:
        boundaries, rates = [warmup_steps, *boundaries], [rate / 10, *rates]
    return PiecewiseConstantDecay(boundaries, rates)


def cosine(steps: int, rate: float, warmup_steps: int = 0) -> CosineDecay:
    """Decay from `rate` to 0 along half a cosine, after a linear warm-up from 0.

    Args:
        steps: Integer >= 1. Total number of training steps.
        rate: Float > 0. Highest learning rate.
        warmup_steps: Number of warm-up steps, included in `steps`.

    Raises:
        ValueError: If an argument is out of range.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts; warm-up: Goyal et al. 2017, arXiv:1706.02677.
    """
    _check_positive(steps=steps, rate=rate)
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps must be 0 or more and less than steps. Received: {warmup_steps=}, {steps=}")
    if not warmup_steps:
        return CosineDecay(rate, steps)
    return CosineDecay(0.0, steps - warmup_steps, warmup_target=rate, warmup_steps=warmup_steps)


def lr_efficientnet(
    steps_per_epoch: int,
    batch_size: int,
    *,
    rate: float = 0.016,
    warmup_epochs: float = 5,
    decay_epochs: float = 2.4,
    factor: float = 0.97,
) -> LearningRateSchedule:
    """Warm up for 5 epochs and multiply the rate by 0.97 every 2.4 epochs: EfficientNet's schedule for RMSProp.

    The drops are counted from step 0, as in the authors' code: the rate rises to its full value in 5 epochs and then
    continues at 0.97^2 of it.

    Args:
        steps_per_epoch: Integer >= 1. Batches per epoch.
        batch_size: Examples per step over all devices. The full rate is `rate * batch_size / 256`, the paper's 0.256 at
            4,096.
        rate: Float > 0. Learning rate for 256 examples per step.
        warmup_epochs: Epochs of linear warm-up from 0; 0 for none.
        decay_epochs: Epochs between two drops.
        factor: Float in (0, 1). The rate is multiplied by it at each drop.

    Raises:
        ValueError: If an argument is out of range.

    Source: Tan & Le 2019, arXiv:1905.11946, section 5.2; warm-up: the authors' tensorflow/tpu, efficientnet/utils.py.
    """
    _check_positive(steps_per_epoch=steps_per_epoch, batch_size=batch_size, rate=rate, decay_epochs=decay_epochs)
    _check_factor(factor)
    if not warmup_epochs >= 0:
        raise ValueError(f"warmup_epochs must be 0 or more. Received: {warmup_epochs=}")
    decay = ExponentialDecay(rate * batch_size / 256, steps_per_epoch * decay_epochs, factor, staircase=True)
    warmup_steps = int(steps_per_epoch * warmup_epochs)
    return WarmUp(warmup_steps, decay, delay=False) if warmup_steps else decay


@keras.saving.register_keras_serializable(package="keras_committee")
class WarmUp(LearningRateSchedule):
    """Linear warm-up from 0 to the first rate of another schedule, which then takes over.

    Args:
        steps: Integer >= 1. Number of warm-up steps; step `s` has the rate `after(0) * s / steps`.
        after: `LearningRateSchedule` of the steps after the warm-up.
        delay: Whether `after` starts at the end of the warm-up, so that step `s` has the rate `after(s - steps)`. If
            False, step `s` has the rate `after(s)`.

    Call arguments:
        step: Integer, counted from 0.

    Raises:
        ValueError: If `steps` is below 1 or `after` is not a schedule.

    Source: Goyal et al. 2017, arXiv:1706.02677, section 2.2 (there with `delay=False`).
    """

    def __init__(self, steps: int, after: LearningRateSchedule, delay: bool = True):
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be 1 or more. Received: steps={steps}")
        _check_schedule(after)
        self.steps = steps
        self.after = after
        self.delay = delay

    def __call__(self, step):
        step = ops.convert_to_tensor(step)
        warmup_rate = ops.convert_to_tensor(self.after(0))
        warmup_rate = warmup_rate * (ops.cast(step, warmup_rate.dtype) / self.steps)
        # `ops.where` computes both branches, so the unused one must be finite, too.
        following = self.after(ops.maximum(step - self.steps, 0) if self.delay else step)
        return ops.where(step < self.steps, warmup_rate, following)

    def get_config(self):
        after = keras.saving.serialize_keras_object(self.after)
        return {"steps": self.steps, "after": after, "delay": self.delay}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "after": keras.saving.deserialize_keras_object(config["after"])})


@keras.saving.register_keras_serializable(package="keras_committee")
class SequentialSchedule(LearningRateSchedule):
    """A constant rate, then another schedule: for example frozen layers first, then all layers.

    Args:
        rate: Float > 0. Learning rate of the first `steps` steps.
        steps: Integer >= 1. Number of steps at `rate`.
        after: `LearningRateSchedule` of the later steps; step `s` has the rate `after(s - steps)`.

    Call arguments:
        step: Integer, counted from 0.

    Raises:
        ValueError: If `steps` is below 1, `rate` is not above 0, or `after` is not a schedule.
    """

    def __init__(self, rate: float, steps: int, after: LearningRateSchedule):
        super().__init__()
        _check_positive(rate=rate, steps=steps)
        _check_schedule(after)
        self.rate, self.steps, self.after = rate, steps, after

    def __call__(self, step):
        step = ops.convert_to_tensor(step)
        following = ops.convert_to_tensor(self.after(ops.maximum(step - self.steps, 0)))
        return ops.where(step < self.steps, ops.cast(self.rate, following.dtype), following)

    def get_config(self):
        after = keras.saving.serialize_keras_object(self.after)
        return {"rate": self.rate, "steps": self.steps, "after": after}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "after": keras.saving.deserialize_keras_object(config["after"])})


@keras.saving.register_keras_serializable(package="keras_committee")
class ScaledSchedule(LearningRateSchedule):
    """Another schedule times a factor.

    Args:
        schedule: `LearningRateSchedule`.
        factor: Float > 0.

    Call arguments:
        step: Integer, counted from 0.

    Raises:
        ValueError: If `factor` is not above 0, or `schedule` is not a schedule.
    """

    def __init__(self, schedule: LearningRateSchedule, factor: float):
        super().__init__()
        _check_positive(factor=factor)
        _check_schedule(schedule)
        self.schedule, self.factor = schedule, factor

    def __call__(self, step):
        rate = ops.convert_to_tensor(self.schedule(step))
        return rate * ops.cast(self.factor, rate.dtype)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})


def scale_learning_rate(optimizer: keras.optimizers.Optimizer, factor: float) -> None:
    """Multiply the learning rate of an optimizer, a number or a schedule, by `factor`, a float > 0."""
    rate = optimizer._learning_rate
    if isinstance(rate, LearningRateSchedule):
        optimizer.learning_rate = ScaledSchedule(rate, factor)
    else:
        _check_positive(factor=factor)
        optimizer.learning_rate = float(ops.convert_to_numpy(rate)) * factor


def _boundaries(steps, drops):
    _check_positive(steps=steps)
    edges = [0.0, *drops, 1.0]
    if not drops or any(low >= high for low, high in itertools.pairwise(edges)):
        raise ValueError(f"drops must be one or more fractions, ascending within (0, 1). Received: {drops=}")
    return [round(steps * drop) for drop in drops]


def _decayed_rates(rate, drops, factor):
    _check_positive(rate=rate)
    _check_factor(factor)
    return [rate * factor**num_drops for num_drops in range(len(drops) + 1)]


def _check_positive(**values):
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0. Received: {name}={value}")


def _check_factor(factor):
    if not 0 < factor < 1:
        raise ValueError(f"factor must be above 0 and below 1. Received: {factor=}")


def _check_schedule(after):
    if not isinstance(after, LearningRateSchedule):
        raise ValueError(f"after must be a Keras LearningRateSchedule. Received: after={after}")
