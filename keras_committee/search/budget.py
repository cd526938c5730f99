"""What has a search spent, and does one more member fit into what is left?"""

import dataclasses
import math
from collections.abc import Sequence
from datetime import datetime

from keras_committee.recipe import Recipe
from keras_committee.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a search may spend in all.

    Attributes:
        gflops_images: GFLOPs of training, over all images, epochs and members; see `training_gflops`.
        minutes: Minutes of training, over all members and all times that the search was started.
    """

    gflops_images: float = math.inf
    minutes: float = math.inf

    def allows(self, spent: Sequence["Spent"], gflops: float) -> bool:
        """Whether a member of so many GFLOPs may be trained; its minutes are guessed from those spent before."""
        before, minutes = sum(each.gflops for each in spent), sum(each.minutes for each in spent)
        guess = gflops * minutes / before if before else 0.0
        return before + gflops <= self.gflops_images * (1 + 1e-9) and minutes + guess < self.minutes

    def __str__(self) -> str:
        bounds = [f"{self.gflops_images:g} GFLOPs"] if math.isfinite(self.gflops_images) else []
        return " and ".join([*bounds, *([f"{self.minutes:g} minutes"] if math.isfinite(self.minutes) else [])])


@dataclasses.dataclass(frozen=True)
class Spent:
    """What one member has cost so far."""

    gflops: float
    minutes: float


def training_gflops(recipe: Recipe, images: int) -> float:
    """GFLOPs that training one member takes: three forward passes' worth for each image of each epoch.

    The backward pass costs two forward passes: one for the gradient of the inputs, one for that of the weights. Blocks
    that stochastic depth skips in training are not counted.
    """
    from keras_committee import flops

    forward = 2 * flops.expected_multiply_adds(recipe.member(0)) / 1e9
    return 3 * forward * images * recipe.epochs


def minutes_trained(run: Run) -> float:
    """From each start of training to the last that was heard of it, be it finished, stopped or killed."""
    total, begun, last = 0.0, None, None
    for event in run.events():
        at = datetime.fromisoformat(event["time"])
        if event["event"] == "training_started":
            total += _seconds(begun, last)
            begun = at
        last = at if event["event"].startswith(("training", "member")) else last
    return (total + _seconds(begun, last)) / 60


def _seconds(begun: datetime | None, last: datetime | None) -> float:
    return max(0.0, (last - begun).total_seconds()) if begun and last else 0.0
