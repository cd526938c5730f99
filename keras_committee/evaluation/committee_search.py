"""Search for the best committee of a pool, and comparison of one architecture with several.

A committee is a row of integer multiplicities, as in `committee_scores`.
"""

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_committee.choices import OBJECTIVES, SEARCH_METHODS
from keras_committee.evaluation.committee_scores import SCORE_NAMES, PerExampleScores, bootstrap_differences, scores

_MAX_AUTO_EXHAUSTIVE_MEMBERS = 12  # 4,095 committees: about ten seconds on 10,000 examples of ten classes
_MAX_EXHAUSTIVE_MEMBERS = 16
_GREEDY_ROUNDS = 30
_POPULATION, _GENERATIONS = 40, 40


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Goal of a search.

    Attributes:
        metric: `"accuracy"`, `"nll"` or `"brier"`, on the validation split.
        max_cost: Highest cost of a committee.
        min_accuracy: Lowest accuracy on the validation split.
    """

    metric: str = "accuracy"
    max_cost: float = math.inf
    min_accuracy: float = 0.0

    def __post_init__(self):
        if self.metric not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}. Received: {self.metric!r}")

    @property
    def minimizes_cost(self) -> bool:
        """Whether the goal is the cheapest accurate committee: there is a lowest accuracy and no highest cost."""
        return self.min_accuracy > 0 and math.isinf(self.max_cost)


@dataclass(frozen=True)
class CandidateTable:
    """Committees with their costs and scores on the validation split, one row each.

    Attributes:
        multiplicities: int64 `(committees, members)`.
        costs: float64 `(committees,)`.
        scores: For each of `committee_scores.SCORE_NAMES` float64 `(committees,)`.
    """

    multiplicities: np.ndarray
    costs: np.ndarray
    scores: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.costs)

    def losses(self, metric: str) -> np.ndarray:
        """Return the metric, with the sign that makes lower values better."""
        return -self.scores["accuracy"] if metric == "accuracy" else self.scores[metric]

    def select_rows(self, rows: np.ndarray) -> "CandidateTable":
        """Return the rows given by a mask or by indices."""
        return CandidateTable(
            self.multiplicities[rows], self.costs[rows], {name: values[rows] for name, values in self.scores.items()}
        )

    def satisfies(self, objective: Objective) -> np.ndarray:
        """Return bool `(committees,)`: which meet the goal's highest cost and lowest accuracy."""
        return within_budget(self.costs, objective) & (self.scores["accuracy"] >= objective.min_accuracy - 1e-12)

    def best(self, objective: Objective) -> int | None:
        """Return the best row that meets the goal; of equal ones the cheaper, then that of lower NLL. None if none."""
        losses = self.losses(objective.metric)
        primary, secondary = (self.costs, losses) if objective.minimizes_cost else (losses, self.costs)
        order = np.lexsort((self.scores["nll"], secondary, primary, ~self.satisfies(objective)))
        return int(order[0]) if len(order) and self.satisfies(objective)[order[0]] else None

    def pareto_front(self, metric: str) -> np.ndarray:
        """Return the rows that no other one dominates, by ascending cost; of equal ones the first."""
        losses = self.losses(metric)
        order = np.lexsort((losses, self.costs))
        best_so_far = np.concatenate([[np.inf], np.minimum.accumulate(losses[order])[:-1]])
        return order[losses[order] < best_so_far]


def within_budget(costs: np.ndarray, objective: Objective) -> np.ndarray:
    """Return bool: which costs are within the budget, to the FLOP."""
    return costs <= objective.max_cost + 1e-6


def committee_costs(multiplicities: np.ndarray, member_costs: np.ndarray, head: str) -> np.ndarray:
    """Return the cost of each committee; infinite if that of a member is unknown.

    A geometric mean runs a member of higher multiplicity once, since it becomes a weighted geometric mean.
    """
    num_runs = np.minimum(multiplicities, 1 if head == "geometric_mean" else np.inf)
    is_known = np.isfinite(member_costs)
    total = num_runs @ np.where(is_known, member_costs, 0.0)
    # Rounded to the FLOP, so that equal costs are equal whatever the order of summation.
    return np.where((num_runs[..., ~is_known] > 0).any(axis=-1), np.inf, np.round(total, 6))


class Candidates:
    """The committees evaluated so far; each is scored once.

    Args:
        log_probabilities: Of the validation split: floats `(examples, members, classes)`.
        labels: Integers `(examples,)`.
        costs: For each member, floats above 0; infinite if unknown.
        head: One of `choices.SELECTION_HEADS`.
    """

    def __init__(
        self, log_probabilities: np.ndarray, labels: np.ndarray, costs: Sequence[float] | np.ndarray, head: str
    ):
        self._log_probabilities, self._labels, self.head = log_probabilities, labels, head
        self.member_costs = np.asarray(costs, dtype=np.float64)
        self._row_indices: dict[bytes, int] = {}
        self._rows: list[np.ndarray] = []
        self._scores: list[dict[str, np.ndarray]] = []

    @property
    def num_members(self) -> int:
        return len(self.member_costs)

    def cost(self, multiplicities: np.ndarray) -> np.ndarray:
        """Return the cost of each committee, see `committee_costs`."""
        return committee_costs(multiplicities, self.member_costs, self.head)

    def score(self, multiplicities: np.ndarray) -> CandidateTable:
        """Return the committees of these rows; those that are new are scored."""
        multiplicities = np.asarray(multiplicities, dtype=np.int64)
        multiplicities = multiplicities // np.gcd.reduce(multiplicities, axis=1, keepdims=True)
        keys = [row.tobytes() for row in multiplicities]
        new = {key: row for key, row in zip(keys, multiplicities, strict=True) if key not in self._row_indices}
        if new:
            rows = np.stack(list(new.values()))
            self._row_indices |= {key: len(self._row_indices) + offset for offset, key in enumerate(new)}
            self._rows.append(rows)
            self._scores.append(scores(self._log_probabilities, self._labels, rows, self.head))
        return self.table().select_rows(np.array([self._row_indices[key] for key in keys]))

    def table(self) -> CandidateTable:
        """Return all committees evaluated so far."""
        self._rows = [np.concatenate(self._rows)] if self._rows else [np.zeros((0, self.num_members), np.int64)]
        joined = {name: np.concatenate([part[name] for part in self._scores] or [np.zeros(0)]) for name in SCORE_NAMES}
        self._scores = [joined]
        return CandidateTable(self._rows[0], self.cost(self._rows[0]), joined)


def search_committees(
    candidates: Candidates,
    objective: Objective,
    method: str = "auto",
    members: Sequence[int] | np.ndarray | None = None,
) -> str:
    """Evaluate committees of `members` and return the name of the search method used.

    Args:
        candidates: The committees evaluated so far; the new ones are added.
        objective: The goal that guides the greedy and the evolutionary search.
        method: One of `choices.SEARCH_METHODS`. `"auto"` is exhaustive for up to 12 members, else evolutionary.
        members: Indices of the members to combine; None for all.

    Raises:
        ValueError: If there is no such method, or there are too many members for it.
    """
    member_indices = np.arange(candidates.num_members) if members is None else np.asarray(members)
    if method not in SEARCH_METHODS:
        raise ValueError(f"method must be one of {', '.join(SEARCH_METHODS)}. Received: {method!r}")
    if method == "auto":
        method = "exhaustive" if len(member_indices) <= _MAX_AUTO_EXHAUSTIVE_MEMBERS else "evolutionary"
    _SEARCH_FUNCTIONS[method](candidates, objective, member_indices)
    return method


def compare_architectures(
    candidates: Candidates,
    architectures: Sequence[str],
    objective: Objective,
    method: str,
    score_on_test: Callable[[np.ndarray], PerExampleScores],
) -> dict[str, Any]:
    """Compare committees of one architecture with committees of several at equal or lower cost.

    Args:
        candidates: The committees evaluated so far; more may be added.
        architectures: The architecture of each member.
        objective: The goal that both committees meet.
        method: Search method, as in `search_committees`.
        score_on_test: Function of multiplicities `(committees, members)` that returns their scores on the test split.

    Returns:
        `{"answer", "statement", "pairs"}`. The answer is "yes", "no", "undecided", or "not comparable" where the pool
        has no such pair. Each of the pairs is `{"uniform", "mixed", "difference"}`: the multiplicities of the two
        committees, and the differences of their test scores, mixed minus uniform, with 95 % intervals. The first pair,
        that of the best single-architecture committee on validation, determines the answer.
    """
    member_architectures = np.asarray(architectures)
    best_per_architecture = [
        _single_architecture(candidates, member_architectures, kind, objective, method)
        for kind in dict.fromkeys(architectures)
    ]
    single_architecture_rows = sorted(
        (row for row in best_per_architecture if row is not None), key=lambda row: _loss(candidates, row, objective)
    )
    pairs = [
        (row, mixed)
        for row in single_architecture_rows
        if (mixed := _mixed(candidates, member_architectures, row, objective, method)) is not None
    ]
    if not pairs:
        return {
            "answer": "not comparable",
            "statement": _skip_reason(member_architectures, bool(single_architecture_rows)),
            "pairs": [],
        }
    single_scores, mixed = (score_on_test(np.stack(rows)) for rows in zip(*pairs, strict=True))
    differences_on_test = bootstrap_differences(mixed, single_scores)
    answer = _decide(differences_on_test[0][objective.metric], objective.metric)
    return {
        "answer": answer,
        "statement": _verdict(
            answer, differences_on_test[0][objective.metric], objective.metric, mixed.correct.shape[1]
        ),
        "pairs": [
            {"uniform": row.tolist(), "mixed": other.tolist(), "difference": gap}
            for (row, other), gap in zip(pairs, differences_on_test, strict=True)
        ],
    }


def _exhaustive(candidates: Candidates, _objective: Objective, members: np.ndarray) -> None:
    """Evaluate every subset, also those above the budget: the Pareto front shows the gain of a larger one."""
    if len(members) > _MAX_EXHAUSTIVE_MEMBERS:
        raise ValueError(
            f"exhaustive search is limited to {_MAX_EXHAUSTIVE_MEMBERS} members. Received: {len(members)} members with "
            f"{2 ** len(members) - 1:,} committees. Use --search-method greedy or evolutionary."
        )
    bits = (np.arange(1, 2 ** len(members))[:, None] >> np.arange(len(members))) & 1
    multiplicities = np.zeros((len(bits), candidates.num_members), np.int64)
    multiplicities[:, members] = bits
    candidates.score(multiplicities)


def _greedy(candidates: Candidates, objective: Objective, members: np.ndarray) -> None:
    """Add the member that improves the committee most, again and again; a repeated member counts several times.

    Source: Caruana et al. 2004, Ensemble Selection from Libraries of Models, ICML, sections 2 and 2.1.
    """
    increments = np.eye(candidates.num_members, dtype=np.int64)[members]
    committee = np.zeros(candidates.num_members, np.int64)
    for _ in range(_GREEDY_ROUNDS):
        extended = committee + increments
        extended = extended[within_budget(candidates.cost(extended), objective)]
        if not len(extended):
            return
        committee = extended[_ranking(candidates.score(extended), objective)[0]]


def _evolutionary(candidates: Candidates, objective: Objective, members: np.ndarray) -> None:
    """Keep the best committees of each generation and their children, by uniform crossover and mutation."""
    rng = np.random.default_rng(0)
    _greedy(candidates, objective, members)
    seen = candidates.table().multiplicities
    is_selectable = np.isin(np.arange(candidates.num_members), members)
    parents = np.minimum(seen[(seen[:, ~is_selectable] == 0).all(axis=1)], 1)
    parents = np.concatenate([parents, _random_committees(candidates, objective, members, rng)])
    for _ in range(_GENERATIONS):
        table = candidates.score(np.unique(parents, axis=0)) if len(parents) else candidates.table()
        parents = table.multiplicities[_ranking(table, objective)[:_POPULATION]]
        if len(parents) == 0:
            return
        children = [_offspring(parents, members, rng) for _ in range(_POPULATION)]
        children = [_drop_to_budget(child, candidates, objective, rng) for child in children]
        parents = np.concatenate([parents, *(child[None] for child in children if child.any())])


def _random_committees(
    candidates: Candidates, objective: Objective, members: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return random committees of any size within the budget."""
    rows = np.zeros((_POPULATION, candidates.num_members), np.int64)
    for row in rows:
        row[rng.choice(members, rng.integers(1, len(members) + 1), replace=False)] = 1
    rows = np.stack([_drop_to_budget(row, candidates, objective, rng) for row in rows])
    return rows[rows.any(axis=1)]


def _offspring(parents: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a child of two parents, each the better of two drawn at random (tournament selection)."""
    mother, father = (parents[rng.integers(len(parents), size=2).min()] for _ in range(2))
    child = np.where(rng.random(len(mother)) < 0.5, mother, father)
    flipped = members[rng.random(len(members)) < 1 / len(members)]
    child[flipped] = 1 - child[flipped]
    return child


def _drop_to_budget(
    row: np.ndarray, candidates: Candidates, objective: Objective, rng: np.random.Generator
) -> np.ndarray:
    """Return the row without randomly chosen members, so many that it is within the budget."""
    row = row.copy()
    while row.any() and not within_budget(candidates.cost(row), objective):
        row[rng.choice(np.flatnonzero(row))] = 0
    return row


def _ranking(table: CandidateTable, objective: Objective) -> np.ndarray:
    """Return the rows, the best first: by how much accuracy is missing, then by the objective."""
    accuracy_shortfall = np.maximum(0, objective.min_accuracy - table.scores["accuracy"])
    losses = table.losses(objective.metric)
    keys = (table.costs, table.scores["nll"], losses)
    return np.lexsort((*((keys[1], keys[2], keys[0]) if objective.minimizes_cost else keys), accuracy_shortfall))


_SEARCH_FUNCTIONS = types.MappingProxyType(
    {"exhaustive": _exhaustive, "greedy": _greedy, "evolutionary": _evolutionary}
)


def _single_architecture(
    candidates: Candidates, architectures: np.ndarray, architecture: str, objective: Objective, method: str
) -> np.ndarray | None:
    """Return the best committee of two or more members of one architecture, or None."""
    members = np.flatnonzero(architectures == architecture)
    if len(members) < 2:
        return None
    search_committees(candidates, objective, method, members)
    table = candidates.table()
    table = table.select_rows(
        (table.multiplicities[:, architectures != architecture] == 0).all(axis=1)
        & ((table.multiplicities > 0).sum(axis=1) > 1)
    )
    best = table.best(objective)
    return None if best is None else table.multiplicities[best]


def _mixed(candidates: Candidates, architectures: np.ndarray, single: np.ndarray, objective: Objective, method: str):
    """Return the best committee of two or more architectures that costs no more than `single`, or None."""
    cost = float(candidates.cost(single))
    if math.isinf(cost):  # unknown
        return None
    same_cost_objective = Objective(metric=objective.metric, max_cost=cost, min_accuracy=objective.min_accuracy)
    if len(set(architectures)) > 1:
        search_committees(candidates, same_cost_objective, method)
    table = candidates.table()
    has_architecture = np.stack(
        [(table.multiplicities[:, architectures == kind] > 0).any(axis=1) for kind in sorted(set(architectures))]
    )
    table = table.select_rows(has_architecture.sum(axis=0) > 1)
    best = table.best(same_cost_objective)
    return None if best is None else table.multiplicities[best]


def _loss(candidates: Candidates, row: np.ndarray, objective: Objective) -> float:
    return float(candidates.score(row[None]).losses(objective.metric)[0])


def _decide(difference: dict[str, float], metric: str) -> str:
    low, high = (
        (difference["low"], difference["high"]) if metric == "accuracy" else (-difference["high"], -difference["low"])
    )
    if low > 0:
        return "yes"
    return "no" if high <= 0 else "undecided"


def _skip_reason(architectures: np.ndarray, has_single_architecture: bool) -> str:
    if len(set(architectures)) == 1:
        return "All members have the same architecture, so there is nothing to mix."
    if not has_single_architecture:
        return "No architecture has two members that meet the goal together, so there is nothing to compare with."
    return "No mix of architectures meets the goal at the cost of several members of one."


def _verdict(answer: str, difference: dict[str, float], metric: str, num_examples: int) -> str:
    claim = {
        "yes": "Mixing architectures beats several members of one architecture",
        "no": "Mixing architectures does not beat several members of one architecture",
        "undecided": "Whether mixing architectures beats several members of one architecture is undecided",
    }[answer]
    unit, scale = ("points of accuracy", 100) if metric == "accuracy" else (metric.upper(), 1)
    value, low, high = (f"{scale * difference[key]:+.{2 if scale == 100 else 4}f}" for key in ("value", "low", "high"))
    return (
        f"{claim} at equal or lower cost: {value} {unit} on {num_examples} test examples, "
        f"95 % interval {low} to {high} (over the choice of test examples; training variance is not included)."
    )
