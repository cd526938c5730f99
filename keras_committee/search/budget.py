"""The budget of a search, and the training cost of its members."""

import dataclasses
import math
from collections.abc import Sequence

from keras_committee.errors import RecipeError
from keras_committee.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class MemberCost:
    """Training cost of one member so far.

    Attributes:
        gflops: GFLOPs of its whole training; see `training_gflops`. None if unknown.
        minutes: Minutes of training.
    """

    gflops: float | None
    minutes: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Maximum training cost of a search, over all its members and all its starts.

    Attributes:
        trials: Number of members whose training starts, also of those that diverge.
        gflops: GFLOPs of training; see `training_gflops`.
        minutes: Minutes of training.
    """

    trials: float = math.inf
    gflops: float = math.inf
    minutes: float = math.inf

    def allows(self, costs: Sequence[MemberCost], gflops: float | None) -> bool:
        """Return whether the budget allows one more member.

        Args:
            costs: Costs of the members trained so far; they also predict the minutes per GFLOP of the next one. Where
                GFLOPs are unknown, the next one takes as long as their mean.
            gflops: GFLOPs of the next member; None if unknown.

        Raises:
            RecipeError: If GFLOPs are limited and unknown.
        """
        if not self.allows_trial(costs):
            return False
        spent_minutes = sum(cost.minutes for cost in costs)
        known = [cost.gflops for cost in costs if cost.gflops is not None]
        if gflops is None or len(known) < len(costs):
            if math.isfinite(self.gflops):
                raise RecipeError(
                    "a budget in GFLOPs needs the cost of each member, and that of this recipe is unknown. No further "
                    "member was trained.\n  Use --budget-minutes. To name the layers that cannot be counted, run: "
                    "keras-committee describe"
                )
            return spent_minutes + spent_minutes / max(1, len(costs)) < self.minutes
        spent_gflops = sum(known)
        estimated_minutes = gflops * spent_minutes / spent_gflops if spent_gflops else 0.0
        # The tolerance absorbs rounding, so that a budget of exactly n members pays for n members.
        return spent_gflops + gflops <= self.gflops * (1 + 1e-9) and spent_minutes + estimated_minutes < self.minutes

    def allows_trial(self, costs: Sequence[MemberCost]) -> bool:
        """Return whether the number of trials allows one more member, whatever it costs."""
        return len(costs) < self.trials

    def __str__(self) -> str:
        limits = [(self.trials, "trials"), (self.gflops, "GFLOPs"), (self.minutes, "minutes")]
        given = [f"{limit:g} {unit[:-1] if limit == 1 else unit}" for limit, unit in limits if math.isfinite(limit)]
        return " and ".join([", ".join(given[:-1]), given[-1]] if len(given) > 2 else given)


def training_gflops(recipe: Recipe, num_images: int) -> float | None:
    """Return the GFLOPs of training one member, three forward passes per image and epoch; None if unknown.

    The backward pass costs two forward passes: the gradient of the inputs, and that of the weights. Blocks that
    stochastic depth skips are not counted.

    Args:
        recipe: The recipe; its member 0 is built.
        num_images: Number of training images.
    """
    from keras_committee import flops
    from keras_committee.models.building import build_member

    multiply_adds = flops.expected_multiply_adds(build_member(recipe, 0))
    return None if multiply_adds is None else 3 * 2 * multiply_adds / 1e9 * num_images * recipe.epochs
