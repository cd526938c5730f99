"""Which cascade of a pool of members is the best for a target or a budget?

Members that are asked together may stand in any order, so what is searched is which members each stage adds. Where
there are few such chains all are tried, else chains are improved by exchanging two members, from two starts: cheap
members first and good members first. Every chain is tried on a coarse grid of thresholds, the best of them are fitted.
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_committee.evaluation.cascades import Ballots, CascadePlan, run_cascade
from keras_committee.evaluation.thresholds import (
    Goal,
    Ruler,
    cuts_per_stage,
    fit,
    fit_on_grid,
    goal_of,
    ruler,
    stages_of,
)
from keras_committee.layers import CONFIDENCES
from keras_committee.models.cascade import check_stages

MOST_CHAINS = 300  # of one partition; beyond that they are improved step by step
_COARSE = 2**12  # cells of the grid on which every chain is tried
_MOST_CUTS = 64  # of one stage there
_FITTED = 24  # of the chains tried


class _Tried(NamedTuple):
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    confidence: str
    score: float
    mflops: float


def search_cascade(
    ballots: Ballots,
    *,
    target: float | None = None,
    max_mflops: float | None = None,
    max_worst_mflops: float | None = None,
    objective: str = "accuracy",
    sizes: Sequence[Sequence[int]] | None = None,
    confidences: Sequence[str] = CONFIDENCES,
    most_chains: int = MOST_CHAINS,
) -> CascadePlan | None:
    """The best cascade over orders, stages, confidences and thresholds.

    Args:
        ballots: Votes of the pool on the validation split. A cascade may leave members out.
        target: Search the least average cost that is this good: an accuracy to reach, or an NLL or Brier score to
            keep to.
        max_mflops: Or search the best objective at this average cost.
        max_worst_mflops: No cascade may cost more than this for any image.
        objective: `"accuracy"`, `"nll"` or `"brier"`.
        sizes: The partitions to try, each the members asked by the end of each stage; `partitions` where None.
        confidences: Those of `layers.CONFIDENCES` to try.
        most_chains: Try all chains of a partition where there are so many at most.

    Returns:
        The plan; None where no cascade reaches the target or keeps to the cost.

    Raises:
        ValueError: Unless exactly one of `target` and `max_mflops` is given, or if a partition is none.
    """
    goal = goal_of(target, max_mflops, objective)
    search = _Search(ballots, goal, objective, tuple(confidences), max_worst_mflops)
    for partition in partitions(len(ballots.mflops)) if sizes is None else sizes:
        check_stages(partition, partition[1:], min(partition[-1], len(ballots.mflops)))
        if count_chains(len(ballots.mflops), partition) <= most_chains:
            search.try_all(chains(range(len(ballots.mflops)), partition), tuple(partition))
        else:
            search.climb(tuple(partition))
    return search.best()


def partitions(members: int) -> list[tuple[int, ...]]:
    """One member first, then up to three more stages, which end at 2, 3, 4 or all members."""
    ends = sorted({end for end in (2, 3, 4, members) if 1 < end <= members})
    return [(1, *rest) for more in (1, 2, 3) for rest in itertools.combinations(ends, more)] or [(1,)]


def count_chains(members: int, sizes: Sequence[int]) -> int:
    """The number of chains of one partition."""
    steps = zip((0, *sizes), sizes, strict=False)
    return math.prod(math.comb(members - before, size - before) for before, size in steps)


def chains(members: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every order that matters: the members that one stage adds stand in the order of the pool."""
    for first in itertools.combinations(members, sizes[0]):
        rest = [member for member in members if member not in first]
        later = [size - sizes[0] for size in sizes[1:]]
        for others in chains(rest, later) if later else [()]:
            yield (*first, *others)


def compare(plan: CascadePlan, validation: Ballots, test: Ballots, **goal: Any) -> dict[str, Any]:
    """What the cascade does where it was chosen, and where it was not.

    Args:
        plan: The cascade.
        validation: The votes that it was fitted to.
        test: Votes on examples that nothing was fitted to.
        **goal: `target` or `max_mflops`, and `objective`, of the fit.

    Returns:
        `{"validation", "cross_fitted", "test"}`: what `CascadeRun.summary` holds for validation and test, and accuracy
        and MFLOPs on each half of the validation split with thresholds fitted to the other half; None where a half does
        not reach the goal. A gap between validation and the other two tells of thresholds fitted to noise.
    """
    return {
        "validation": run_cascade(validation, plan).summary(),
        "cross_fitted": _cross_fitted(plan, validation, **goal),
        "test": run_cascade(test, plan).summary(),
    }


def _cross_fitted(plan, validation, *, target=None, max_mflops=None, objective="accuracy"):
    shuffled = np.random.default_rng(0).permutation(len(validation.labels))
    halves = [validation.part(half) for half in np.array_split(shuffled, 2)]
    runs = []
    for fitted, measured in (halves, halves[::-1]):
        stages = stages_of(fitted, plan.order, plan.sizes, plan.confidence, objective)
        found = fit(stages, goal_of(target, max_mflops, objective))
        if found is None:
            return None
        again = CascadePlan(**{**vars(plan), "thresholds": found.thresholds})
        runs.append(run_cascade(measured, again))
    shares = [len(half.labels) / len(validation.labels) for half in halves[::-1]]
    return {
        "accuracy": float(np.dot(shares, [run.scores["accuracy"] for run in runs])),
        "mflops": float(np.dot(shares, [run.mflops for run in runs])),
    }


class _Search:
    """What was tried, and the best of it."""

    def __init__(self, ballots: Ballots, goal: Goal, objective: str, confidences: tuple[str, ...], worst: float | None):
        self.ballots, self.goal, self.objective, self.confidences = ballots, goal, objective, confidences
        self.worst = math.inf if worst is None else worst
        self._tried: dict[tuple, list[_Tried]] = {}
        self._rulers: dict[tuple, Ruler] = {}

    def try_all(self, orders, sizes):
        for order in orders:
            self._try(order, sizes)

    def climb(self, sizes):
        """Exchanges members, in pairs or for one left out, while that makes the cascade better."""
        costs = self.ballots.mflops
        good = [self.ballots.scores([member], self.objective).mean() for member in range(len(costs))]
        for key in (lambda member: (costs[member], -good[member]), lambda member: (-good[member], costs[member])):
            self._climb_from(sorted(range(len(costs)), key=key), sizes)

    def _climb_from(self, everyone, sizes):
        best = self._try(tuple(everyone[: sizes[-1]]), sizes)
        improved = True
        while improved:
            improved = False
            for one, other in itertools.combinations(range(len(everyone)), 2):
                if one >= sizes[-1] or _same_stage(one, other, sizes):
                    continue
                exchanged = list(everyone)
                exchanged[one], exchanged[other] = exchanged[other], exchanged[one]
                found = self._try(tuple(exchanged[: sizes[-1]]), sizes)
                if self._better(found, best):
                    everyone, best, improved = exchanged, found, True

    def _try(self, order, sizes) -> _Tried | None:
        """The best of the confidences on a coarse grid; None where the goal is out of reach."""
        order = _canonical(order, sizes)
        if self.ballots.cost(order) > self.worst:
            return None
        if (order, sizes) not in self._tried:
            self._hear(order, sizes)
            self._tried[order, sizes] = [
                _Tried(order, sizes, kind, found.score, found.mflops)
                for kind in self.confidences
                if (found := self._coarse(order, sizes, kind))
            ]
        return min(self._tried[order, sizes], key=self._rank, default=None)

    def _hear(self, order, sizes):
        """All about one committee before the next is asked: `Ballots` has the last one at hand."""
        for size in sizes:
            self.ballots.scores(order[:size], self.objective)
            for kind in self.confidences if size < len(order) else ():
                self.ballots.confidences(order[:size], kind)

    def _coarse(self, order, sizes, kind):
        most = min(_MOST_CUTS, cuts_per_stage(len(sizes) - 1, _COARSE))
        rulers = [self._ruler(order[:size], kind, most) for size in sizes[:-1]]
        return fit_on_grid(self._stages(order, sizes, kind), self.goal, rulers)

    def _ruler(self, members, kind, most):
        key = (*sorted(members), kind, most)
        if key not in self._rulers:
            cuts, goes_on = ruler(self.ballots.confidences(members, kind), most)
            self._rulers[key] = Ruler(cuts, goes_on.astype(np.uint8))
        return self._rulers[key]

    def best(self) -> CascadePlan | None:
        """The best after fitting the thresholds of the most promising."""
        every = itertools.chain.from_iterable(self._tried.values())
        plans = []
        for each in heapq.nsmallest(_FITTED, every, key=self._rank):
            found = fit(self._stages(each.order, each.sizes, each.confidence), self.goal)
            if found:
                plan = CascadePlan(
                    order=each.order, sizes=each.sizes, thresholds=found.thresholds, confidence=each.confidence
                )
                plans.append((self._rank(found), plan))
        return min(plans, key=lambda pair: pair[0])[1].trimmed() if plans else None

    def _stages(self, order, sizes, kind):
        return stages_of(self.ballots, order, sizes, kind, self.objective)

    def _rank(self, found):
        return (found.mflops, -found.score) if self.goal.score is not None else (-found.score, found.mflops)

    def _better(self, found, best):
        return found is not None and (best is None or self._rank(found) < self._rank(best))


def _same_stage(one, other, sizes):
    return np.searchsorted(sizes, one, side="right") == np.searchsorted(sizes, other, side="right")


def _canonical(order, sizes):
    edges = zip((0, *sizes), sizes, strict=False)
    return tuple(itertools.chain.from_iterable(sorted(order[start:end]) for start, end in edges))
