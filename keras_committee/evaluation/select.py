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
from keras_committee.evaluation.cascade import CascadeConfig, MemberPredictions, SimulationResult, simulate_cascade
from keras_committee.evaluation.cascade_search import evaluate_cascade, search_cascade
from keras_committee.evaluation.committee_scores import (
    bootstrap_differences,
    bootstrap_intervals,
    bootstrap_mean_difference,
)
from keras_committee.evaluation.committee_search import (
    Candidates,
    CandidateTable,
    Objective,
    compare_architectures,
    search_committees,
    within_budget,
)
from keras_committee.evaluation.latency import measure_latencies
from keras_committee.evaluation.pool import Pool
from keras_committee.layers import get_head
from keras_committee.member_dir import MemberDir
from keras_committee.models.loading import load_member
from keras_committee.selection import SelectedMember, Selection


def select(
    pool: Pool,
    objective: Objective,
    out: Path,
    *,
    search_method: str = "auto",
    head: str = "geometric_mean",
    latencies: Sequence[float] | None = None,
) -> Selection:
    """The best committee of a pool.

    Args:
        pool: With votes on "validation" and "test".
        objective: What is wanted. Its `max_cost` is in MFLOPs, or in milliseconds where there are `latencies`.
        out: The file that the selection is meant for; the paths of its runs start from the folder of this file.
        search_method: One of `choices.SEARCH_METHODS`.
        head: One of `subsets.HEADS`, not the weighted one.
        latencies: Milliseconds that each member takes.

    Returns:
        The selection. A committee of the geometric mean in which greed has members twice is one of the weighted
        geometric mean; with other heads such members stand twice.

    Raises:
        RecipeError: If the budget is below the cheapest member, no committee is accurate enough, or the pool is too
            large for the method.
    """
    selector = CommitteeSelector(pool, objective, head, latencies)
    chosen = selector.choose(search_method)
    members, weights = members_and_weights(pool, chosen, head, out)
    return Selection(
        members=members,
        head=head if weights is None else "weighted_geometric_mean",
        weights=weights,
        classes=pool.classes,
        report=selector.report(chosen),
    )


def member_latencies(pool: Pool) -> list[float]:
    """Median milliseconds of each member for one image, measured by turns; a committee takes their sum."""
    models = [load_member(MemberDir(member.run, member.index).model) for member in pool.members]
    return [measured.median for (measured,) in measure_latencies(models, batch_sizes=(1,))]


class CommitteeSelector:
    """A choice among the members of a pool, and what it rests on. Arguments as in `select`."""

    def __init__(self, pool: Pool, objective: Objective, head: str, latencies: Sequence[float] | None = None):
        self.pool, self.objective, self.head, self.latencies = pool, objective, head, latencies
        costs = pool.mflops if latencies is None else latencies
        self.candidates = Candidates(pool.predictions["validation"], pool.labels["validation"], costs, head)
        self.method = ""
        _check_budget(pool, self.candidates.member_costs, objective, self.cost_unit)

    @property
    def cost_unit(self) -> str:
        """Of costs."""
        return "MFLOPs" if self.latencies is None else "ms"

    def choose(self, method: str) -> np.ndarray:
        """The shares `(members,)` of the best committee. Raises RecipeError."""
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
        return committee_scores.per_example_scores(
            self.pool.predictions[split], self.pool.labels[split], np.atleast_2d(multiplicities), self.head
        )

    def report(self, chosen: np.ndarray) -> dict[str, Any]:
        """What the selection says of itself.

        Committees are as `described` has them. Figures with "low" and "high" have a 95 % interval of the bootstrap.
        `front` holds the committees that none beats on validation in both cost and objective, by rising cost;
        `best_member` the best member on validation within the budget, and what the committee gains over it on test;
        `diversity` what `compare_architectures` found.
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
        """Who is in a committee, what it costs, and how it scores on both splits."""
        rows = np.atleast_2d(multiplicities)
        scores_by_split = {
            split: committee_scores.scores(self.pool.predictions[split], self.pool.labels[split], rows, self.head)
            for split in ("validation", "test")
        }
        return {
            "members": [
                self.member_entry(index, multiplicities[index]) for index in np.flatnonzero(multiplicities).tolist()
            ],
            "mflops": float(np.minimum(multiplicities, self._max_runs_per_member) @ self.pool.mflops),
            "latency_ms": None if self.latencies is None else float(self.candidates.cost(multiplicities)),
            **{split: {score: float(each[0]) for score, each in by.items()} for split, by in scores_by_split.items()},
        }

    @property
    def _max_runs_per_member(self) -> float:
        return 1 if self.head == "geometric_mean" else np.inf

    def member_entry(self, index: int, multiplicity: int) -> dict[str, Any]:
        member = self.pool.members[index]
        return {"run": str(member.run), "index": member.index, "name": member.name, "share": int(multiplicity)}

    def single_member_multiplicities(self, entry: dict[str, Any]) -> np.ndarray:
        """The shares of the committee of one, of a member as `member` tells it."""
        return np.array(
            [(str(each.run), each.index) == (entry["run"], entry["index"]) for each in self.pool.members], int
        )

    def _budget(self) -> dict[str, float | None]:
        max_cost = float(self.objective.max_cost) if np.isfinite(self.objective.max_cost) else None
        return {
            "max_mflops": max_cost if self.latencies is None else None,
            "max_latency_ms": None if self.latencies is None else max_cost,
            "min_accuracy": self.objective.min_accuracy or None,
        }

    def _gain_over_best_member(self, chosen: np.ndarray) -> dict[str, Any]:
        """The member that is best on validation, within the budget, and what the committee gains over it on test."""
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
        reached = f"{in_budget.scores['accuracy'][best]:.4f} at {in_budget.costs[best]:.2f} {self.cost_unit}"
        bound = f" within {self.objective.max_cost:g} {self.cost_unit}" if np.isfinite(self.objective.max_cost) else ""
        return (
            f"no committee of {len(self.pool.members)} members{bound} has the accuracy {self.objective.min_accuracy:g} on "
            f"validation; the best has {reached}.\n  Lower --min-accuracy, raise the budget, or train better members."
        )


def _check_budget(pool: Pool, costs: np.ndarray, objective: Objective, unit: str) -> None:
    cheapest = int(costs.argmin())
    if within_budget(costs[cheapest], objective):
        return
    member = pool.members[cheapest]
    raise RecipeError(
        f"a budget of {objective.max_cost:g} {unit} buys no member: the cheapest, member {member.index} ({member.name}) of "
        f"{member.run}, takes {costs[cheapest]:.4g}.\n  Raise the budget or train smaller members."
    )


def to_selection_members(pool: Pool, indices: Sequence[int], out: Path) -> tuple[SelectedMember, ...]:
    """The members at these places of the pool, for a selection in the file `out`."""
    out_dir = out.parent.resolve()
    return tuple(
        SelectedMember(
            run=os.path.relpath(member.run.resolve(), out_dir),
            index=member.index,
            weights=member.weights_hash,
            name=member.name,
            parameters=member.parameters,
            mflops=member.mflops,
        )
        for member in (pool.members[index] for index in indices)
    )


def members_and_weights(
    pool: Pool, multiplicities: np.ndarray, head: str, out: Path
) -> tuple[tuple[SelectedMember, ...], tuple[float, ...] | None]:
    """The members and, where some of a geometric mean count more, their weights; of other heads they stand again."""
    indices = np.flatnonzero(multiplicities)
    if (multiplicities[indices] == 1).all() or head != "geometric_mean":
        return to_selection_members(pool, np.repeat(indices, multiplicities[indices]).tolist(), out), None
    weights = multiplicities[indices] / multiplicities[indices].sum()
    return to_selection_members(pool, indices.tolist(), out), tuple(weights.tolist())


def select_cascade(
    pool: Pool,
    objective: Objective,
    out: Path,
    *,
    search_method: str = "auto",
    head: str = "geometric_mean",
    max_accuracy_drop: float = 0.0,
) -> Selection:
    """The best cascade of a pool.

    Args:
        pool: With votes on "validation" and "test".
        objective: Its `max_cost` is the average cost in MFLOPs to keep to. Without one, the cascade reaches `min_accuracy`,
            or where that is 0 what the best committee reaches.
        out: The file that the selection is meant for.
        method: How the committee is found, see `select`.
        head: One of `subsets.HEADS`, not the weighted one.
        max_accuracy_drop: It may have so many points of accuracy less than the best committee.

    Raises:
        RecipeError: If no cascade keeps to the goal, or the pool is too large for the method.
    """
    selector = CommitteeSelector(pool, dataclasses.replace(objective, max_cost=math.inf, min_accuracy=0.0), head)
    committee = selector.choose(search_method)
    predictions = {
        split: MemberPredictions(pool.predictions[split], pool.labels[split], pool.mflops.tolist(), get_head(head))
        for split in ("validation", "test")
    }
    bounds = _search_bounds(objective, selector, committee, max_accuracy_drop)
    config = search_cascade(predictions["validation"], objective=objective.metric, **bounds)
    if config is None:
        raise RecipeError(_infeasible_message(pool, objective))
    return Selection(
        members=to_selection_members(pool, config.order, out),
        head=head,
        classes=pool.classes,
        stages=config.stages(),
        confidence=config.confidence,
        report=_cascade_report(selector, committee, config, predictions, bounds, objective),
    )


def _search_bounds(
    objective: Objective, selector: CommitteeSelector, committee: np.ndarray, max_accuracy_drop: float
) -> dict[str, Any]:
    """What the search is asked for: a target to reach, or a cost to keep to."""
    if math.isfinite(objective.max_cost):
        return {"max_mflops": objective.max_cost}
    if objective.min_accuracy:
        return {"target": objective.min_accuracy}
    return {"target": selector.summary(committee)["validation"][objective.metric] - max_accuracy_drop / 100}


def _infeasible_message(pool: Pool, objective: Objective) -> str:
    if math.isfinite(objective.max_cost):
        cheapest = min(pool.members, key=lambda member: member.mflops)
        return (
            f"an average of {objective.max_cost:g} MFLOPs buys no cascade: the cheapest member, {cheapest.index} "
            f"({cheapest.name}) of {cheapest.run}, takes {cheapest.mflops:.4g}.\n"
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
    bounds,
    objective: Objective,
) -> dict[str, Any]:
    """As that of a committee, where "mflops" is the average on test; and what the cascade is against the committee."""
    committee_report, committee_summary = selector.report(committee), selector.summary(committee)
    results = {split: simulate_cascade(each, config) for split, each in predictions.items()}
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
    return committee_report | {
        "budget": {
            "max_mflops": bounds.get("max_mflops"),
            "max_latency_ms": None,
            "min_accuracy": objective.min_accuracy or None,
        },
        "members": [selector.member_entry(place, 1) for place in config.order],
        "mflops": results["test"].mflops,
        **{split: bootstrap_intervals(each)[0] for split, each in scores.items()},
        "best_member": {**best_member, "gain": bootstrap_differences(scores["test"], best_member_scores)[0]},
        "cascade": {
            "target": bounds.get("target"),
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


def _cost_ratio(
    mflops: float, predictions: MemberPredictions, config: CascadeConfig, result: SimulationResult
) -> dict[str, float]:
    """The committee's cost over the cascade's average cost, with its interval."""
    costs = np.array([predictions.cost(config.order[:used]) for used in range(len(config.order) + 1)])[
        result.members_used
    ]
    mean_cost = bootstrap_mean_difference(costs, np.zeros_like(costs))
    return {"value": mflops / mean_cost["value"], "low": mflops / mean_cost["high"], "high": mflops / mean_cost["low"]}
