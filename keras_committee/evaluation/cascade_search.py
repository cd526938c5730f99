"""Search for the best cascade of a pool: members, stages, confidence measure and thresholds.

The order of members within a stage does not matter, so the search is over the members that each stage adds. Where there
are few such orders all are evaluated; otherwise two starting points, cheap members first and accurate members first,
are improved by exchanging two members. Every order is evaluated on a coarse grid of thresholds; the thresholds of the
best ones are then refined.

A cascade for accepted answers (`max_risk`) has a window of confidence at each stage instead of a threshold.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_committee.evaluation.cascade import (
    NO_EXIT,
    CascadeConfig,
    MemberPredictions,
    SimulationResult,
    simulate_cascade,
)
from keras_committee.layers import CONFIDENCE_MEASURES
from keras_committee.metrics import coverage_at_risk

_GRID_CELLS = 2**18  # combinations of thresholds in the histogram
_COARSE_GRID_CELLS = 2**12  # the same for the grid on which every order is evaluated
_MAX_COARSE_THRESHOLDS = 64  # per stage there
_MAX_DESCENT_ROUNDS = 5  # rounds in which each threshold moves once
_MAX_MEMBER_ORDERS = 300  # of one partition; more are searched locally
_NUM_REFINED = 24  # candidates whose thresholds are refined
_COARSE_WINDOWS = (10, 10, 1)  # bounds per stage, acceptance thresholds, rounds in which each window moves once
_FINE_WINDOWS = (64, 64, 4)


def search_cascade(
    predictions: MemberPredictions,
    *,
    target: float | None = None,
    max_cost: float | None = None,
    objective: str = "accuracy",
    max_risk: float | None = None,
) -> CascadeConfig | None:
    """Return the best cascade over orders, stages, confidence measures and thresholds.

    Args:
        predictions: Predictions of the pool on the validation split. A cascade may leave members out.
        target: Minimize the mean cost at this quality: the lowest accuracy, or the highest NLL or Brier score.
        max_cost: Optimize the objective at this mean cost, in the unit of `predictions`.
        objective: `"accuracy"`, `"nll"` or `"brier"`.
        max_risk: The objective is the fraction of the answers that can be accepted at this error rate, see
            `metrics.coverage_at_risk`, and a stage passes on the images in a window of confidence only: those far from
            the decision are accepted or rejected at once. None for an objective over all answers.

    Returns:
        The cascade; None where none reaches the target or stays within the cost, or no answer can be accepted.

    Raises:
        ValueError: Unless exactly one of `target` and `max_cost` is given.

    Source: windows: Xia & Bouganis 2023, arXiv:2303.08010, section 3.
    """
    if max_risk is None:
        search = _CascadeSearch(predictions, goal_from_target(target, max_cost, objective), objective)
    else:
        search = _WindowSearch(predictions, goal_from_target(target, max_cost, "accuracy"), max_risk)
    num_members = len(predictions.mflops)
    partitions = stage_partitions(num_members)
    if predictions.time_model is not None:
        partitions += side_by_side_partitions(num_members)
    for sizes in partitions:
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
        **bounds: `target` or `max_cost`, `objective` and `max_risk`, as in `search_cascade`.

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


def predicted_latency(config: CascadeConfig, predictions: MemberPredictions) -> float:
    """Return the mean milliseconds per image of a cascade, by the time model of `predictions`."""
    stages = stage_outcomes_from_predictions(predictions, config.order, config.sizes, config.confidence, "accuracy")
    shares = shares_that_reach(simulate_cascade(predictions, config))
    return float(sum(stages.mean_cost(stage, share) for stage, share in enumerate(shares)))


def shares_that_reach(result: SimulationResult) -> list[float]:
    """Return for each stage the fraction of the examples that reach it."""
    rates = [stage_exit.rate for stage_exit in result.exits]
    return [1.0, *(1.0 - np.cumsum(rates)[:-1]).tolist()]


class CascadeGoal(NamedTuple):
    """Goal of the search: the lowest mean cost at a score, or the best score at a mean cost.

    Attributes:
        score: Lowest mean score, or None.
        max_cost: Highest mean cost; used where `score` is None.
    """

    score: float | None = None
    max_cost: float = math.inf

    def best(self, scores: np.ndarray, costs: np.ndarray) -> int | None:
        """Return the flat index of the best entry, the first of equal ones; None where no entry meets the goal."""
        scores, costs = scores.ravel(), costs.ravel()
        if self.score is not None:
            is_feasible, primary, secondary = scores >= self.score - 1e-9, costs, -scores
        else:
            is_feasible, primary, secondary = costs <= self.max_cost * (1 + 1e-9), -scores, costs
        feasible = np.flatnonzero(is_feasible)
        if not len(feasible):
            return None
        feasible = feasible[primary[feasible] <= primary[feasible].min() + 1e-9]
        return int(feasible[secondary[feasible].argmin()])


def goal_from_target(target: float | None, max_cost: float | None, objective: str) -> CascadeGoal:
    """Return the goal in scores, of which higher is better. Raises ValueError unless one of the two is given."""
    if (target is None) == (max_cost is None):
        raise ValueError(
            f"Exactly one of target and max_cost must be given. Received: target={target}, max_cost={max_cost}"
        )
    if target is None:
        return CascadeGoal(max_cost=float(max_cost or 0))
    return CascadeGoal(target if objective == "accuracy" else -target)


def stage_partitions(num_members: int) -> list[tuple[int, ...]]:
    """Return the stage sizes to search: 1, then up to three stages that end at 2, 3, 4 or all members."""
    stage_ends = sorted({end for end in (2, 3, 4, num_members) if 1 < end <= num_members})
    return [
        (1, *rest) for num_later_stages in (1, 2, 3) for rest in itertools.combinations(stage_ends, num_later_stages)
    ] or [(1,)]


def side_by_side_partitions(num_members: int) -> list[tuple[int, ...]]:
    """Return the stage sizes that begin with members side by side: with two, or with all members of the cascade."""
    ends = sorted({end for end in (2, 3, 4, num_members) if 1 < end <= num_members})
    later_stages = [(2, *rest) for number in (1, 2) for rest in itertools.combinations(ends[1:], number)]
    return [*((end,) for end in ends), *later_stages]


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
        costs: Cost of an example by the end of each stage.
        confidences: For each stage but the last, floats `(examples,)`.
        scores: For each stage, floats `(examples,)`, higher is better.
        fixed_costs: For each stage the cost of running it for a batch, whatever the number of examples; None for 0.
        batch_size: Number of examples in a batch.
    """

    costs: tuple[float, ...]
    confidences: list[np.ndarray]
    scores: list[np.ndarray]
    fixed_costs: tuple[float, ...] | None = None
    batch_size: int = 1

    def mean_cost(self, stage: int, share: Any) -> Any:
        """Return the mean cost over all examples of one stage.

        Args:
            stage: Its index.
            share: Fraction of the examples that reach it; a float or an array.
        """
        cost = (self.costs[stage] - (self.costs[stage - 1] if stage else 0.0)) * share
        if self.fixed_costs is None:
            return cost
        # The stage runs unless no example of the batch reaches it.
        return cost + self.fixed_costs[stage] * (1 - (1 - share) ** self.batch_size) / self.batch_size


def stage_outcomes_from_predictions(
    predictions: MemberPredictions, order: Sequence[int], sizes: Sequence[int], measure: str, objective: str
) -> StageOutcomes:
    """Return the outcomes of the stages of this order."""
    stage_members = [order[:size] for size in sizes]
    costs, fixed_costs, batch_size = predictions.stage_costs(order, sizes)
    return StageOutcomes(
        costs=costs,
        fixed_costs=fixed_costs,
        batch_size=batch_size,
        confidences=[predictions.confidences(members, measure) for members in stage_members[:-1]],
        scores=[predictions.scores(members, objective) for members in stage_members],
    )


class FittedThresholds(NamedTuple):
    """Thresholds, with the mean score and cost on the examples that they were fitted to."""

    thresholds: tuple[float, ...]
    score: float
    cost: float
    lower_thresholds: tuple[float, ...] | None = None


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


def fit_windows(
    stages: StageOutcomes,
    last_confidence: np.ndarray,
    goal: CascadeGoal,
    max_risk: float,
    effort: tuple[int, int, int] = _FINE_WINDOWS,
) -> FittedThresholds | None:
    """Return windows of confidence by coordinate descent from the whole committee; see `search_cascade`.

    An answer is accepted where the confidence at the exit reaches one threshold, that of the largest fraction with at
    most the error rate `max_risk`. For a given threshold, the numbers of accepted and of wrong accepted answers are
    sums over the images, so the cumulative sums of one histogram hold every window.

    Args:
        stages: Outcomes of the stages; a score above 0 is a correct answer.
        last_confidence: Confidence of the last stage, floats `(examples,)`.
        goal: Goal whose score is the fraction of accepted answers.
        max_risk: The error rate.
        effort: Number of bounds that are tried per stage, number of acceptance thresholds, and number of rounds.

    Returns:
        The windows, with the fraction of accepted answers as their score; None where none meets the goal, or no answer
        can be accepted.
    """
    num_bounds, num_thresholds, rounds = effort
    confidences = np.stack([*stages.confidences, last_confidence])
    correct = np.stack(stages.scores) > 0
    windows = [(0.0, NO_EXIT)] * len(stages.confidences)
    for _ in range(rounds):
        previous = list(windows)
        for stage in range(len(windows)):
            change = _WindowChange(confidences, windows, stage, num_bounds)
            coverage = change.coverage(confidences, ~correct, max_risk, num_thresholds)
            best = goal.best(coverage, change.costs(stages))
            windows[stage] = windows[stage] if best is None else change.window(best)
        if windows == previous:
            break
    exits = _exit_stages(confidences, windows)
    examples = np.arange(len(last_confidence))
    coverage = coverage_at_risk(confidences[exits, examples], correct[exits, examples], max_risk)
    cost = float(sum(stages.mean_cost(stage, (exits >= stage).mean()) for stage in range(len(stages.costs))))
    if not coverage or goal.best(np.array([coverage]), np.array([cost])) is None:
        return None
    lower_thresholds, thresholds = zip(*windows, strict=True) if windows else ((), ())
    return FittedThresholds(tuple(thresholds), coverage, cost, tuple(lower_thresholds))


def _exit_stages(confidences: np.ndarray, windows: Sequence[tuple[float, float]], first: int = 0) -> np.ndarray:
    """Return for each example the stage that answers it, if it reaches the stage `first`."""
    exits = np.full(confidences.shape[1], len(windows))
    for stage in range(len(windows) - 1, first - 1, -1):
        lower, upper = map(np.float32, windows[stage])
        exits[(confidences[stage] < lower) | (confidences[stage] >= upper)] = stage
    return exits


class _WindowChange:
    """The windows that one stage may have while the other stages keep theirs.

    Args:
        confidences: Floats `(stages, examples)`.
        windows: Lower and upper bound of each stage but the last.
        stage: Index of the stage.
        num_bounds: Number of bounds to try.
    """

    def __init__(self, confidences: np.ndarray, windows: Sequence[tuple[float, float]], stage: int, num_bounds: int):
        self._stage, self._grid = stage, _threshold_grid(confidences[stage], num_bounds, power=1)
        self._lower, self._upper = np.triu_indices(len(self._grid.thresholds))
        self._exits = _exit_stages(confidences, windows)
        self._reached = self._exits >= stage
        self._exits_if_passed_on = np.where(self._reached, _exit_stages(confidences, windows, stage + 1), self._exits)

    def window(self, index: int) -> tuple[float, float]:
        """Return the window with this index."""
        thresholds = self._grid.thresholds
        return float(thresholds[self._lower[index]]), float(thresholds[self._upper[index]])

    def costs(self, stages: StageOutcomes) -> np.ndarray:
        """Return the mean cost with each window, floats `(windows,)`."""
        costs = np.zeros(len(self._lower))
        for stage in range(len(stages.costs)):
            share = (self._exits >= stage).mean()
            if stage > self._stage:
                share = self._means(np.zeros(len(self._exits)), self._reached & (self._exits_if_passed_on >= stage))
            costs += stages.mean_cost(stage, share)
        return costs

    def coverage(
        self, confidences: np.ndarray, is_wrong: np.ndarray, max_risk: float, num_thresholds: int
    ) -> np.ndarray:
        """Return the fraction of accepted answers with each window by the best of some thresholds, floats `(windows,)`.

        Args:
            confidences: Floats `(stages, examples)`.
            is_wrong: Whether the answer of each stage is wrong, bool `(stages, examples)`.
            max_risk: Highest error rate among accepted answers.
            num_thresholds: Number of thresholds to try.
        """
        examples = np.arange(confidences.shape[1])
        exits = (np.where(self._reached, self._stage, self._exits), self._exits_if_passed_on)
        values = [confidences[stages, examples] for stages in exits]
        wrong_values = [is_wrong[stages, examples] for stages in exits]
        coverage = np.zeros(len(self._lower))
        for threshold in np.quantile(np.concatenate(values), np.arange(num_thresholds) / num_thresholds):
            accepted = [each >= threshold for each in values]
            wrong = self._means(*(each & is_wrong for each, is_wrong in zip(accepted, wrong_values, strict=True)))
            fractions = self._means(*accepted)
            coverage = np.maximum(coverage, np.where(wrong <= max_risk * fractions + 1e-12, fractions, 0.0))
        return coverage

    def _means(self, at_exit: np.ndarray, if_passed_on: np.ndarray) -> np.ndarray:
        """Return for each window the mean over the examples, of which those in the window are passed on."""
        differences = np.where(self._reached, if_passed_on.astype(np.float64) - at_exit, 0.0)
        sums = np.bincount(self._grid.continues, differences, len(self._grid.thresholds)).cumsum()
        return at_exit.mean() + (sums[self._upper] - sums[self._lower]) / len(at_exit)


class _ThresholdGrid(NamedTuple):
    """Thresholds of one stage, ascending, and for each example the index of the first at which it continues."""

    thresholds: np.ndarray
    continues: np.ndarray


def _thresholds_per_stage(num_thresholds: int, cells: int) -> int:
    return max(2, int(cells ** (1 / max(1, num_thresholds)) + 1e-9))


def _threshold_grid(confidences: np.ndarray, max_thresholds: int, power: int = 2) -> _ThresholdGrid:
    """Return at most `max_thresholds` thresholds: 0, `NO_EXIT`, and midpoints between distinct confidences.

    With a `power` above 1 the grid is denser at low confidences: most examples are easy, so the useful thresholds of a
    cascade over all answers lie there.
    """
    midpoints = _midpoints(np.unique(confidences))
    if len(midpoints) > max_thresholds - 2:
        ranks = np.linspace(0, 1, max_thresholds)[1:-1] ** power * len(confidences)
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

    The score of a cascade is that of its first stage plus, for every stage after which an example continues, the
    difference that the next stage makes; its cost follows from the shares that continue. So the cumulative sums of one
    histogram for each stage hold every combination.
    """
    sizes, num_examples = [len(grid.thresholds) for grid in grids], len(stages.scores[0])
    scores = np.full(sizes, stages.scores[0].mean(dtype=np.float64))
    costs = np.full(sizes, stages.mean_cost(0, 1.0))
    for stage, cell in enumerate(_cell_indices(grids)):
        shape = sizes[: stage + 1]
        score_gains = stages.scores[stage + 1] - stages.scores[stage]
        sums = np.stack([np.bincount(cell, weights, math.prod(shape)) for weights in (None, score_gains)])
        sums = sums.reshape(2, *shape)
        for axis in range(1, stage + 2):
            np.cumsum(sums, axis=axis, out=sums)
        means = sums.reshape(2, *shape, *[1] * (len(sizes) - len(shape))) / num_examples
        costs += stages.mean_cost(stage + 1, means[0])
        scores += means[1]
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
    num_examples = len(stages.scores[0])
    reached, score_if_exit = _examples_reaching(stages, fitted.thresholds, stage)
    confidences = stages.confidences[stage][reached[stage]]
    thresholds = np.concatenate([[0.0], _midpoints(np.unique(confidences)), [NO_EXIT]])
    continues = np.searchsorted(thresholds, confidences, side="right")

    def mean_if_below(values):
        """Return for each threshold the sum of `values` over the examples below it, divided by all examples."""
        return np.bincount(continues, values[reached[stage]], len(thresholds)).cumsum() / num_examples

    score_if_continue, still_continues = _outcomes_after(stages, fitted.thresholds, stage)
    scores = score_if_exit.mean(dtype=np.float64) + mean_if_below(score_if_continue - score_if_exit)
    earlier_costs = [stages.mean_cost(earlier, mask.mean()) for earlier, mask in enumerate(reached)]
    costs = np.full(len(thresholds), np.sum(earlier_costs))
    for later, mask in enumerate(still_continues, stage + 1):
        costs += stages.mean_cost(later, mean_if_below(mask.astype(np.float64)))
    best_index = goal.best(np.append(fitted.score, scores), np.append(fitted.cost, costs))
    if not best_index:  # index 0, the present thresholds, or None
        return fitted
    moved = (*fitted.thresholds[:stage], float(thresholds[best_index - 1]), *fitted.thresholds[stage + 1 :])
    return FittedThresholds(moved, float(scores[best_index - 1]), float(costs[best_index - 1]))


def _examples_reaching(
    stages: StageOutcomes, thresholds: Sequence[float], stage: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the masks of the examples that reach each stage up to `stage`, and all scores if `stage` is the last."""
    reached, scores = [np.ones(len(stages.scores[0]), bool)], stages.scores[stage].astype(np.float64)
    for earlier in range(stage):
        exits = reached[-1] & (stages.confidences[earlier] >= np.float32(thresholds[earlier]))
        scores[exits] = stages.scores[earlier][exits]
        reached.append(reached[-1] & ~exits)
    return reached, scores


def _outcomes_after(
    stages: StageOutcomes, thresholds: Sequence[float], stage: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the score of each example if `stage` does not answer it, and for each later stage which then reach it."""
    scores, reached = stages.scores[-1].astype(np.float64), [np.ones(len(stages.scores[0]), bool)]
    for later in range(len(thresholds) - 1, stage, -1):
        exits = stages.confidences[later] >= np.float32(thresholds[later])
        scores[exits] = stages.scores[later][exits]
    for later in range(stage + 1, len(thresholds)):
        reached.append(reached[-1] & (stages.confidences[later] < np.float32(thresholds[later])))
    return scores, reached


def _cross_validated(
    config: CascadeConfig,
    validation: MemberPredictions,
    *,
    target: float | None = None,
    max_cost: float | None = None,
    objective: str = "accuracy",
    max_risk: float | None = None,
) -> dict[str, float] | None:
    goal = goal_from_target(target, max_cost, "accuracy" if max_risk else objective)
    shuffled = np.random.default_rng(0).permutation(len(validation.labels))
    halves = [validation.subset(half) for half in np.array_split(shuffled, 2)]
    results = []
    for fit_half, test_half in (halves, halves[::-1]):
        stages = stage_outcomes_from_predictions(fit_half, config.order, config.sizes, config.confidence, objective)
        if max_risk is None:
            fitted = fit_thresholds(stages, goal)
        else:
            fitted = fit_windows(stages, fit_half.confidences(config.order, config.confidence), goal, max_risk)
        if fitted is None:
            return None
        refitted_config = dataclasses.replace(
            config, thresholds=fitted.thresholds, lower_thresholds=fitted.lower_thresholds
        )
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
    cost: float


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
                _Candidate(order, sizes, measure, fitted.score, fitted.cost)
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

    def _fit_finely(self, order: tuple[int, ...], sizes: tuple[int, ...], measure: str) -> FittedThresholds | None:
        return fit_thresholds(self._stage_outcomes(order, sizes, measure), self.goal)

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
            fitted = self._fit_finely(candidate.order, candidate.sizes, candidate.confidence)
            if fitted:
                config = CascadeConfig(
                    order=candidate.order,
                    sizes=candidate.sizes,
                    thresholds=fitted.thresholds,
                    confidence=candidate.confidence,
                    lower_thresholds=fitted.lower_thresholds,
                )
                fitted_configs.append((self._sort_key(fitted), config))
        return min(fitted_configs, key=lambda pair: pair[0])[1].without_unused_stages() if fitted_configs else None

    def _stage_outcomes(self, order: tuple[int, ...], sizes: tuple[int, ...], measure: str) -> StageOutcomes:
        return stage_outcomes_from_predictions(self.predictions, order, sizes, measure, self.objective)

    def _sort_key(self, result: _Candidate | FittedThresholds) -> tuple[float, float]:
        return (result.cost, -result.score) if self.goal.score is not None else (-result.score, result.cost)

    def _is_better(self, candidate: _Candidate | None, best: _Candidate | None) -> bool:
        return candidate is not None and (best is None or self._sort_key(candidate) < self._sort_key(best))


class _WindowSearch(_CascadeSearch):
    """The cascades evaluated so far for accepted answers, with a window of confidence at each stage."""

    def __init__(self, predictions: MemberPredictions, goal: CascadeGoal, max_risk: float):
        super().__init__(predictions, goal, "accuracy")
        self._max_risk = max_risk

    def _fit_coarse(self, order: tuple[int, ...], sizes: tuple[int, ...], measure: str) -> FittedThresholds | None:
        return self._fit(order, sizes, measure, _COARSE_WINDOWS)

    def _fit_finely(self, order: tuple[int, ...], sizes: tuple[int, ...], measure: str) -> FittedThresholds | None:
        return self._fit(order, sizes, measure, _FINE_WINDOWS)

    def _fit(self, order, sizes, measure, effort) -> FittedThresholds | None:
        last_confidence = self.predictions.confidences(order, measure)
        return fit_windows(
            self._stage_outcomes(order, sizes, measure), last_confidence, self.goal, self._max_risk, effort
        )


def _same_stage(one: int, other: int, sizes: Sequence[int]) -> bool:
    return bool(np.searchsorted(sizes, one, side="right") == np.searchsorted(sizes, other, side="right"))


def _canonical_order(order: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    stage_bounds = zip((0, *sizes), sizes, strict=False)
    return tuple(itertools.chain.from_iterable(sorted(order[start:end]) for start, end in stage_bounds))
