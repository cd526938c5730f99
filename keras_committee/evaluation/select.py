"""Selection of the best committee or cascade of a pool.

The selection uses the validation split only; its scores are reported on the test split.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee import metrics
from keras_committee.costs import format_cost, to_document
from keras_committee.errors import RecipeError
from keras_committee.evaluation import committee_scores
from keras_committee.evaluation.cascade import CascadeConfig, MemberPredictions, SimulationResult, simulate_cascade
from keras_committee.evaluation.cascade_search import (
    evaluate_cascade,
    predicted_latency,
    search_cascade,
    shares_that_reach,
)
from keras_committee.evaluation.committee_scores import (
    bootstrap_differences,
    bootstrap_intervals,
    bootstrap_mean_difference,
)
from keras_committee.evaluation.committee_search import (
    Candidates,
    CandidateTable,
    Objective,
    committee_costs,
    compare_architectures,
    search_committees,
    within_budget,
)
from keras_committee.evaluation.latency import measure_latencies
from keras_committee.evaluation.pool import Pool
from keras_committee.member_dir import MemberDir
from keras_committee.metrics.intervals import few_images_note
from keras_committee.models.loading import load_member
from keras_committee.models.views import view_models
from keras_committee.selection import SelectedMember, Selection
from keras_committee.stage_time import StageTimeModel
from keras_committee.tfserving.drift import reference_distribution


def select(
    pool: Pool,
    objective: Objective,
    out: Path,
    *,
    search_method: str = "auto",
    head: str = "geometric_mean",
    latencies: Sequence[float] | None = None,
) -> Selection:
    """Return the best committee of a pool.

    Args:
        pool: Pool with predictions on "validation" and "test".
        objective: The goal. Its `max_cost` is in MFLOPs, or in milliseconds with `latencies`. Members of unknown cost
            take no part where it is in MFLOPs.
        out: The file that the selection will be written to; the paths of its runs are relative to its folder.
        search_method: One of `choices.SEARCH_METHODS`.
        head: One of `choices.SELECTION_HEADS`.
        latencies: Latency of each member, in milliseconds.

    Returns:
        The selection. If greedy search repeats a member, the result is a weighted geometric mean; with other heads the
        member is listed several times.

    Raises:
        RecipeError: If the budget is below the cheapest member, no committee is accurate enough, or the pool is too
            large for the search method.
    """
    has_budget = math.isfinite(objective.max_cost) and latencies is None
    notes, pool = _unknown_cost_notes(pool, excluded=has_budget), pool.with_known_costs() if has_budget else pool
    selector = CommitteeSelector(pool, objective, head, latencies)
    chosen = selector.choose(search_method)
    members, weights = members_and_weights(pool, chosen, head, out)
    selection = Selection(
        members=members,
        head=head if weights is None else "weighted_geometric_mean",
        weights=weights,
        classes=pool.classes,
        report=selector.report(chosen) | {"notes": [*notes, *_few_images_notes(pool, "committee")]},
    )
    return with_reference(selection, pool)


def select_cascade(
    pool: Pool,
    objective: Objective,
    out: Path,
    *,
    search_method: str = "auto",
    head: str = "geometric_mean",
    max_accuracy_drop: float = 0.0,
    time_model: StageTimeModel | None = None,
    max_risk: float | None = None,
) -> Selection:
    """Return the best cascade of a pool.

    Args:
        pool: Pool with predictions on "validation" and "test".
        objective: Its `max_cost` is the highest mean cost, in MFLOPs, or in milliseconds per image with `time_model`.
            Without one, the cascade reaches `min_accuracy`, or the score of the best committee where that is 0, at the
            lowest mean cost. Except with `min_accuracy`, accuracy is smoothed: half of what an answer counts is whether
            it is right, half how probable it is by the best committee. Members of unknown cost take no part.
        out: The file that the selection will be written to.
        search_method: How the best committee is found, see `select`.
        head: One of `choices.SELECTION_HEADS`.
        max_accuracy_drop: Largest loss of accuracy against the best committee, in percentage points.
        time_model: Time of the stages, for a cascade by measured time. Then stages may begin with several members side
            by side.
        max_risk: Select a cascade for accepted answers: instead of its accuracy counts the fraction of its answers that
            can be accepted at this error rate, and it passes on only images near the decision; see `search_cascade`.
            Its target is the fraction of the best committee.

    Raises:
        RecipeError: If no cascade meets the goal, or the pool is too large for the search method.
    """
    notes, pool = _unknown_cost_notes(pool, excluded=True), pool.with_known_costs()
    selector = CommitteeSelector(pool, dataclasses.replace(objective, max_cost=math.inf, min_accuracy=0.0), head)
    committee = selector.choose(search_method)
    predictions = {
        split: MemberPredictions(
            *(pool.predictions[split], pool.labels[split], pool.mflops.tolist(), head),
            architectures=[member.architecture for member in pool.members],
            time_model=time_model,
        )
        for split in ("validation", "test")
    }
    bounds = _search_bounds(objective, selector, committee, max_accuracy_drop)
    # A given accuracy is reached on the labels themselves, and accepted answers are counted by them.
    if is_smoothed := max_risk is None and not objective.minimizes_cost:
        predictions["validation"] = predictions["validation"].with_smoothed_accuracy(_member_list(committee))
    if max_risk is not None:
        bounds = _selective_bounds(bounds, predictions["validation"], committee, max_risk, max_accuracy_drop)
    config = search_cascade(predictions["validation"], objective=objective.metric, **bounds)
    if config is None and is_smoothed and "target" in bounds:
        # Committees of some sizes are in no cascade of the search: the most accurate one comes closest.
        config = search_cascade(predictions["validation"], objective=objective.metric, max_cost=math.inf)
    if config is None:
        raise RecipeError(_infeasible_message(pool, objective, time_model, bounds))
    selection = Selection(
        members=to_selection_members(pool, config.order, out),
        head=head,
        classes=pool.classes,
        stages=config.stages(),
        confidence=config.confidence,
        report=_cascade_report(selector, committee, config, predictions, bounds, objective)
        | {"notes": [*notes, *_one_stage_notes(config), *_few_images_notes(pool, "cascade")]},
    )
    return with_reference(selection, pool)


def with_reference(selection: Selection, pool: Pool) -> Selection:
    """Return the selection with the distribution of its outputs on the validation images of a pool.

    Served answers are compared with it: all but those of `predict_members`, for which all members of a cascade run.
    """
    outputs = pool.outputs(selection, "validation")
    outputs["class_id"] = outputs["probabilities"].argmax(axis=1)
    categories = {"members_used": True, "class_id": False, "set_size": True}
    reference = {
        "split": "validation",
        "signatures": ["serving_default", "predict_uint8", "predict_bytes", "predict_members_bytes"],
        **reference_distribution(outputs, ["confidence"], categories),
    }
    return dataclasses.replace(selection, reference=reference)


def _unknown_cost_notes(pool: Pool, *, excluded: bool) -> list[str]:
    """Return what the user should know about the members of unknown cost: a list of at most one note."""
    effect = "They take no part, as a budget and a cascade need their cost." if excluded else ""
    note = pool.unknown_cost_note()
    return [f"{note}\n  {effect}".rstrip()] if note else []


def _few_images_notes(pool: Pool, kind: str) -> list[str]:
    note = few_images_note(f"the {kind} is chosen", len(pool.labels["validation"]))
    return [note] if note else []


def _one_stage_notes(config: CascadeConfig) -> list[str]:
    """Return a note where the best cascade runs all its members on every image."""
    members = len(config.order)
    if len(config.sizes) > 1:
        return []
    name = "one member alone" if members == 1 else f"a committee of {members} members that all run on every image"
    return [f"note: no cascade was worth it. {name.capitalize()} reaches the goal at the lowest mean cost."]


def member_latencies(pool: Pool, batch_size: int = 1) -> list[float]:
    """Return the median milliseconds per image of each member in batches of this size, in interleaved rounds."""
    files = [MemberDir(member.run, member.index).model for member in pool.members]
    networks = {file: load_member(file) for file in dict.fromkeys(files)}
    models = view_models([networks[file] for file in files], [member.view for member in pool.members])
    return [measured.median / batch_size for (measured,) in measure_latencies(models, batch_sizes=(batch_size,))]


class CommitteeSelector:
    """Search for a committee, and the report of it. Arguments as in `select`."""

    def __init__(self, pool: Pool, objective: Objective, head: str, latencies: Sequence[float] | None = None):
        self.pool, self.objective, self.head, self.latencies = pool, objective, head, latencies
        costs = pool.mflops if latencies is None else latencies
        self.candidates = Candidates(pool.predictions["validation"], pool.labels["validation"], costs, head)
        self.method = ""
        _check_budget(pool, self.candidates.member_costs, objective, self.cost_unit)

    @property
    def cost_unit(self) -> str:
        """The unit of all costs."""
        return "MFLOPs" if self.latencies is None else "ms"

    def choose(self, method: str) -> np.ndarray:
        """Return the multiplicities `(members,)` of the best committee. Raises RecipeError."""
        try:
            self.method = search_committees(self.candidates, self.objective, method)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        table = self.candidates.table()
        best = table.best(self.objective)
        if best is None:
            raise RecipeError(self._not_found_message(table))
        return table.multiplicities[best]

    def per_example_scores(self, split: str, multiplicities: np.ndarray) -> committee_scores.PerExampleScores:
        """Return the scores of one or more committees on each example of a split."""
        return committee_scores.per_example_scores(
            self.pool.predictions[split], self.pool.labels[split], np.atleast_2d(multiplicities), self.head
        )

    def report(self, chosen: np.ndarray) -> dict[str, Any]:
        """Return the report of a selection.

        Committees are described as by `summary`. "low" and "high" bound a 95 % bootstrap interval. `front` is the
        Pareto front of cost and objective on validation, by ascending cost; `best_member` the best member on validation
        within the budget, with the gain of the committee over it on test; `diversity` the result of
        `compare_architectures`.
        """
        num_candidates = len(self.candidates.table())
        diversity = compare_architectures(
            self.candidates,
            [member.architecture for member in self.pool.members],
            self.objective,
            self.method,
            lambda multiplicities: self.per_example_scores("test", multiplicities),
        )
        for pair in diversity["pairs"]:
            pair |= {kind: self.summary(np.array(pair[kind])) for kind in ("uniform", "mixed")}
        return {
            "objective": self.objective.metric,
            "method": self.method,
            "candidates": num_candidates,
            "budget": self._budget(),
            "examples": {split: len(labels) for split, labels in self.pool.labels.items()},
            "division": None if self.pool.division is None else dict(self.pool.division),
            "missing": {run: members for run, members in self.pool.missing.items() if members},
            **self.summary(chosen),
            **{
                split: bootstrap_intervals(self.per_example_scores(split, chosen))[0]
                for split in ("validation", "test")
            },
            "best_member": self._gain_over_best_member(chosen),
            "front": self._pareto_front(),
            "diversity": diversity,
        }

    def summary(self, multiplicities: np.ndarray) -> dict[str, Any]:
        """Return the members of a committee, its cost, and its scores on both splits.

        `accuracy_interval` is the 95 % Wilson interval of the accuracy over the images of each split.
        """
        rows = np.atleast_2d(multiplicities)
        scores_by_split = {
            split: committee_scores.scores(self.pool.predictions[split], self.pool.labels[split], rows, self.head)
            for split in ("validation", "test")
        }
        return {
            "members": [
                self.member_entry(index, multiplicities[index]) for index in np.flatnonzero(multiplicities).tolist()
            ],
            "mflops": to_document(float(committee_costs(multiplicities, self.pool.mflops, self.head))),
            "latency_ms": None if self.latencies is None else float(self.candidates.cost(multiplicities)),
            **{
                split: {name: float(values[0]) for name, values in split_scores.items()}
                for split, split_scores in scores_by_split.items()
            },
            "accuracy_interval": {
                split: metrics.accuracy_interval(float(split_scores["accuracy"][0]), len(self.pool.labels[split]))
                for split, split_scores in scores_by_split.items()
            },
        }

    def member_entry(self, index: int, multiplicity: int) -> dict[str, Any]:
        """Return the description of one member of a committee."""
        member = self.pool.members[index]
        view = {} if member.view is None else {"view": dataclasses.asdict(member.view)}
        return {"run": str(member.run), "index": member.index, "name": member.name, "share": int(multiplicity), **view}

    def single_member_multiplicities(self, entry: dict[str, Any]) -> np.ndarray:
        """Return the multiplicities of the committee of the one member of `entry`, see `member_entry`."""
        return np.eye(len(self.pool.members), dtype=np.int64)[self.pool.position_of(entry)]

    def _budget(self) -> dict[str, float | None]:
        max_cost = float(self.objective.max_cost) if np.isfinite(self.objective.max_cost) else None
        return {
            "max_mflops": max_cost if self.latencies is None else None,
            "max_latency_ms": None if self.latencies is None else max_cost,
            "min_accuracy": self.objective.min_accuracy or None,
        }

    def _gain_over_best_member(self, chosen: np.ndarray) -> dict[str, Any]:
        """Return the best member on validation within the budget, and the gain of the committee over it on test."""
        single_members = self.candidates.score(np.eye(len(self.pool.members), dtype=np.int64))
        best = single_members.best(Objective(metric=self.objective.metric, max_cost=self.objective.max_cost))
        best_member = single_members.multiplicities[best]
        gain = bootstrap_differences(
            self.per_example_scores("test", chosen), self.per_example_scores("test", best_member)
        )[0]
        return {**self.summary(best_member), "gain": gain}

    def _pareto_front(self) -> list[dict[str, Any]]:
        table = self.candidates.table()
        return [self.summary(table.multiplicities[row]) for row in table.pareto_front(self.objective.metric)]

    def _not_found_message(self, table: CandidateTable) -> str:
        in_budget = table.select_rows(within_budget(table.costs, self.objective))
        accuracy_objective = Objective(metric="accuracy", max_cost=self.objective.max_cost)
        best = in_budget.best(accuracy_objective)
        reached = (
            f"{in_budget.scores['accuracy'][best]:.4f} at {format_cost(float(in_budget.costs[best]))} {self.cost_unit}"
        )
        bound = f" within {self.objective.max_cost:g} {self.cost_unit}" if np.isfinite(self.objective.max_cost) else ""
        return (
            f"no committee of {len(self.pool.members)} members{bound} reaches the accuracy "
            f"{self.objective.min_accuracy:g} on validation; the best reaches {reached}.\n"
            "  Lower --min-accuracy, raise the budget, or train better members."
        )


def _check_budget(pool: Pool, costs: np.ndarray, objective: Objective, unit: str) -> None:
    cheapest = int(costs.argmin())
    if within_budget(costs[cheapest], objective):
        return
    member = pool.members[cheapest]
    raise RecipeError(
        f"the budget of {objective.max_cost:g} {unit} is too small: the cheapest member, {member.index} "
        f"({member.name}) of {member.run}, needs {costs[cheapest]:.4g} {unit}.\n"
        "  Raise the budget or train smaller members."
    )


def to_selection_members(pool: Pool, indices: Sequence[int], out: Path) -> tuple[SelectedMember, ...]:
    """Return the pool members with these indices, for a selection in the file `out`."""
    out_dir = out.parent.resolve()
    return tuple(
        SelectedMember(
            run=os.path.relpath(member.run.resolve(), out_dir),
            index=member.index,
            weights=member.weights_hash,
            name=member.name,
            parameters=member.parameters,
            mflops=member.mflops,
            temperature=member.temperature,
            view=member.view,
        )
        for member in (pool.members[index] for index in indices)
    )


def members_and_weights(
    pool: Pool, multiplicities: np.ndarray, head: str, out: Path
) -> tuple[tuple[SelectedMember, ...], tuple[float, ...] | None]:
    """Return the members and their weights; None where all are equal or members are repeated instead."""
    indices = np.flatnonzero(multiplicities)
    if (multiplicities[indices] == 1).all() or head != "geometric_mean":
        return to_selection_members(pool, np.repeat(indices, multiplicities[indices]).tolist(), out), None
    weights = multiplicities[indices] / multiplicities[indices].sum()
    return to_selection_members(pool, indices.tolist(), out), tuple(weights.tolist())


def _selective_bounds(
    bounds: dict[str, Any], predictions: MemberPredictions, committee: np.ndarray, max_risk: float, max_drop: float
) -> dict[str, Any]:
    """Return the goal of `search_cascade` for accepted answers. Raises RecipeError where the committee has none."""
    coverage = _committee_coverage(predictions, committee, max_risk)
    if not coverage:
        raise RecipeError(
            f"however few of the answers of the best committee are accepted, their error rate is above {max_risk:g} on "
            f"the {len(predictions.labels):,} validation images.\n  Raise --max-risk, or train better members."
        )
    goal = bounds if "max_cost" in bounds else {"target": coverage - max_drop / 100}
    return {**goal, "max_risk": max_risk}


def _member_list(multiplicities: np.ndarray) -> list[int]:
    """Return the indices of the members of a committee, repeated ones as often as they occur."""
    return np.repeat(np.arange(len(multiplicities)), multiplicities).tolist()


def _committee_coverage(predictions: MemberPredictions, committee: np.ndarray, max_risk: float) -> float:
    """Return the fraction of the answers of a committee that can be accepted at this error rate."""
    members = _member_list(committee)
    correct = predictions.probabilities(members).argmax(axis=1) == predictions.labels
    return metrics.coverage_at_risk(predictions.confidences(members, "max_probability"), correct, max_risk)


def _coverage_report(
    committee: np.ndarray,
    predictions: dict[str, MemberPredictions],
    results: dict[str, SimulationResult],
    max_risk: float,
) -> dict[str, Any]:
    """Return the fraction of the answers that can be accepted at an error rate, of cascade and committee."""
    coverage = {
        split: metrics.coverage_at_risk(result.confidence, result.correct, max_risk)
        for split, result in results.items()
    }
    of_committee = {split: _committee_coverage(each, committee, max_risk) for split, each in predictions.items()}
    return {"max_risk": max_risk, "coverage": coverage, "committee_coverage": of_committee}


def _search_bounds(
    objective: Objective, selector: CommitteeSelector, committee: np.ndarray, max_accuracy_drop: float
) -> dict[str, Any]:
    """Return the goal of `search_cascade`: a target or a highest mean cost."""
    if math.isfinite(objective.max_cost):
        return {"max_cost": objective.max_cost}
    if objective.min_accuracy:
        return {"target": objective.min_accuracy}
    return {"target": selector.summary(committee)["validation"][objective.metric] - max_accuracy_drop / 100}


def _infeasible_message(
    pool: Pool, objective: Objective, time_model: StageTimeModel | None, bounds: dict[str, Any]
) -> str:
    if "max_risk" in bounds and "target" in bounds:
        return (
            f"no cascade of {len(pool.members)} members accepts {100 * bounds['target']:.1f} % of the validation "
            f"answers at an error rate of {bounds['max_risk']:g}.\n  Raise --max-accuracy-drop or --max-risk."
        )
    if math.isfinite(objective.max_cost) and time_model is not None:
        times = [time_model.committee_ms([member.architecture]) for member in pool.members]
        fastest = pool.members[int(np.argmin(times))]
        return (
            f"no cascade answers within {objective.max_cost:g} ms per image: the fastest member, {fastest.index} "
            f"({fastest.name}) of {fastest.run}, takes {min(times):.4g} ms in batches of {time_model.batch_size} on "
            "this machine.\n  Raise --max-latency, change --batch-size, or train smaller members."
        )
    if math.isfinite(objective.max_cost):
        cheapest = pool.members[int(pool.mflops.argmin())]
        return (
            f"the mean budget of {objective.max_cost:g} MFLOPs is too small: the cheapest member, {cheapest.index} "
            f"({cheapest.name}) of {cheapest.run}, needs {format_cost(cheapest.mflops, '.4g')} MFLOPs.\n"
            "  Raise the budget or train smaller members."
        )
    return (
        f"no cascade of {len(pool.members)} members reaches the accuracy {objective.min_accuracy:g} on validation.\n"
        "  Lower --min-accuracy, or train better members."
    )


def _cascade_report(
    selector: CommitteeSelector,
    committee: np.ndarray,
    config: CascadeConfig,
    predictions: dict[str, MemberPredictions],
    bounds: dict[str, Any],
    objective: Objective,
) -> dict[str, Any]:
    """Return the report of a committee, with the mean MFLOPs on test, and the comparison of cascade and committee."""
    committee_report, committee_summary = selector.report(committee), selector.summary(committee)
    time_model, max_risk = predictions["test"].time_model, bounds.get("max_risk")
    results = {split: simulate_cascade(split_predictions, config) for split, split_predictions in predictions.items()}
    scores = {
        split: committee_scores.per_example_scores_from_probabilities(
            results[split].probabilities[None], predictions[split].labels
        )
        for split in results
    }
    best_member = committee_report["best_member"]
    best_member_scores = selector.per_example_scores(
        "test", selector.single_member_multiplicities(best_member["members"][0])
    )
    latency = {} if time_model is None else {"latency": _latency_report(selector, committee, config, predictions)}
    return committee_report | {
        "budget": {
            "max_mflops": bounds.get("max_cost") if time_model is None else None,
            "max_latency_ms": None if time_model is None else bounds.get("max_cost"),
            "min_accuracy": objective.min_accuracy or None,
        },
        "members": [selector.member_entry(index, 1) for index in config.order],
        "mflops": results["test"].mflops,
        **{split: bootstrap_intervals(split_scores)[0] for split, split_scores in scores.items()},
        "accuracy_interval": {
            split: metrics.accuracy_interval(result.scores["accuracy"], len(predictions[split].labels))
            for split, result in results.items()
        },
        "best_member": {**best_member, "gain": bootstrap_differences(scores["test"], best_member_scores)[0]},
        "cascade": {
            "target": bounds.get("target"),
            "cost": "mflops" if time_model is None else "latency",
            **latency,
            **({} if max_risk is None else _coverage_report(committee, predictions, results, max_risk)),
            **evaluate_cascade(
                config, predictions["validation"], predictions["test"], objective=objective.metric, **bounds
            ),
            "committee": committee_summary,
            "difference": bootstrap_differences(scores["test"], selector.per_example_scores("test", committee))[0],
            "times_cheaper": _cost_ratio(
                selector.summary(committee)["mflops"], predictions["test"], config, results["test"]
            ),
        },
    }


def _latency_report(
    selector: CommitteeSelector,
    committee: np.ndarray,
    config: CascadeConfig,
    predictions: dict[str, MemberPredictions],
) -> dict[str, Any]:
    """Return the predicted times in milliseconds per image, and the measurements that they rest on.

    `shares` is for each stage the fraction of the images of the validation split that reach it.
    """
    model: Any = predictions["validation"].time_model
    architectures = [selector.pool.members[index].architecture for index in np.flatnonzero(committee)]
    return {
        "batch_size": model.batch_size,
        "predicted_ms": {split: predicted_latency(config, each) for split, each in predictions.items()},
        "committee_predicted_ms": model.committee_ms(architectures),
        "shares": shares_that_reach(simulate_cascade(predictions["validation"], config)),
        "graphs": [dataclasses.asdict(graph) for graph in model.graphs],
    }


def _cost_ratio(
    mflops: float, predictions: MemberPredictions, config: CascadeConfig, result: SimulationResult
) -> dict[str, float]:
    """Return the committee's cost divided by the cascade's mean cost, with a 95 % interval."""
    costs = np.array([predictions.cost(config.order[:used]) for used in range(len(config.order) + 1)])[
        result.members_used
    ]
    mean_cost = bootstrap_mean_difference(costs, np.zeros_like(costs))
    return {"value": mflops / mean_cost["value"], "low": mflops / mean_cost["high"], "high": mflops / mean_cost["low"]}
