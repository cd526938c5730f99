"""Survival probabilities of residual blocks, over the depth of a network and over the epochs.

A schedule is a tuple of the survival probabilities of blocks 1 to L. `linear_decay` is the paper's; the `survival_*`
functions are those of well-known libraries, which differ from it by about one block.
"""

from collections.abc import Callable, Sequence

import keras

from keras_committee.layers.stochastic_depth import StochasticDepth


def linear_decay(num_blocks: int, last_survival: float) -> tuple[float, ...]:
    """Return the paper's schedule, `p_l = 1 - l / L * (1 - p_L)` for l = 1..L.

    Args:
        num_blocks: Integer L.
        last_survival: Float p_L in [0, 1], the survival probability of the last block.

    Raises:
        ValueError: If `num_blocks` is below 1.

    Source: Huang et al. 2016, arXiv:1603.09382, equation 4.
    """
    return tuple(
        1.0 - block / num_blocks * (1.0 - last_survival) for block in range(1, _check_block_count(num_blocks) + 1)
    )


def constant_survival(num_blocks: int, survival: float) -> tuple[float, ...]:
    """Return a schedule in which every block survives with probability `survival`."""
    return (float(survival),) * _check_block_count(num_blocks)


def survival_timm_linear(num_blocks: int, last_survival: float) -> tuple[float, ...]:
    """Return the schedule of timm's transformers and ConvNeXt: drop rates `linspace(0, rate, L)`.

    Block 1 always survives, block L with probability `last_survival`.
    """
    if _check_block_count(num_blocks) == 1:
        return (1.0,)
    return tuple(1.0 - block / (num_blocks - 1) * (1.0 - last_survival) for block in range(num_blocks))


def survival_keras_efficientnet(num_blocks: int, last_survival: float) -> tuple[float, ...]:
    """Return the schedule of EfficientNet in keras.applications: drop rates `rate * b / L` from b = 0.

    No block reaches `last_survival`.
    """
    return tuple(1.0 - block / num_blocks * (1.0 - last_survival) for block in range(_check_block_count(num_blocks)))


def survival_model_garden_resnet(stages: Sequence[int], last_survival: float) -> tuple[float, ...]:
    """Return the schedule of Model Garden's ResNet: stage i = 0..3 has the last stage's drop rate times (i + 2) / 5.

    Args:
        stages: Number of blocks in each of the four stages.
        last_survival: Survival probability of the last stage.
    """
    rates = [(1.0 - last_survival) * (stage + 2) / 5 for stage in range(len(stages))]
    return tuple(1.0 - rate for rate, blocks in zip(rates, stages, strict=True) for _ in range(blocks))


def stochastic_depth_blocks(model: keras.Model) -> list[StochasticDepth]:
    """Return the `StochasticDepth` layers of a model in order, including those of nested models and branches."""
    found = {id(layer): layer for layer in _iter_sublayers(model) if isinstance(layer, StochasticDepth)}
    return list(found.values())


def set_survival(model: keras.Model, survival: float | Sequence[float]) -> None:
    """Set the survival probabilities of a model's blocks, from the next step on and without retracing.

    A recipe changes them over the epochs with `Recipe(survival=linear_schedule(1.0, 0.5, epochs=20))`, and `Model.fit`
    with a callback:

        keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: set_survival(model, schedule(epoch)))

    Args:
        model: Model with `StochasticDepth` layers.
        survival: p_L of `linear_decay`, or one probability per block.

    Raises:
        ValueError: If the number of blocks differs, or a probability is outside [0, 1].
    """
    blocks = stochastic_depth_blocks(model)
    schedule = survival_schedule(len(blocks), survival)
    for block, probability in zip(blocks, schedule, strict=True):
        block.set_survival(probability)


def survival_schedule(num_blocks: int, survival: float | Sequence[float]) -> tuple[float, ...]:
    """Return one probability per block: `survival` itself, or the linear decay down to it.

    Raises:
        ValueError: If there are no blocks, their number differs from that of the probabilities, or a probability is
            outside [0, 1].
    """
    schedule = tuple(survival) if isinstance(survival, Sequence) else linear_decay(num_blocks, survival)
    if len(schedule) != _check_block_count(num_blocks):
        raise ValueError(
            f"survival must hold one probability for each of {num_blocks} blocks. Received: {len(schedule)}"
        )
    if not all(0.0 <= probability <= 1.0 for probability in schedule):
        raise ValueError(f"survival must be a probability in [0, 1]. Received: survival={survival}")
    return schedule


def linear_schedule(initial_survival: float, final_survival: float, epochs: int) -> Callable[[int], float]:
    """Return a function from the epoch, counted from 0, to p_L: linear over `epochs` epochs, then constant.

    Args:
        initial_survival: Float in [0, 1], p_L in epoch 0.
        final_survival: Float in [0, 1], p_L from epoch `epochs` on.
        epochs: Integer, length of the transition.
    """
    return lambda epoch: initial_survival + (final_survival - initial_survival) * min(epoch / max(epochs, 1), 1.0)


def expected_depth(model: keras.Model) -> float:
    """Return the mean number of blocks that run in a training step: the sum of their survival probabilities."""
    return sum(block.survival for block in stochastic_depth_blocks(model))


def _iter_sublayers(layer):
    # `_flatten_layers` would reverse the order of nested layers.
    for sublayer in layer._layers:
        yield sublayer
        yield from _iter_sublayers(sublayer)


def _check_block_count(num_blocks):
    if num_blocks < 1:
        raise ValueError(f"A schedule needs at least one block. Received: num_blocks={num_blocks}")
    return num_blocks
