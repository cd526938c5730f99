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

from keras_committee.evaluation.cascade import NO_EXIT, CascadeConfig, MemberPredictions, simulate_cascade
from keras_committee.layers import CONFIDENCE_MEASURES
from keras_committee.selection import check_stages

GRID_CELLS = 2**18  # of the histogram
_MAX_DESCENT_ROUNDS = 5  # of moving each threshold once


class CascadeGoal(NamedTuple):
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
            is_feasible, primary, secondary = scores >= self.score - 1e-9, costs, -scores
        else:
            max_cost = math.inf if self.mflops is None else self.mflops * (1 + 1e-9)
            is_feasible, primary, secondary = costs <= max_cost, -scores, costs
        feasible = np.flatnonzero(is_feasible)
        if not len(feasible):
            return None
        feasible = feasible[primary[feasible] <= primary[feasible].min() + 1e-9]
        return int(feasible[secondary[feasible].argmin()])


class StageOutcomes(NamedTuple):
    """What every stage would do with every example.

    Attributes:
        costs: MFLOPs by the end of each stage.
        confidences: For each stage but the last, floats `(examples,)`.
        scores: For each stage, floats `(examples,)`, more is better.
    """

    costs: tuple[float, ...]
    confidences: list[np.ndarray]
    scores: list[np.ndarray]


class FittedThresholds(NamedTuple):
    """Thresholds, with the mean score and the average MFLOPs that they had on the examples of the fit."""

    thresholds: tuple[float, ...]
    score: float
    mflops: float


def goal_from_target(target: float | None, max_mflops: float | None, objective: str) -> CascadeGoal:
    """The goal in scores, of which more is better. Raises ValueError unless one of the two is given."""
    if (target is None) == (max_mflops is None):
        raise ValueError(f"Give either a target or max_mflops. Received: {target} and {max_mflops}")
    if target is None:
        return CascadeGoal(mflops=float(max_mflops or 0))
    return CascadeGoal(target if objective == "accuracy" else -target)


def stage_outcomes_from_predictions(
    predictions: MemberPredictions, order: Sequence[int], sizes: Sequence[int], measure: str, objective: str
) -> StageOutcomes:
    """What the stages of this order would do with each of these examples."""
    stage_members = [order[:size] for size in sizes]
    return StageOutcomes(
        costs=tuple(predictions.cost(each) for each in stage_members),
        confidences=[predictions.confidences(each, measure) for each in stage_members[:-1]],
        scores=[predictions.scores(each, objective) for each in stage_members],
    )


def fit_thresholds(stages: StageOutcomes, goal: CascadeGoal, cells: int = GRID_CELLS) -> FittedThresholds | None:
    """The best thresholds on the grid of so many cells, then moved one by one; None where the goal is out of reach."""
    max_thresholds = thresholds_per_stage(len(stages.confidences), cells)
    fitted = fit_thresholds_on_grid(stages, goal, [threshold_grid(each, max_thresholds) for each in stages.confidences])
    for _ in range(_MAX_DESCENT_ROUNDS if fitted else 0):
        previous, fitted = fitted, _coordinate_descent(stages, goal, fitted)
        if previous == fitted:
            break
    return fitted


def thresholds_per_stage(num_thresholds: int, cells: int) -> int:
    """Of a grid of so many cells."""
    return max(2, int(cells ** (1 / max(1, num_thresholds)) + 1e-9))


class ThresholdGrid(NamedTuple):
    """Thresholds to try at one stage, rising, and for each example the first of them at which it goes on."""

    thresholds: np.ndarray
    continues: np.ndarray


def threshold_grid(confidences: np.ndarray, max_thresholds: int) -> ThresholdGrid:
    """At most so many thresholds: 0, NEVER, and between them halfway from one distinct confidence to the next.

    Denser where confidences are low: there lie the thresholds of use, for most examples are easy.
    """
    midpoints = _midpoints(np.unique(confidences))
    if len(midpoints) > max_thresholds - 2:
        ranks = np.linspace(0, 1, max_thresholds)[1:-1] ** 2 * len(confidences)
        quantiles = np.sort(confidences)[ranks.astype(int)]
        midpoints = np.unique(midpoints[np.clip(np.searchsorted(midpoints, quantiles) - 1, 0, None)])
    thresholds = np.concatenate([[0.0], midpoints, [NO_EXIT]])
    return ThresholdGrid(thresholds, np.searchsorted(thresholds, confidences, side="right"))


def fit_thresholds_on_grid(
    stages: StageOutcomes, goal: CascadeGoal, grids: Sequence[ThresholdGrid]
) -> FittedThresholds | None:
    """The best thresholds among those of one ruler for each stage but the last.

    Cost and score of a cascade are those of its first stage and, for every stage that an example goes on from, the
    difference that the next stage makes. So the cumulative sums of one histogram hold every combination.
    """
    sizes = [len(each.thresholds) for each in grids]
    cumulative_gains, cost_increments = np.zeros((2, *sizes)), np.diff(stages.costs)
    for stage, cell in reversed(list(enumerate(_cell_indices(grids)))):
        shape = (*sizes[: stage + 1], *[1] * (len(sizes) - stage - 1))
        score_gain = stages.scores[stage + 1] - stages.scores[stage]
        cumulative_gains[0] += np.bincount(cell, minlength=math.prod(shape)).reshape(shape) * cost_increments[stage]
        cumulative_gains[1] += np.bincount(cell, weights=score_gain, minlength=math.prod(shape)).reshape(shape)
        np.cumsum(cumulative_gains, axis=stage + 1, out=cumulative_gains)
    costs, scores = cumulative_gains / len(stages.scores[0])
    costs += stages.costs[0]
    scores += stages.scores[0].mean(dtype=np.float64)
    best_index = goal.best(scores, costs)
    if best_index is None:
        return None
    grid_indices = np.unravel_index(best_index, sizes) if sizes else ()
    thresholds = tuple(float(each.thresholds[index]) for each, index in zip(grids, grid_indices, strict=True))
    return FittedThresholds(thresholds, float(scores.ravel()[best_index]), float(costs.ravel()[best_index]))


def _cell_indices(grids):
    """For the first, the first two, ... rulers: the place of every example on their grid."""
    cell = np.zeros(1, np.int64)
    for grid in grids:
        cell = cell * len(grid.thresholds) + grid.continues
        yield cell


def _midpoints(confidences):
    """Between neighbours, in float32, which is what models compare in; the upper one where there is nothing between."""
    upper = confidences[1:]
    middle = ((confidences[:-1].astype(np.float64) + upper) / 2).astype(np.float32)
    return np.where(middle > confidences[:-1], middle, upper).astype(np.float64)


def _coordinate_descent(stages, goal, fitted):
    for stage in range(len(fitted.thresholds)):
        fitted = _move_one(stages, goal, fitted, stage)
    return fitted


def _move_one(stages, goal, fitted, stage):
    """The same thresholds but for that of `stage`, which is the best of all for the others."""
    reached, settled_sums = _examples_reaching(stages, fitted.thresholds, stage)
    thresholds = np.concatenate([[0.0], _midpoints(np.unique(stages.confidences[stage][reached])), [NO_EXIT]])
    continues = np.searchsorted(thresholds, stages.confidences[stage][reached], side="right")

    def means(if_exit, if_continue, settled_sum):
        """With the threshold at each cut: over all examples, of whom those below a cut go on."""
        continue_gains = np.bincount(
            continues, weights=(if_continue - if_exit)[reached], minlength=len(thresholds)
        ).cumsum()
        return (settled_sum + if_exit[reached].sum(dtype=np.float64) + continue_gains) / len(if_exit)

    exit_outcomes = np.full(len(reached), stages.costs[stage]), stages.scores[stage]
    costs, scores = map(means, exit_outcomes, _outcomes_after(stages, fitted.thresholds, stage), settled_sums)
    best_index = goal.best(np.append(fitted.score, scores), np.append(fitted.mflops, costs))
    if not best_index:  # as good as it gets
        return fitted
    moved = (*fitted.thresholds[:stage], float(thresholds[best_index - 1]), *fitted.thresholds[stage + 1 :])
    return FittedThresholds(moved, float(scores[best_index - 1]), float(costs[best_index - 1]))


def _examples_reaching(stages, thresholds, stage):
    """Who reaches `stage`, as a mask; and the sums of cost and score of all others."""
    reached, cost, score = np.ones(len(stages.scores[0]), bool), 0.0, 0.0
    for earlier in range(stage):
        exits = reached & (stages.confidences[earlier] >= np.float32(thresholds[earlier]))
        cost += stages.costs[earlier] * exits.sum()
        score += stages.scores[earlier][exits].sum(dtype=np.float64)
        reached &= ~exits
    return reached, (cost, score)


def _outcomes_after(stages, thresholds, stage):
    """Cost and score of each example if `stage` does not answer it."""
    costs = np.full(len(stages.scores[0]), stages.costs[-1])
    scores = stages.scores[-1].astype(np.float64)
    for later in range(len(thresholds) - 1, stage, -1):
        exits = stages.confidences[later] >= np.float32(thresholds[later])
        costs[exits] = stages.costs[later]
        scores[exits] = stages.scores[later][exits]
    return costs, scores


MAX_MEMBER_ORDERS = 300  # of one partition; beyond that they are improved step by step
_COARSE_GRID_CELLS = 2**12  # cells of the grid on which every chain is tried
_MAX_COARSE_THRESHOLDS = 64  # of one stage there
_NUM_REFINED = 24  # of the chains tried


class _Candidate(NamedTuple):
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    confidence: str
    score: float
    mflops: float


def search_cascade(
    predictions: MemberPredictions,
    *,
    target: float | None = None,
    max_mflops: float | None = None,
    max_worst_mflops: float | None = None,
    objective: str = "accuracy",
    sizes: Sequence[Sequence[int]] | None = None,
    confidences: Sequence[str] = CONFIDENCE_MEASURES,
    max_member_orders: int = MAX_MEMBER_ORDERS,
) -> CascadeConfig | None:
    """The best cascade over orders, stages, confidences and thresholds.

    Args:
        predictions: Votes of the pool on the validation split. A cascade may leave members out.
        target: Search the least average cost that is this good: an accuracy to reach, or an NLL or Brier score to
            keep to.
        max_mflops: Or search the best objective at this average cost.
        max_worst_mflops: No cascade may cost more than this for any image.
        objective: `"accuracy"`, `"nll"` or `"brier"`.
        sizes: The partitions to try, each the members asked by the end of each stage; `stage_partitions` where None.
        confidences: Those of `layers.CONFIDENCE_MEASURES` to try.
        max_member_orders: Try all chains of a partition where there are so many at most.

    Returns:
        The plan; None where no cascade reaches the target or keeps to the cost.

    Raises:
        ValueError: Unless exactly one of `target` and `max_mflops` is given, or if a partition is none.
    """
    goal = goal_from_target(target, max_mflops, objective)
    search = _CascadeSearch(predictions, goal, objective, tuple(confidences), max_worst_mflops)
    for partition in stage_partitions(len(predictions.mflops)) if sizes is None else sizes:
        check_stages(partition, partition[1:], min(partition[-1], len(predictions.mflops)))
        if count_member_orders(len(predictions.mflops), partition) <= max_member_orders:
            search.evaluate_all(member_orders(range(len(predictions.mflops)), partition), tuple(partition))
        else:
            search.local_search(tuple(partition))
    return search.best()


def stage_partitions(num_members: int) -> list[tuple[int, ...]]:
    """One member first, then up to three more stages, which end at 2, 3, 4 or all members."""
    stage_ends = sorted({end for end in (2, 3, 4, num_members) if 1 < end <= num_members})
    return [
        (1, *rest) for num_later_stages in (1, 2, 3) for rest in itertools.combinations(stage_ends, num_later_stages)
    ] or [(1,)]


def count_member_orders(num_members: int, sizes: Sequence[int]) -> int:
    """The number of chains of one partition."""
    steps = zip((0, *sizes), sizes, strict=False)
    return math.prod(math.comb(num_members - before, size - before) for before, size in steps)


def member_orders(members: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every order that matters: the members that one stage adds stand in the order of the pool."""
    for first in itertools.combinations(members, sizes[0]):
        rest = [member for member in members if member not in first]
        later_sizes = [size - sizes[0] for size in sizes[1:]]
        for others in member_orders(rest, later_sizes) if later_sizes else [()]:
            yield (*first, *others)


def evaluate_cascade(
    config: CascadeConfig, validation: MemberPredictions, test: MemberPredictions, **bounds: Any
) -> dict[str, Any]:
    """What the cascade does where it was chosen, and where it was not.

    Args:
        config: The cascade.
        validation: The votes that it was fitted to.
        test: Votes on examples that nothing was fitted to.
        **goal: `target` or `max_mflops`, and `objective`, of the fit.

    Returns:
        `{"validation", "cross_fitted", "test"}`: what `CascadeRun.summary` holds for validation and test, and accuracy
        and MFLOPs on each half of the validation split with thresholds fitted to the other half; None where a half does
        not reach the goal. A gap between validation and the other two tells of thresholds fitted to noise.
    """
    return {
        "validation": simulate_cascade(validation, config).summary(),
        "cross_fitted": _cross_validated(config, validation, **bounds),
        "test": simulate_cascade(test, config).summary(),
    }


def _cross_validated(config, validation, *, target=None, max_mflops=None, objective="accuracy"):
    shuffled = np.random.default_rng(0).permutation(len(validation.labels))
    halves = [validation.subset(half) for half in np.array_split(shuffled, 2)]
    results = []
    for fit_half, test_half in (halves, halves[::-1]):
        stages = stage_outcomes_from_predictions(fit_half, config.order, config.sizes, config.confidence, objective)
        fitted_thresholds = fit_thresholds(stages, goal_from_target(target, max_mflops, objective))
        if fitted_thresholds is None:
            return None
        refitted_config = CascadeConfig(**{**vars(config), "thresholds": fitted_thresholds.thresholds})
        results.append(simulate_cascade(test_half, refitted_config))
    half_weights = [len(half.labels) / len(validation.labels) for half in halves[::-1]]
    return {
        "accuracy": float(np.dot(half_weights, [run.scores["accuracy"] for run in results])),
        "mflops": float(np.dot(half_weights, [run.mflops for run in results])),
    }


class _CascadeSearch:
    """What was tried, and the best of it."""

    def __init__(
        self,
        predictions: MemberPredictions,
        goal: CascadeGoal,
        objective: str,
        confidences: tuple[str, ...],
        max_worst_mflops: float | None,
    ):
        self.predictions, self.goal, self.objective, self.confidences = predictions, goal, objective, confidences
        self.max_worst_mflops = math.inf if max_worst_mflops is None else max_worst_mflops
        self._candidates: dict[tuple, list[_Candidate]] = {}
        self._grids: dict[tuple, ThresholdGrid] = {}

    def evaluate_all(self, orders, sizes):
        for order in orders:
            self._evaluate(order, sizes)

    def local_search(self, sizes):
        """Exchanges members, in pairs or for one left out, while that makes the cascade better."""
        costs = self.predictions.mflops
        mean_scores = [self.predictions.scores([member], self.objective).mean() for member in range(len(costs))]
        for key in (
            lambda member: (costs[member], -mean_scores[member]),
            lambda member: (-mean_scores[member], costs[member]),
        ):
            self._local_search_from(sorted(range(len(costs)), key=key), sizes)

    def _local_search_from(self, member_order, sizes):
        best = self._evaluate(tuple(member_order[: sizes[-1]]), sizes)
        improved = True
        while improved:
            improved = False
            for first, second in itertools.combinations(range(len(member_order)), 2):
                if first >= sizes[-1] or _same_stage(first, second, sizes):
                    continue
                swapped = list(member_order)
                swapped[first], swapped[second] = swapped[second], swapped[first]
                candidate = self._evaluate(tuple(swapped[: sizes[-1]]), sizes)
                if self._is_better(candidate, best):
                    member_order, best, improved = swapped, candidate, True

    def _evaluate(self, order, sizes) -> _Candidate | None:
        """The best of the confidences on a coarse grid; None where the goal is out of reach."""
        order = _canonical_order(order, sizes)
        if self.predictions.cost(order) > self.max_worst_mflops:
            return None
        if (order, sizes) not in self._candidates:
            self._prefetch(order, sizes)
            self._candidates[order, sizes] = [
                _Candidate(order, sizes, measure, fitted.score, fitted.mflops)
                for measure in self.confidences
                if (fitted := self._fit_coarse(order, sizes, measure))
            ]
        return min(self._candidates[order, sizes], key=self._sort_key, default=None)

    def _prefetch(self, order, sizes):
        """All about one committee before the next is asked: `MemberPredictions` has the last one at hand."""
        for size in sizes:
            self.predictions.scores(order[:size], self.objective)
            for measure in self.confidences if size < len(order) else ():
                self.predictions.confidences(order[:size], measure)

    def _fit_coarse(self, order, sizes, measure):
        max_thresholds = min(_MAX_COARSE_THRESHOLDS, thresholds_per_stage(len(sizes) - 1, _COARSE_GRID_CELLS))
        grids = [self._threshold_grid(order[:size], measure, max_thresholds) for size in sizes[:-1]]
        return fit_thresholds_on_grid(self._stage_outcomes(order, sizes, measure), self.goal, grids)

    def _threshold_grid(self, members, measure, max_thresholds):
        key = (*sorted(members), measure, max_thresholds)
        if key not in self._grids:
            thresholds, continues = threshold_grid(self.predictions.confidences(members, measure), max_thresholds)
            self._grids[key] = ThresholdGrid(thresholds, continues.astype(np.uint8))
        return self._grids[key]

    def best(self) -> CascadeConfig | None:
        """The best after fitting the thresholds of the most promising."""
        all_candidates = itertools.chain.from_iterable(self._candidates.values())
        fitted_configs = []
        for candidate in heapq.nsmallest(_NUM_REFINED, all_candidates, key=self._sort_key):
            fitted = fit_thresholds(
                self._stage_outcomes(candidate.order, candidate.sizes, candidate.confidence), self.goal
            )
            if fitted:
                config = CascadeConfig(
                    order=candidate.order,
                    sizes=candidate.sizes,
                    thresholds=fitted.thresholds,
                    confidence=candidate.confidence,
                )
                fitted_configs.append((self._sort_key(fitted), config))
        return min(fitted_configs, key=lambda pair: pair[0])[1].without_unused_stages() if fitted_configs else None

    def _stage_outcomes(self, order, sizes, measure):
        return stage_outcomes_from_predictions(self.predictions, order, sizes, measure, self.objective)

    def _sort_key(self, result):
        return (result.mflops, -result.score) if self.goal.score is not None else (-result.score, result.mflops)

    def _is_better(self, candidate, best):
        return candidate is not None and (best is None or self._sort_key(candidate) < self._sort_key(best))


def _same_stage(one, other, sizes):
    return np.searchsorted(sizes, one, side="right") == np.searchsorted(sizes, other, side="right")


def _canonical_order(order, sizes):
    stage_bounds = zip((0, *sizes), sizes, strict=False)
    return tuple(itertools.chain.from_iterable(sorted(order[start:end]) for start, end in stage_bounds))
