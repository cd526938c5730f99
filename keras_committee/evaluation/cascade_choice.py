"""Which cascade of a pool is as good as its best committee, and how much cheaper is it?

The committee is chosen as `select` chooses it, whatever it costs; the cascade is the one of least average cost that is
as good on validation, or the best one at an average cost. Test tells what that is worth.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.errors import RecipeError
from keras_committee.evaluation import subsets
from keras_committee.evaluation.bootstrap import difference_of_means, differences, intervals
from keras_committee.evaluation.candidates import Goal
from keras_committee.evaluation.cascade_search import compare, search_cascade
from keras_committee.evaluation.cascades import Ballots, CascadePlan, CascadeRun, run_cascade
from keras_committee.evaluation.pool import Pool
from keras_committee.evaluation.select import Chooser, listed
from keras_committee.layers import head_named
from keras_committee.selection import Selection


def select_cascade(
    pool: Pool,
    goal: Goal,
    out: Path,
    *,
    method: str = "auto",
    head: str = "geometric_mean",
    target_drop: float = 0.0,
) -> Selection:
    """The best cascade of a pool.

    Args:
        pool: With votes on "validation" and "test".
        goal: Its `max_cost` is the average cost in MFLOPs to keep to. Without one, the cascade reaches `min_accuracy`,
            or where that is 0 what the best committee reaches.
        out: The file that the selection is meant for.
        method: How the committee is found, see `select`.
        head: One of `subsets.HEADS`, not the weighted one.
        target_drop: It may have so many points of accuracy less than the best committee.

    Raises:
        RecipeError: If no cascade keeps to the goal, or the pool is too large for the method.
    """
    chooser = Chooser(pool, dataclasses.replace(goal, max_cost=math.inf, min_accuracy=0.0), head)
    committee = chooser.choose(method)
    ballots = {
        split: Ballots(pool.votes[split], pool.labels[split], pool.mflops.tolist(), head_named(head))
        for split in ("validation", "test")
    }
    bound = _bound(goal, chooser, committee, target_drop)
    plan = search_cascade(ballots["validation"], objective=goal.objective, **bound)
    if plan is None:
        raise RecipeError(_out_of_reach(pool, goal))
    return Selection(
        members=listed(pool, plan.order, out),
        head=head,
        classes=pool.classes,
        stages=plan.stages(),
        confidence=plan.confidence,
        report=_report(chooser, committee, plan, ballots, bound, goal),
    )


def _bound(goal: Goal, chooser: Chooser, committee: np.ndarray, target_drop: float) -> dict[str, Any]:
    """What the search is asked for: a target to reach, or a cost to keep to."""
    if math.isfinite(goal.max_cost):
        return {"max_mflops": goal.max_cost}
    if goal.min_accuracy:
        return {"target": goal.min_accuracy}
    return {"target": chooser.described(committee)["validation"][goal.objective] - target_drop / 100}


def _out_of_reach(pool: Pool, goal: Goal) -> str:
    if math.isfinite(goal.max_cost):
        cheapest = min(pool.members, key=lambda member: member.mflops)
        return (
            f"an average of {goal.max_cost:g} MFLOPs buys no cascade: the cheapest member, {cheapest.index} "
            f"({cheapest.name}) of {cheapest.run}, takes {cheapest.mflops:.4g}.\n"
            "  Raise the budget or train smaller members."
        )
    return (
        f"no cascade of {len(pool.members)} members reaches the accuracy {goal.min_accuracy:g} on validation.\n"
        "  Lower --min-accuracy, or train better members."
    )


def _report(
    chooser: Chooser, committee: np.ndarray, plan: CascadePlan, ballots: dict[str, Ballots], bound, goal: Goal
) -> dict[str, Any]:
    """As that of a committee, where "mflops" is the average on test; and what the cascade is against the committee."""
    base, whole = chooser.report(committee), chooser.described(committee)
    runs = {split: run_cascade(each, plan) for split, each in ballots.items()}
    figures = {split: subsets.figures_of(runs[split].probabilities[None], ballots[split].labels) for split in runs}
    best = base["best_member"]
    alone = chooser.figures("test", chooser.shares_of_member(best["members"][0]))
    return base | {
        "budget": {
            "max_mflops": bound.get("max_mflops"),
            "max_latency_ms": None,
            "min_accuracy": goal.min_accuracy or None,
        },
        "members": [chooser.member(place, 1) for place in plan.order],
        "mflops": runs["test"].mflops,
        **{split: intervals(each)[0] for split, each in figures.items()},
        "best_member": {**best, "gain": differences(figures["test"], alone)[0]},
        "cascade": {
            "target": bound.get("target"),
            **compare(plan, ballots["validation"], ballots["test"], objective=goal.objective, **bound),
            "committee": whole,
            "difference": differences(figures["test"], chooser.figures("test", committee))[0],
            "times_cheaper": _times_cheaper(
                chooser.described(committee)["mflops"], ballots["test"], plan, runs["test"]
            ),
        },
    }


def _times_cheaper(mflops: float, ballots: Ballots, plan: CascadePlan, run: CascadeRun) -> dict[str, float]:
    """The committee's cost over the cascade's average cost, with its interval."""
    costs = np.array([ballots.cost(plan.order[:used]) for used in range(len(plan.order) + 1)])[run.members_used]
    spent = difference_of_means(costs, np.zeros_like(costs))
    return {"value": mflops / spent["value"], "low": mflops / spent["high"], "high": mflops / spent["low"]}
