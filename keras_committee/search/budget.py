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
        gflops: GFLOPs of training, over all images, epochs and members; see `training_gflops`.
        minutes: Minutes of training, over all members and all times that the search was started.
    """

    gflops: float = math.inf
    minutes: float = math.inf

    def allows(self, costs: Sequence["MemberCost"], gflops: float) -> bool:
        """Whether a member of so many GFLOPs may be trained; its minutes are guessed from those spent before."""
        spent_gflops, spent_minutes = sum(cost.gflops for cost in costs), sum(each.minutes for each in costs)
        estimated_minutes = gflops * spent_minutes / spent_gflops if spent_gflops else 0.0
        return spent_gflops + gflops <= self.gflops * (1 + 1e-9) and spent_minutes + estimated_minutes < self.minutes

    def __str__(self) -> str:
        bounds = [f"{self.gflops:g} GFLOPs"] if math.isfinite(self.gflops) else []
        return " and ".join([*bounds, *([f"{self.minutes:g} minutes"] if math.isfinite(self.minutes) else [])])


@dataclasses.dataclass(frozen=True)
class MemberCost:
    """What one member has cost so far."""

    gflops: float
    minutes: float


def training_gflops(recipe: Recipe, num_images: int) -> float:
    """GFLOPs that training one member takes: three forward passes' worth for each image of each epoch.

    The backward pass costs two forward passes: one for the gradient of the inputs, one for that of the weights. Blocks
    that stochastic depth skips in training are not counted.
    """
    from keras_committee import flops

    forward_gflops = 2 * flops.expected_multiply_adds(recipe.member(0)) / 1e9
    return 3 * forward_gflops * num_images * recipe.epochs


def training_minutes(run: Run) -> float:
    """From each start of training to the last that was heard of it, be it finished, stopped or killed."""
    total, start, last_event = 0.0, None, None
    for event in run.events():
        timestamp = datetime.fromisoformat(event["time"])
        if event["event"] == "training_started":
            total += _elapsed_seconds(start, last_event)
            start = timestamp
        last_event = timestamp if event["event"].startswith(("training", "member")) else last_event
    return (total + _elapsed_seconds(start, last_event)) / 60


def _elapsed_seconds(start: datetime | None, last_event: datetime | None) -> float:
    return max(0.0, (last_event - start).total_seconds()) if start and last_event else 0.0
