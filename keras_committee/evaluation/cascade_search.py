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

from keras_committee.evaluation.cascade import NEVER, Ballots, CascadePlan, run_cascade
from keras_committee.layers import CONFIDENCES
from keras_committee.models.cascade import check_stages

CELLS = 2**18  # of the histogram
_ROUNDS = 5  # of moving each threshold once


class Goal(NamedTuple):
    """What is wanted: the least average cost at a score, or the best score at an average cost.

    Attributes:
        score: Mean score to reach, or None.
        mflops: Average MFLOPs to keep to; read where there is no score.
    """

    score: float | None = None
    mflops: float = math.inf

    def best(self, scores: np.ndarray, costs: np.ndarray) -> int | None:
        """The place of the best of these, of equal ones the first; None where none will do."""
        scores, costs = scores.ravel(), costs.ravel()
        if self.score is not None:
            allowed, wanted, then = scores >= self.score - 1e-9, costs, -scores
        else:
            most = math.inf if self.mflops is None else self.mflops * (1 + 1e-9)
            allowed, wanted, then = costs <= most, -scores, costs
        places = np.flatnonzero(allowed)
        if not len(places):
            return None
        places = places[wanted[places] <= wanted[places].min() + 1e-9]
        return int(places[then[places].argmin()])


class Stages(NamedTuple):
    """What every stage would do with every example.

    Attributes:
        costs: MFLOPs by the end of each stage.
        confidences: For each stage but the last, floats `(examples,)`.
        scores: For each stage, floats `(examples,)`, more is better.
    """

    costs: tuple[float, ...]
    confidences: list[np.ndarray]
    scores: list[np.ndarray]


class Fitted(NamedTuple):
    """Thresholds, with the mean score and the average MFLOPs that they had on the examples of the fit."""

    thresholds: tuple[float, ...]
    score: float
    mflops: float


def goal_of(target: float | None, max_mflops: float | None, objective: str) -> Goal:
    """The goal in scores, of which more is better. Raises ValueError unless one of the two is given."""
    if (target is None) == (max_mflops is None):
        raise ValueError(f"Give either a target or max_mflops. Received: {target} and {max_mflops}")
    if target is None:
        return Goal(mflops=float(max_mflops or 0))
    return Goal(target if objective == "accuracy" else -target)


def stages_of(ballots: Ballots, order: Sequence[int], sizes: Sequence[int], confidence: str, objective: str) -> Stages:
    """What the stages of this order would do with each of these examples."""
    asked = [order[:size] for size in sizes]
    return Stages(
        costs=tuple(ballots.cost(each) for each in asked),
        confidences=[ballots.confidences(each, confidence) for each in asked[:-1]],
        scores=[ballots.scores(each, objective) for each in asked],
    )


def fit(stages: Stages, goal: Goal, cells: int = CELLS) -> Fitted | None:
    """The best thresholds on the grid of so many cells, then moved one by one; None where the goal is out of reach."""
    most = cuts_per_stage(len(stages.confidences), cells)
    found = fit_on_grid(stages, goal, [ruler(each, most) for each in stages.confidences])
    for _ in range(_ROUNDS if found else 0):
        before, found = found, _moved(stages, goal, found)
        if before == found:
            break
    return found


def cuts_per_stage(thresholds: int, cells: int) -> int:
    """Of a grid of so many cells."""
    return max(2, int(cells ** (1 / max(1, thresholds)) + 1e-9))


class Ruler(NamedTuple):
    """Thresholds to try at one stage, rising, and for each example the first of them at which it goes on."""

    cuts: np.ndarray
    goes_on: np.ndarray


def ruler(confidences: np.ndarray, most: int) -> Ruler:
    """At most so many thresholds: 0, NEVER, and between them halfway from one distinct confidence to the next.

    Denser where confidences are low: there lie the thresholds of use, for most examples are easy.
    """
    between = _halfway(np.unique(confidences))
    if len(between) > most - 2:
        ranks = np.linspace(0, 1, most)[1:-1] ** 2 * len(confidences)
        at = np.sort(confidences)[ranks.astype(int)]
        between = np.unique(between[np.clip(np.searchsorted(between, at) - 1, 0, None)])
    cuts = np.concatenate([[0.0], between, [NEVER]])
    return Ruler(cuts, np.searchsorted(cuts, confidences, side="right"))


def fit_on_grid(stages: Stages, goal: Goal, rulers: Sequence[Ruler]) -> Fitted | None:
    """The best thresholds among those of one ruler for each stage but the last.

    Cost and score of a cascade are those of its first stage and, for every stage that an example goes on from, the
    difference that the next stage makes. So the cumulative sums of one histogram hold every combination.
    """
    sizes = [len(each.cuts) for each in rulers]
    gains, steps = np.zeros((2, *sizes)), np.diff(stages.costs)
    for stage, cell in reversed(list(enumerate(_cells(rulers)))):
        shape = (*sizes[: stage + 1], *[1] * (len(sizes) - stage - 1))
        gained = stages.scores[stage + 1] - stages.scores[stage]
        gains[0] += np.bincount(cell, minlength=math.prod(shape)).reshape(shape) * steps[stage]
        gains[1] += np.bincount(cell, weights=gained, minlength=math.prod(shape)).reshape(shape)
        np.cumsum(gains, axis=stage + 1, out=gains)
    costs, scores = gains / len(stages.scores[0])
    costs += stages.costs[0]
    scores += stages.scores[0].mean(dtype=np.float64)
    place = goal.best(scores, costs)
    if place is None:
        return None
    chosen = np.unravel_index(place, sizes) if sizes else ()
    thresholds = tuple(float(each.cuts[index]) for each, index in zip(rulers, chosen, strict=True))
    return Fitted(thresholds, float(scores.ravel()[place]), float(costs.ravel()[place]))


def _cells(rulers):
    """For the first, the first two, ... rulers: the place of every example on their grid."""
    cell = np.zeros(1, np.int64)
    for each in rulers:
        cell = cell * len(each.cuts) + each.goes_on
        yield cell


def _halfway(distinct):
    """Between neighbours, in float32, which is what models compare in; the upper one where there is nothing between."""
    upper = distinct[1:]
    middle = ((distinct[:-1].astype(np.float64) + upper) / 2).astype(np.float32)
    return np.where(middle > distinct[:-1], middle, upper).astype(np.float64)


def _moved(stages, goal, found):
    for stage in range(len(found.thresholds)):
        found = _moved_one(stages, goal, found, stage)
    return found


def _moved_one(stages, goal, found, stage):
    """The same thresholds but for that of `stage`, which is the best of all for the others."""
    reached, settled = _before(stages, found.thresholds, stage)
    cuts = np.concatenate([[0.0], _halfway(np.unique(stages.confidences[stage][reached])), [NEVER]])
    goes_on = np.searchsorted(cuts, stages.confidences[stage][reached], side="right")

    def means(here, beyond, elsewhere):
        """With the threshold at each cut: over all examples, of whom those below a cut go on."""
        moves = np.bincount(goes_on, weights=(beyond - here)[reached], minlength=len(cuts)).cumsum()
        return (elsewhere + here[reached].sum(dtype=np.float64) + moves) / len(here)

    here = np.full(len(reached), stages.costs[stage]), stages.scores[stage]
    costs, scores = map(means, here, _beyond(stages, found.thresholds, stage), settled)
    place = goal.best(np.append(found.score, scores), np.append(found.mflops, costs))
    if not place:  # as good as it gets
        return found
    moved = (*found.thresholds[:stage], float(cuts[place - 1]), *found.thresholds[stage + 1 :])
    return Fitted(moved, float(scores[place - 1]), float(costs[place - 1]))


def _before(stages, thresholds, stage):
    """Who reaches `stage`, as a mask; and the sums of cost and score of all others."""
    reached, cost, score = np.ones(len(stages.scores[0]), bool), 0.0, 0.0
    for earlier in range(stage):
        answers = reached & (stages.confidences[earlier] >= np.float32(thresholds[earlier]))
        cost += stages.costs[earlier] * answers.sum()
        score += stages.scores[earlier][answers].sum(dtype=np.float64)
        reached &= ~answers
    return reached, (cost, score)


def _beyond(stages, thresholds, stage):
    """Cost and score of each example if `stage` does not answer it."""
    costs = np.full(len(stages.scores[0]), stages.costs[-1])
    scores = stages.scores[-1].astype(np.float64)
    for later in range(len(thresholds) - 1, stage, -1):
        answers = stages.confidences[later] >= np.float32(thresholds[later])
        costs[answers] = stages.costs[later]
        scores[answers] = stages.scores[later][answers]
    return costs, scores


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
