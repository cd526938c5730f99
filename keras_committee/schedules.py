"""Learning rate schedules, learning rates of single weights, and the schedule of Lookahead.

Each rate depends only on the step, so a resumed optimizer continues with the same rate.
"""

import dataclasses
import fnmatch
import itertools
from collections.abc import Mapping, Sequence

import keras
from keras import ops
from keras.optimizers.schedules import CosineDecay, ExponentialDecay, LearningRateSchedule, PiecewiseConstantDecay

__all__ = [
    "Lookahead",
    "PiecewiseLinear",
    "ScaledSchedule",
    "SequentialSchedule",
    "WarmUp",
    "cosine",
    "lr_efficientnet",
    "lr_stochastic_depth",
    "lr_wide_resnet",
    "multiply_learning_rates",
    "scale_learning_rate",
    "step_decay",
    "triangular",
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


def triangular(
    steps: int, rate: float, *, peak: float = 0.23, start: float = 0.2, end: float = 0.07
) -> "PiecewiseLinear":
    """Rise linearly to `rate` after a fraction `peak` of the training, then fall linearly.

    Args:
        steps: Integer >= 1. Total number of training steps.
        rate: Float > 0. Highest learning rate.
        peak: Fraction of the steps, within (0, 1), after which the rate is highest.
        start: First rate as a fraction of `rate`, 0 or more.
        end: Last rate as a fraction of `rate`, 0 or more.

    Raises:
        ValueError: If an argument is out of range.

    Source: Jordan 2024, arXiv:2404.00498, the code of the paper.
    """
    _check_positive(steps=steps, rate=rate)
    if not 0 < peak < 1 or start < 0 or end < 0:
        raise ValueError(f"peak must be within (0, 1), start and end at least 0. Received: {peak=}, {start=}, {end=}")
    return PiecewiseLinear([0, peak * steps, steps], [start * rate, rate, end * rate])


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


@keras.saving.register_keras_serializable(package="keras_committee")
class PiecewiseLinear(LearningRateSchedule):
    """Straight lines between given rates, and the last rate from then on.

    Args:
        steps: Ascending numbers, the steps at which the rates are reached; the first is 0.
        rates: The rate at each of these steps, 0 or more.

    Call arguments:
        step: Integer, counted from 0.

    Raises:
        ValueError: If the steps do not ascend from 0, or their number differs from that of the rates.
    """

    def __init__(self, steps: Sequence[float], rates: Sequence[float]):
        super().__init__()
        ascending = all(low < high for low, high in itertools.pairwise(steps))
        if len(steps) != len(rates) or len(steps) < 2 or steps[0] != 0 or not ascending or min(rates) < 0:
            raise ValueError(f"steps must ascend from 0, with a rate of 0 or more each. Received: {steps=}, {rates=}")
        self.steps, self.rates = list(steps), list(rates)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.rates[0], "float32")
        lines = zip(itertools.pairwise(self.steps), itertools.pairwise(self.rates), strict=True)
        for (first, last), (low, high) in lines:
            rate += ops.clip((step - first) / (last - first), 0.0, 1.0) * (high - low)
        return rate

    def get_config(self):
        return {"steps": self.steps, "rates": self.rates}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookahead:
    """Slow weights that the optimizer's weights are pulled back to: `Recipe(lookahead=schedules.Lookahead())`.

    After every `period` steps, `slow = share * slow + (1 - share) * weights`, and the weights and batch statistics
    continue from there. The share grows over the training from `start` to `end`; it is
    `start + (end - start) * progress ** power`.

    Args:
        period: Integer >= 1. Steps between two updates.
        start: Share of the slow weights at the first step, in [0, 1).
        end: Share at the last step, in [0, 1).
        power: Float > 0.

    Raises:
        ValueError: If an argument is out of range.

    Source: Zhang et al. 2019, arXiv:1907.08610, with a share of 0.5 throughout; a growing share, 0.95^5 at the end with
    `power=3`: Jordan 2024, arXiv:2404.00498, section 3.4.
    """

    period: int = 5
    start: float = 0.5
    end: float = 0.5
    power: float = 1.0

    def __post_init__(self):
        _check_positive(period=self.period, power=self.power)
        if not (0 <= self.start < 1 and 0 <= self.end < 1):
            raise ValueError(f"start and end must be in [0, 1). Received: start={self.start}, end={self.end}")

    def share(self, step, steps: int):
        """Return the share of the slow weights after step number `step`, float32; 1 where they are not updated.

        Args:
            step: Integer tensor, counted from 1.
            steps: Total number of training steps.
        """
        progress = ops.cast(step, "float32") / steps
        share = self.start + (self.end - self.start) * progress**self.power
        return ops.where(step % self.period == 0, share, 1.0)


def ema_decay(momentum: float, step):
    """Return the decay of exponential moving averages of weights, `min(momentum, (1 + step) / (10 + step))`, float32.

    It is small at first, so that the initial weights soon have no influence.

    Args:
        momentum: Float in (0, 1), such as 0.9999.
        step: Number of the step, an integer tensor, counted from 1.
    """
    step = ops.cast(step, "float32")
    return ops.minimum(momentum, (1.0 + step) / (10.0 + step))


def multiply_learning_rates(
    optimizer: keras.optimizers.Optimizer, weights: Sequence[keras.Variable], multipliers: Mapping[str, float]
) -> None:
    """Multiply the learning rate of some weights.

    Args:
        optimizer: Optimizer that is built for `weights`.
        weights: The trainable weights, in the order in which the optimizer was built.
        multipliers: From patterns of weight paths, such as `"*/beta"`, to factors > 0. The first pattern that matches
            `weight.path` counts; other weights keep their rate.

    Raises:
        ValueError: If a factor is not above 0, or a pattern matches no weight.
    """
    _check_positive(**{f"multiplier of {pattern!r}": factor for pattern, factor in multipliers.items()})
    paths = [weight.path for weight in weights]
    for pattern in multipliers:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise ValueError(f"{pattern!r} matches no trainable weight. Received: {', '.join(paths)}")
    factors = [
        next((factor for pattern, factor in multipliers.items() if fnmatch.fnmatchcase(path, pattern)), 1.0)
        for path in paths
    ]
    update_step = optimizer.update_step

    def update_at_own_rate(gradient, variable, learning_rate):
        return update_step(gradient, variable, learning_rate * factors[optimizer._get_variable_index(variable)])

    optimizer.update_step = update_at_own_rate


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
