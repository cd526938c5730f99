"""With which probability does each residual block survive, and how deep is the network on average?

A schedule is the tuple of the survival probabilities of blocks 1 to L. The paper's is `linear_decay`; the others are
those of well-known libraries, which differ from it by one block or so.
"""

from collections.abc import Callable, Sequence

import keras

from keras_committee.layers.stochastic_depth import StochasticDepth


def linear_decay(num_blocks: int, last_survival: float) -> tuple[float, ...]:
    """`p_l = 1 - l / L * (1 - p_L)`, l = 1..L: the input always survives, block L with probability `last_survival`.

    Source: Huang et al. 2016, arXiv:1603.09382, equation 4.
    """
    return tuple(
        1.0 - block / num_blocks * (1.0 - last_survival) for block in range(1, _check_block_count(num_blocks) + 1)
    )


def constant_survival(num_blocks: int, survival: float) -> tuple[float, ...]:
    """Every block survives with probability `survival`."""
    return (float(survival),) * _check_block_count(num_blocks)


def survival_timm_linear(num_blocks: int, last_survival: float) -> tuple[float, ...]:
    """timm's transformers and ConvNeXt, `linspace(0, rate, L)`: block 1 always survives, block L with `last_survival`."""
    if _check_block_count(num_blocks) == 1:
        return (1.0,)
    return tuple(1.0 - block / (num_blocks - 1) * (1.0 - last_survival) for block in range(num_blocks))


def survival_keras_efficientnet(num_blocks: int, last_survival: float) -> tuple[float, ...]:
    """keras.applications' EfficientNet, `rate * b / L` from b = 0: no block falls to `last_survival`."""
    return tuple(1.0 - block / num_blocks * (1.0 - last_survival) for block in range(_check_block_count(num_blocks)))


def survival_model_garden_resnet(stages: Sequence[int], last_survival: float) -> tuple[float, ...]:
    """Model Garden's ResNet: all blocks of stage i = 0..3 drop with the rate of the last times (i + 2) / 5.

    Args:
        stages: Number of blocks of each of the four stages.
        last_survival: Survival of the last stage.
    """
    rates = [(1.0 - last_survival) * (stage + 2) / 5 for stage in range(len(stages))]
    return tuple(1.0 - rate for rate, blocks in zip(rates, stages, strict=True) for _ in range(blocks))


def stochastic_depth_blocks(model: keras.Model) -> list[StochasticDepth]:
    """The stochastic-depth blocks of a model, those in nested models and branches too, in the order of the layers."""
    found = {id(layer): layer for layer in _iter_sublayers(model) if isinstance(layer, StochasticDepth)}
    return list(found.values())


def set_survival(model: keras.Model, survival: float | Sequence[float]) -> None:
    """Give the blocks of a model new survival probabilities, from the next step on and without tracing again.

    A recipe changes it over the epochs with `Recipe(survival=ramp(1.0, 0.5, epochs=20))`, `Model.fit` with a callback:

        keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: set_survival(model, schedule(epoch)))

    Args:
        model: Model with `StochasticDepth` layers.
        survival: p_L of `linear_decay`, or one probability per block.

    Raises:
        ValueError: If the model has another number of blocks, or a probability is outside [0, 1].
    """
    layers = stochastic_depth_blocks(model)
    schedule = survival_schedule(len(layers), survival)
    for layer, probability in zip(layers, schedule, strict=True):
        layer.set_survival(probability)


def survival_schedule(num_blocks: int, survival: float | Sequence[float]) -> tuple[float, ...]:
    """One probability per block: `survival` itself, or the linear decay down to it.

    Raises:
        ValueError: If there are no blocks, not one probability per block, or one outside [0, 1].
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
    """A function from the epoch, counted from 0, to p_L: in equal steps from `initial_survival` to `final_survival`, then constant."""
    return lambda epoch: initial_survival + (final_survival - initial_survival) * min(epoch / max(epochs, 1), 1.0)


def expected_depth(model: keras.Model) -> float:
    """The mean number of blocks that run in a training step: the sum of their survival probabilities."""
    return sum(layer.survival for layer in stochastic_depth_blocks(model))


def _iter_sublayers(layer):
    # Not `_flatten_layers`, which turns the order of nested layers around.
    for sublayer in layer._layers:
        yield sublayer
        yield from _iter_sublayers(sublayer)


def _check_block_count(num_blocks):
    if num_blocks < 1:
        raise ValueError(f"A schedule needs at least one block. Received: blocks={num_blocks}")
    return num_blocks
