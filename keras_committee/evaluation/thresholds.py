"""Where should each stage of a cascade stop asking?

Thresholds are fitted to examples that are neither trained nor tested on. First all combinations on a grid are tried, as
one histogram: with two stages every distinct confidence is on it, so the result is exact; with more, quantiles (512 a
stage for three stages, 64 for four, 22 for five). Then one threshold after another moves over every distinct confidence
while that helps. What comes out lies halfway between two confidences, so that rounding sends no example elsewhere.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_committee.evaluation.cascades import NEVER, Ballots

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
