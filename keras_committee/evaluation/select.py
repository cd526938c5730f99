"""Which committee, or cascade, of a pool is the best for a goal, and how sure is it?

Everything is chosen on the validation split. The test split is looked at when the choice is made.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.errors import RecipeError
from keras_committee.evaluation import committee_scores
from keras_committee.evaluation.cascade import Ballots, CascadePlan, CascadeRun, run_cascade
from keras_committee.evaluation.cascade_search import compare, search_cascade
from keras_committee.evaluation.committee_scores import difference_of_means, differences, intervals
from keras_committee.evaluation.committee_search import Candidates, Goal, Table, affordable, compare_architectures, look
from keras_committee.evaluation.latency import latency
from keras_committee.evaluation.pool import Pool
from keras_committee.layers import head_named
from keras_committee.member_dir import MemberFolder
from keras_committee.models.loading import load_member
from keras_committee.selection import ChosenMember, Selection


def select(
    pool: Pool,
    goal: Goal,
    out: Path,
    *,
    method: str = "auto",
    head: str = "geometric_mean",
    latencies: Sequence[float] | None = None,
) -> Selection:
    """The best committee of a pool.

    Args:
        pool: With votes on "validation" and "test".
        goal: What is wanted. Its `max_cost` is in MFLOPs, or in milliseconds where there are `latencies`.
        out: The file that the selection is meant for; the paths of its runs start from the folder of this file.
        method: One of `methods.METHODS`.
        head: One of `subsets.HEADS`, not the weighted one.
        latencies: Milliseconds that each member takes.

    Returns:
        The selection. A committee of the geometric mean in which greed has members twice is one of the weighted
        geometric mean; with other heads such members stand twice.

    Raises:
        RecipeError: If the budget is below the cheapest member, no committee is accurate enough, or the pool is too
            large for the method.
    """
    chooser = Chooser(pool, goal, head, latencies)
    chosen = chooser.choose(method)
    members, weights = chosen_members(pool, chosen, head, out)
    return Selection(
        members=members,
        head=head if weights is None else "weighted_geometric_mean",
        weights=weights,
        classes=pool.classes,
        report=chooser.report(chosen),
    )


def member_latencies(pool: Pool) -> list[float]:
    """Median milliseconds of each member for one image, measured by turns; a committee takes their sum."""
    models = [load_member(MemberFolder(member.run, member.index).model) for member in pool.members]
    return [measured.median for (measured,) in latency(models, batches=(1,))]


class Chooser:
    """A choice among the members of a pool, and what it rests on. Arguments as in `select`."""

    def __init__(self, pool: Pool, goal: Goal, head: str, latencies: Sequence[float] | None = None):
        self.pool, self.goal, self.head, self.latencies = pool, goal, head, latencies
        costs = pool.mflops if latencies is None else latencies
        self.candidates = Candidates(pool.votes["validation"], pool.labels["validation"], costs, head)
        self.method = ""
        _require_affordable(pool, self.candidates.member_costs, goal, self.unit)

    @property
    def unit(self) -> str:
        """Of costs."""
        return "MFLOPs" if self.latencies is None else "ms"

    def choose(self, method: str) -> np.ndarray:
        """The shares `(members,)` of the best committee. Raises RecipeError."""
        try:
            self.method = look(self.candidates, self.goal, method)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        table = self.candidates.table()
        best = table.best(self.goal)
        if best is None:
            raise RecipeError(self._nothing_found(table))
        return table.shares[best]

    def figures(self, split: str, shares: np.ndarray) -> committee_scores.Figures:
        return committee_scores.figures(
            self.pool.votes[split], self.pool.labels[split], np.atleast_2d(shares), self.head
        )

    def report(self, chosen: np.ndarray) -> dict[str, Any]:
        """What the selection says of itself.

        Committees are as `described` has them. Figures with "low" and "high" have a 95 % interval of the bootstrap.
        `front` holds the committees that none beats on validation in both cost and objective, by rising cost;
        `best_member` the best member on validation within the budget, and what the committee gains over it on test;
        `diversity` what `compare_architectures` found.
        """
        looked_at = len(self.candidates.table())
        diversity = compare_architectures(
            self.candidates,
            [member.architecture for member in self.pool.members],
            self.goal,
            self.method,
            lambda shares: self.figures("test", shares),
        )
        for pair in diversity["pairs"]:
            pair |= {kind: self.described(np.array(pair[kind])) for kind in ("uniform", "mixed")}
        return {
            "objective": self.goal.objective,
            "method": self.method,
            "candidates": looked_at,
            "budget": self._budget(),
            "examples": {split: len(labels) for split, labels in self.pool.labels.items()},
            "missing": {run: members for run, members in self.pool.missing.items() if members},
            **self.described(chosen),
            **{split: intervals(self.figures(split, chosen))[0] for split in ("validation", "test")},
            "best_member": self._against_best_member(chosen),
            "front": self._front(),
            "diversity": diversity,
        }

    def described(self, shares: np.ndarray) -> dict[str, Any]:
        """Who is in a committee, what it costs, and how it scores on both splits."""
        rows = np.atleast_2d(shares)
        scored = {
            split: committee_scores.scores(self.pool.votes[split], self.pool.labels[split], rows, self.head)
            for split in ("validation", "test")
        }
        return {
            "members": [self.member(place, shares[place]) for place in np.flatnonzero(shares).tolist()],
            "mflops": float(np.minimum(shares, self._most_asked) @ self.pool.mflops),
            "latency_ms": None if self.latencies is None else float(self.candidates.cost(shares)),
            **{split: {score: float(each[0]) for score, each in by.items()} for split, by in scored.items()},
        }

    @property
    def _most_asked(self) -> float:
        return 1 if self.head == "geometric_mean" else np.inf

    def member(self, place: int, share: int) -> dict[str, Any]:
        member = self.pool.members[place]
        return {"run": str(member.run), "index": member.index, "name": member.name, "share": int(share)}

    def shares_of_member(self, told: dict[str, Any]) -> np.ndarray:
        """The shares of the committee of one, of a member as `member` tells it."""
        return np.array(
            [(str(each.run), each.index) == (told["run"], told["index"]) for each in self.pool.members], int
        )

    def _budget(self) -> dict[str, float | None]:
        most = float(self.goal.max_cost) if np.isfinite(self.goal.max_cost) else None
        return {
            "max_mflops": most if self.latencies is None else None,
            "max_latency_ms": None if self.latencies is None else most,
            "min_accuracy": self.goal.min_accuracy or None,
        }

    def _against_best_member(self, chosen: np.ndarray) -> dict[str, Any]:
        """The member that is best on validation, within the budget, and what the committee gains over it on test."""
        alone = self.candidates.score(np.eye(len(self.pool.members), dtype=np.int64))
        best = alone.best(Goal(objective=self.goal.objective, max_cost=self.goal.max_cost))
        shares = alone.shares[best]
        gain = differences(self.figures("test", chosen), self.figures("test", shares))[0]
        return {**self.described(shares), "gain": gain}

    def _front(self) -> list[dict[str, Any]]:
        table = self.candidates.table()
        return [self.described(table.shares[row]) for row in table.front(self.goal.objective)]

    def _nothing_found(self, table: Table) -> str:
        within = table.where(affordable(table.costs, self.goal))
        most = Goal(objective="accuracy", max_cost=self.goal.max_cost)
        best = within.best(most)
        reached = f"{within.scores['accuracy'][best]:.4f} at {within.costs[best]:.2f} {self.unit}"
        bound = f" within {self.goal.max_cost:g} {self.unit}" if np.isfinite(self.goal.max_cost) else ""
        return (
            f"no committee of {len(self.pool.members)} members{bound} has the accuracy {self.goal.min_accuracy:g} on "
            f"validation; the best has {reached}.\n  Lower --min-accuracy, raise the budget, or train better members."
        )


def _require_affordable(pool: Pool, costs: np.ndarray, goal: Goal, unit: str) -> None:
    cheapest = int(costs.argmin())
    if affordable(costs[cheapest], goal):
        return
    member = pool.members[cheapest]
    raise RecipeError(
        f"a budget of {goal.max_cost:g} {unit} buys no member: the cheapest, member {member.index} ({member.name}) of "
        f"{member.run}, takes {costs[cheapest]:.4g}.\n  Raise the budget or train smaller members."
    )


def listed(pool: Pool, places: Sequence[int], out: Path) -> tuple[ChosenMember, ...]:
    """The members at these places of the pool, for a selection in the file `out`."""
    start = out.parent.resolve()
    return tuple(
        ChosenMember(
            run=os.path.relpath(member.run.resolve(), start),
            index=member.index,
            weights=member.weights,
            name=member.name,
            parameters=member.parameters,
            mflops=member.mflops,
        )
        for member in (pool.members[place] for place in places)
    )


def chosen_members(
    pool: Pool, shares: np.ndarray, head: str, out: Path
) -> tuple[tuple[ChosenMember, ...], tuple[float, ...] | None]:
    """The members and, where some of a geometric mean count more, their weights; of other heads they stand again."""
    places = np.flatnonzero(shares)
    if (shares[places] == 1).all() or head != "geometric_mean":
        return listed(pool, np.repeat(places, shares[places]).tolist(), out), None
    weights = shares[places] / shares[places].sum()
    return listed(pool, places.tolist(), out), tuple(weights.tolist())


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
    figures = {
        split: committee_scores.figures_of(runs[split].probabilities[None], ballots[split].labels) for split in runs
    }
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
