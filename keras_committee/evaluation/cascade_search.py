"""Search for the best cascade of a pool: members, stages, confidence measure and thresholds.

The order of members within a stage does not matter, so the search is over the members that each stage adds. Where there
are few such orders all are evaluated; otherwise two starting points, cheap members first and accurate members first,
are improved by exchanging two members. Every order is evaluated on a coarse grid of thresholds; the thresholds of the
best ones are then refined.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_committee.evaluation.cascade import NO_EXIT, CascadeConfig, MemberPredictions, simulate_cascade
from keras_committee.layers import CONFIDENCE_MEASURES

_GRID_CELLS = 2**18  # combinations of thresholds in the histogram
_COARSE_GRID_CELLS = 2**12  # the same for the grid on which every order is evaluated
_MAX_COARSE_THRESHOLDS = 64  # per stage there
_MAX_DESCENT_ROUNDS = 5  # rounds in which each threshold moves once
_MAX_MEMBER_ORDERS = 300  # of one partition; more are searched locally
_NUM_REFINED = 24  # candidates whose thresholds are refined


def search_cascade(
    predictions: MemberPredictions,
    *,
    target: float | None = None,
    max_mflops: float | None = None,
    objective: str = "accuracy",
) -> CascadeConfig | None:
    """Return the best cascade over orders, stages, confidence measures and thresholds.

    Args:
        predictions: Predictions of the pool on the validation split. A cascade may leave members out.
        target: Minimize the mean cost at this quality: the lowest accuracy, or the highest NLL or Brier score.
        max_mflops: Optimize the objective at this mean cost.
        objective: `"accuracy"`, `"nll"` or `"brier"`.

    Returns:
        The cascade; None where none reaches the target or stays within the cost.

    Raises:
        ValueError: Unless exactly one of `target` and `max_mflops` is given.
    """
    search = _CascadeSearch(predictions, goal_from_target(target, max_mflops, objective), objective)
    num_members = len(predictions.mflops)
    for sizes in stage_partitions(num_members):
        if count_member_orders(num_members, sizes) <= _MAX_MEMBER_ORDERS:
            search.evaluate_all(member_orders(range(num_members), sizes), sizes)
        else:
            search.local_search(sizes)
    return search.best()


def evaluate_cascade(
    config: CascadeConfig, validation: MemberPredictions, test: MemberPredictions, **bounds: Any
) -> dict[str, Any]:
    """Evaluate a cascade on the split that it was fitted to, by cross-validation, and on the test split.

    Args:
        config: The cascade.
        validation: The predictions that it was fitted to.
        test: Predictions on examples that nothing was fitted to.
        **bounds: `target` or `max_mflops`, and `objective`, as in `search_cascade`.

    Returns:
        `{"validation", "cross_fitted", "test"}`: `SimulationResult.summary` for validation and test; accuracy and
        MFLOPs on each half of the validation split with thresholds fitted to the other half, or None where a half does
        not reach the goal. A gap between validation and the other two indicates overfitted thresholds.
    """
    return {
        "validation": simulate_cascade(validation, config).summary(),
        "cross_fitted": _cross_validated(config, validation, **bounds),
        "test": simulate_cascade(test, config).summary(),
    }


class CascadeGoal(NamedTuple):
    """Goal of the search: the lowest mean cost at a score, or the best score at a mean cost.

    Attributes:
        score: Lowest mean score, or None.
        mflops: Highest mean MFLOPs; used where `score` is None.
    """

    score: float | None = None
    mflops: float = math.inf

    def best(self, scores: np.ndarray, costs: np.ndarray) -> int | None:
        """Return the flat index of the best entry, the first of equal ones; None where no entry meets the goal."""
        scores, costs = scores.ravel(), costs.ravel()
        if self.score is not None:
            is_feasible, primary, secondary = scores >= self.score - 1e-9, costs, -scores
        else:
            is_feasible, primary, secondary = costs <= self.mflops * (1 + 1e-9), -scores, costs
        feasible = np.flatnonzero(is_feasible)
        if not len(feasible):
            return None
        feasible = feasible[primary[feasible] <= primary[feasible].min() + 1e-9]
        return int(feasible[secondary[feasible].argmin()])


def goal_from_target(target: float | None, max_mflops: float | None, objective: str) -> CascadeGoal:
    """Return the goal in scores, of which higher is better. Raises ValueError unless one of the two is given."""
    if (target is None) == (max_mflops is None):
        raise ValueError(
            f"Exactly one of target and max_mflops must be given. Received: target={target}, max_mflops={max_mflops}"
        )
    if target is None:
        return CascadeGoal(mflops=float(max_mflops or 0))
    return CascadeGoal(target if objective == "accuracy" else -target)


def stage_partitions(num_members: int) -> list[tuple[int, ...]]:
    """Return the stage sizes to search: 1, then up to three stages that end at 2, 3, 4 or all members."""
    stage_ends = sorted({end for end in (2, 3, 4, num_members) if 1 < end <= num_members})
    return [
        (1, *rest) for num_later_stages in (1, 2, 3) for rest in itertools.combinations(stage_ends, num_later_stages)
    ] or [(1,)]


def count_member_orders(num_members: int, sizes: Sequence[int]) -> int:
    """Return the number of `member_orders` of one partition."""
    steps = zip((0, *sizes), sizes, strict=False)
    return math.prod(math.comb(num_members - before, size - before) for before, size in steps)


def member_orders(members: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every distinct order: the members that one stage adds keep the order of the pool."""
    for first in itertools.combinations(members, sizes[0]):
        rest = [member for member in members if member not in first]
        later_sizes = [size - sizes[0] for size in sizes[1:]]
        for others in member_orders(rest, later_sizes) if later_sizes else [()]:
            yield (*first, *others)


class StageOutcomes(NamedTuple):
    """Cost, confidence and score of every stage on every example.

    Attributes:
        costs: MFLOPs by the end of each stage.
        confidences: For each stage but the last, floats `(examples,)`.
        scores: For each stage, floats `(examples,)`, higher is better.
    """

    costs: tuple[float, ...]
    confidences: list[np.ndarray]
    scores: list[np.ndarray]


def stage_outcomes_from_predictions(
    predictions: MemberPredictions, order: Sequence[int], sizes: Sequence[int], measure: str, objective: str
) -> StageOutcomes:
    """Return the outcomes of the stages of this order."""
    stage_members = [order[:size] for size in sizes]
    return StageOutcomes(
        costs=tuple(predictions.cost(members) for members in stage_members),
        confidences=[predictions.confidences(members, measure) for members in stage_members[:-1]],
        scores=[predictions.scores(members, objective) for members in stage_members],
    )


class FittedThresholds(NamedTuple):
    """Thresholds, with the mean score and MFLOPs on the examples that they were fitted to."""

    thresholds: tuple[float, ...]
    score: float
    mflops: float


def fit_thresholds(stages: StageOutcomes, goal: CascadeGoal, cells: int = _GRID_CELLS) -> FittedThresholds | None:
    """Return the best thresholds on a grid of at most `cells` combinations, refined by coordinate descent.

    Returns None where no thresholds meet the goal.
    """
    max_thresholds = _thresholds_per_stage(len(stages.confidences), cells)
    grids = [_threshold_grid(confidences, max_thresholds) for confidences in stages.confidences]
    fitted = _fit_on_grid(stages, goal, grids)
    if fitted is None:
        return None
    for _ in range(_MAX_DESCENT_ROUNDS):
        previous, fitted = fitted, _coordinate_descent(stages, goal, fitted)
        if previous == fitted:
            break
    return fitted


class _ThresholdGrid(NamedTuple):
    """Thresholds of one stage, ascending, and for each example the index of the first at which it continues."""

    thresholds: np.ndarray
    continues: np.ndarray


def _thresholds_per_stage(num_thresholds: int, cells: int) -> int:
    return max(2, int(cells ** (1 / max(1, num_thresholds)) + 1e-9))


def _threshold_grid(confidences: np.ndarray, max_thresholds: int) -> _ThresholdGrid:
    """Return at most `max_thresholds` thresholds: 0, `NO_EXIT`, and midpoints between distinct confidences.

    The grid is denser at low confidences: most examples are easy, so the useful thresholds lie there.
    """
    midpoints = _midpoints(np.unique(confidences))
    if len(midpoints) > max_thresholds - 2:
        ranks = np.linspace(0, 1, max_thresholds)[1:-1] ** 2 * len(confidences)
        quantiles = np.sort(confidences)[ranks.astype(int)]
        midpoints = np.unique(midpoints[np.clip(np.searchsorted(midpoints, quantiles) - 1, 0, None)])
    thresholds = np.concatenate([[0.0], midpoints, [NO_EXIT]])
    return _ThresholdGrid(thresholds, np.searchsorted(thresholds, confidences, side="right"))


def _midpoints(confidences: np.ndarray) -> np.ndarray:
    """Return midpoints in float32, the type that models compare in; the upper value where nothing lies between."""
    upper = confidences[1:]
    middle = ((confidences[:-1].astype(np.float64) + upper) / 2).astype(np.float32)
    return np.where(middle > confidences[:-1], middle, upper).astype(np.float64)


def _fit_on_grid(stages: StageOutcomes, goal: CascadeGoal, grids: Sequence[_ThresholdGrid]) -> FittedThresholds | None:
    """Return the best combination of the grids' thresholds, one grid for each stage but the last.

    Cost and score of a cascade are those of its first stage plus, for every stage after which an example continues, the
    difference that the next stage makes. So the cumulative sums of one histogram hold every combination.
    """
    sizes = [len(grid.thresholds) for grid in grids]
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
    thresholds = tuple(float(grid.thresholds[index]) for grid, index in zip(grids, grid_indices, strict=True))
    return FittedThresholds(thresholds, float(scores.ravel()[best_index]), float(costs.ravel()[best_index]))


def _cell_indices(grids: Sequence[_ThresholdGrid]) -> Iterator[np.ndarray]:
    """Yield, for the first grid, the first two, ..., the flat index of every example's cell."""
    cell = np.zeros(1, np.int64)
    for grid in grids:
        cell = cell * len(grid.thresholds) + grid.continues
        yield cell


def _coordinate_descent(stages: StageOutcomes, goal: CascadeGoal, fitted: FittedThresholds) -> FittedThresholds:
    for stage in range(len(fitted.thresholds)):
        fitted = _move_one(stages, goal, fitted, stage)
    return fitted


def _move_one(stages: StageOutcomes, goal: CascadeGoal, fitted: FittedThresholds, stage: int) -> FittedThresholds:
    """Return the thresholds with that of `stage` replaced by the best one for the others."""
    reached, settled_sums = _examples_reaching(stages, fitted.thresholds, stage)
    thresholds = np.concatenate([[0.0], _midpoints(np.unique(stages.confidences[stage][reached])), [NO_EXIT]])
    continues = np.searchsorted(thresholds, stages.confidences[stage][reached], side="right")

    def means(if_exit, if_continue, settled_sum):
        """Return the mean over all examples for each threshold; the examples below it continue."""
        continue_gains = np.bincount(
            continues, weights=(if_continue - if_exit)[reached], minlength=len(thresholds)
        ).cumsum()
        return (settled_sum + if_exit[reached].sum(dtype=np.float64) + continue_gains) / len(if_exit)

    exit_outcomes = np.full(len(reached), stages.costs[stage]), stages.scores[stage]
    costs, scores = map(means, exit_outcomes, _outcomes_after(stages, fitted.thresholds, stage), settled_sums)
    best_index = goal.best(np.append(fitted.score, scores), np.append(fitted.mflops, costs))
    if not best_index:  # index 0, the present thresholds, or None
        return fitted
    moved = (*fitted.thresholds[:stage], float(thresholds[best_index - 1]), *fitted.thresholds[stage + 1 :])
    return FittedThresholds(moved, float(scores[best_index - 1]), float(costs[best_index - 1]))


def _examples_reaching(
    stages: StageOutcomes, thresholds: Sequence[float], stage: int
) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the mask of examples that reach `stage`, and the sums of cost and score of all others."""
    reached, cost, score = np.ones(len(stages.scores[0]), bool), 0.0, 0.0
    for earlier in range(stage):
        exits = reached & (stages.confidences[earlier] >= np.float32(thresholds[earlier]))
        cost += stages.costs[earlier] * exits.sum()
        score += stages.scores[earlier][exits].sum(dtype=np.float64)
        reached &= ~exits
    return reached, (cost, score)


def _outcomes_after(stages: StageOutcomes, thresholds: Sequence[float], stage: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cost and score of each example if `stage` does not answer it."""
    costs = np.full(len(stages.scores[0]), stages.costs[-1])
    scores = stages.scores[-1].astype(np.float64)
    for later in range(len(thresholds) - 1, stage, -1):
        exits = stages.confidences[later] >= np.float32(thresholds[later])
        costs[exits] = stages.costs[later]
        scores[exits] = stages.scores[later][exits]
    return costs, scores


def _cross_validated(
    config: CascadeConfig,
    validation: MemberPredictions,
    *,
    target: float | None = None,
    max_mflops: float | None = None,
    objective: str = "accuracy",
) -> dict[str, float] | None:
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


class _Candidate(NamedTuple):
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    confidence: str
    score: float
    mflops: float


class _CascadeSearch:
    """The cascades evaluated so far."""

    def __init__(self, predictions: MemberPredictions, goal: CascadeGoal, objective: str):
        self.predictions, self.goal, self.objective = predictions, goal, objective
        self._candidates: dict[tuple, list[_Candidate]] = {}
        self._grids: dict[tuple, _ThresholdGrid] = {}

    def evaluate_all(self, orders: Iterable[tuple[int, ...]], sizes: tuple[int, ...]) -> None:
        for order in orders:
            self._evaluate(order, sizes)

    def local_search(self, sizes: tuple[int, ...]) -> None:
        """Exchange two members, or one for a member left out, while that improves the cascade."""
        costs = self.predictions.mflops
        mean_scores = [self.predictions.scores([member], self.objective).mean() for member in range(len(costs))]
        for key in (
            lambda member: (costs[member], -mean_scores[member]),
            lambda member: (-mean_scores[member], costs[member]),
        ):
            self._local_search_from(sorted(range(len(costs)), key=key), sizes)

    def _local_search_from(self, member_order: list[int], sizes: tuple[int, ...]) -> None:
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

    def _evaluate(self, order: tuple[int, ...], sizes: tuple[int, ...]) -> _Candidate | None:
        """Return the best confidence measure on a coarse grid; None where no thresholds meet the goal."""
        order = _canonical_order(order, sizes)
        if (order, sizes) not in self._candidates:
            self._prefetch(order, sizes)
            self._candidates[order, sizes] = [
                _Candidate(order, sizes, measure, fitted.score, fitted.mflops)
                for measure in CONFIDENCE_MEASURES
                if (fitted := self._fit_coarse(order, sizes, measure))
            ]
        return min(self._candidates[order, sizes], key=self._sort_key, default=None)

    def _prefetch(self, order: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        """Compute all arrays of a committee at once: `MemberPredictions` keeps only the last probabilities."""
        for size in sizes:
            self.predictions.scores(order[:size], self.objective)
            for measure in CONFIDENCE_MEASURES if size < len(order) else ():
                self.predictions.confidences(order[:size], measure)

    def _fit_coarse(self, order: tuple[int, ...], sizes: tuple[int, ...], measure: str) -> FittedThresholds | None:
        max_thresholds = min(_MAX_COARSE_THRESHOLDS, _thresholds_per_stage(len(sizes) - 1, _COARSE_GRID_CELLS))
        grids = [self._grid(order[:size], measure, max_thresholds) for size in sizes[:-1]]
        return _fit_on_grid(self._stage_outcomes(order, sizes, measure), self.goal, grids)

    def _grid(self, members: tuple[int, ...], measure: str, max_thresholds: int) -> _ThresholdGrid:
        key = (*sorted(members), measure, max_thresholds)
        if key not in self._grids:
            thresholds, continues = _threshold_grid(self.predictions.confidences(members, measure), max_thresholds)
            self._grids[key] = _ThresholdGrid(thresholds, continues.astype(np.uint8))
        return self._grids[key]

    def best(self) -> CascadeConfig | None:
        """Return the best cascade after refining the thresholds of the most promising candidates."""
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

    def _stage_outcomes(self, order: tuple[int, ...], sizes: tuple[int, ...], measure: str) -> StageOutcomes:
        return stage_outcomes_from_predictions(self.predictions, order, sizes, measure, self.objective)

    def _sort_key(self, result: _Candidate | FittedThresholds) -> tuple[float, float]:
        return (result.mflops, -result.score) if self.goal.score is not None else (-result.score, result.mflops)

    def _is_better(self, candidate: _Candidate | None, best: _Candidate | None) -> bool:
        return candidate is not None and (best is None or self._sort_key(candidate) < self._sort_key(best))


def _same_stage(one: int, other: int, sizes: Sequence[int]) -> bool:
    return bool(np.searchsorted(sizes, one, side="right") == np.searchsorted(sizes, other, side="right"))


def _canonical_order(order: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    stage_bounds = zip((0, *sizes), sizes, strict=False)
    return tuple(itertools.chain.from_iterable(sorted(order[start:end]) for start, end in stage_bounds))
