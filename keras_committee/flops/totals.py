"""What does a whole model cost, in training, and as a cascade?"""

import math
from collections.abc import Sequence

import keras

from keras_committee.flops.ledger import count


def parameters(model: keras.Model) -> int:
    """The number of trainable weights, frozen ones included; moving statistics are not among them."""
    return sum(cost.parameters for cost in count(model))


def multiply_adds(model: keras.Model) -> int:
    """The multiply-adds for one image."""
    return sum(cost.multiply_adds for cost in count(model))


def mflops(model: keras.Model) -> float:
    """2 * multiply-adds / 1e6 for one image."""
    return 2 * multiply_adds(model) / 1e6


def expected_multiply_adds(model: keras.Model) -> float:
    """The mean multiply-adds of one image's forward pass in training, with the blocks of stochastic depth skipped.

    At inference every block runs: `multiply_adds`.
    """
    return sum(cost.survival * cost.multiply_adds for cost in count(model))


def expected_saving(model: keras.Model) -> float:
    """The share of the multiply-adds that stochastic depth saves in training, in [0, 1): what a step may get faster by.

    0.0 in mode "sample", which runs every branch for every image.
    """
    total = multiply_adds(model)
    return 1.0 - expected_multiply_adds(model) / total if total else 0.0


def member_multiply_adds(model: keras.Model) -> list[int]:
    """Of each member of an `Ensemble` or a `Cascade`, in order, with the resizing of its image.

    Weights that two members share are worked through for each of them.
    """
    members = {layer.name: layer for layer in model.layers if layer.name.startswith("member_")}
    return [multiply_adds(members[name]) for name in sorted(members)]


def cascade_multiply_adds(
    model: keras.Model, rates: Sequence[float], stages: Sequence[int] | None = None
) -> tuple[float, int]:
    """What a cascade costs that asks its members one stage after another.

    Args:
        model: A `Cascade`, or an `Ensemble` that is asked in stages.
        rates: For each stage the share of the images that it answers; of sum 1.
        stages: Members asked by the end of each stage; those of the model where None.

    Returns:
        The multiply-adds for one image `(average, worst)`: at these rates, and of an image that asks all members.

    Raises:
        ValueError: If there is not one rate for each stage, or they do not sum to 1.
    """
    costs = member_multiply_adds(model)
    if stages is None:
        stages = model.get_config().get("stages") or range(1, len(costs) + 1)
    if len(rates) != len(stages) or not math.isclose(sum(rates), 1, abs_tol=1e-6) or min(rates) < 0:
        raise ValueError(f"rates must be {len(stages)} shares that sum to 1, one a stage. Received: {list(rates)}")
    return sum(rate * sum(costs[:size]) for rate, size in zip(rates, stages, strict=True)), sum(costs)
