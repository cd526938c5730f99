"""Which committees have been looked at, what do they cost and score, and which of them is the best for a goal?

A committee is a row of whole shares, as in `subsets`.
"""

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_committee.evaluation.committee_scores import SCORES, Figures, differences, scores

OBJECTIVES = ("accuracy", "nll", "brier")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted of a committee.

    Attributes:
        objective: `"accuracy"`, `"nll"` or `"brier"`, on the validation split.
        max_cost: A committee may cost so much at most.
        min_accuracy: It must be so accurate on the validation split at least.
    """

    objective: str = "accuracy"
    max_cost: float = math.inf
    min_accuracy: float = 0.0

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}. Received: {self.objective!r}")

    @property
    def cheapest(self) -> bool:
        """Whether the cheapest that is accurate enough is wanted, since nothing else bounds the cost."""
        return self.min_accuracy > 0 and math.isinf(self.max_cost)


@dataclass(frozen=True)
class Table:
    """Committees with what they cost and score on the validation split, one row each.

    Attributes:
        shares: int64 `(committees, members)`.
        costs: float64 `(committees,)`.
        scores: For each of `subsets.SCORES` float64 `(committees,)`.
    """

    shares: np.ndarray
    costs: np.ndarray
    scores: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.costs)

    def losses(self, objective: str) -> np.ndarray:
        """The objective, so that less is better."""
        return -self.scores["accuracy"] if objective == "accuracy" else self.scores[objective]

    def where(self, rows: np.ndarray) -> "Table":
        """The rows of a mask or of indices."""
        return Table(self.shares[rows], self.costs[rows], {score: each[rows] for score, each in self.scores.items()})

    def meets(self, goal: Goal) -> np.ndarray:
        """bool `(committees,)`: which keep to the budget and are accurate enough."""
        return affordable(self.costs, goal) & (self.scores["accuracy"] >= goal.min_accuracy - 1e-12)

    def best(self, goal: Goal) -> int | None:
        """The row of the best that meets the goal, of equals the cheaper and then the one of less NLL; None if none."""
        losses = self.losses(goal.objective)
        first, second = (self.costs, losses) if goal.cheapest else (losses, self.costs)
        order = np.lexsort((self.scores["nll"], second, first, ~self.meets(goal)))
        return int(order[0]) if len(order) and self.meets(goal)[order[0]] else None

    def front(self, objective: str) -> np.ndarray:
        """The rows that no other one beats: none costs less and is as good, or costs as much and is better.

        By rising cost; of equal ones the first.
        """
        losses = self.losses(objective)
        order = np.lexsort((losses, self.costs))
        before = np.concatenate([[np.inf], np.minimum.accumulate(losses[order])[:-1]])
        return order[losses[order] < before]


def affordable(costs: np.ndarray, goal: Goal) -> np.ndarray:
    """bool: which costs keep to the budget, to the FLOP."""
    return costs <= goal.max_cost + 1e-6


class Candidates:
    """The committees looked at so far; each is scored once.

    Args:
        log_probabilities: Of the validation split: floats `(examples, members, classes)`.
        labels: Integers `(examples,)`.
        costs: For each member, floats above 0.
        head: One of `subsets.HEADS`, not the weighted one.
    """

    def __init__(
        self, log_probabilities: np.ndarray, labels: np.ndarray, costs: Sequence[float] | np.ndarray, head: str
    ):
        self._votes, self._labels, self.head = log_probabilities, labels, head
        self.member_costs = np.asarray(costs, dtype=np.float64)
        self._places: dict[bytes, int] = {}
        self._rows: list[np.ndarray] = []
        self._scores: list[dict[str, np.ndarray]] = []

    @property
    def members(self) -> int:
        return len(self.member_costs)

    def cost(self, shares: np.ndarray) -> np.ndarray:
        """Of each committee. A geometric mean asks a member of several shares once, since it has weights."""
        asked = np.minimum(shares, 1 if self.head == "geometric_mean" else np.inf)
        return np.round(asked @ self.member_costs, 6)  # to the FLOP: equal costs are equal, in whatever order they add

    def score(self, shares: np.ndarray) -> Table:
        """The committees of these rows, scored now or before."""
        shares = np.asarray(shares, dtype=np.int64)
        shares = shares // np.gcd.reduce(shares, axis=1, keepdims=True)
        keys = [row.tobytes() for row in shares]
        new = {key: row for key, row in zip(keys, shares, strict=True) if key not in self._places}
        if new:
            rows = np.stack(list(new.values()))
            self._places |= {key: len(self._places) + place for place, key in enumerate(new)}
            self._rows.append(rows)
            self._scores.append(scores(self._votes, self._labels, rows, self.head))
        return self.table().where(np.array([self._places[key] for key in keys]))

    def table(self) -> Table:
        """All of them."""
        self._rows = [np.concatenate(self._rows)] if self._rows else [np.zeros((0, self.members), np.int64)]
        joined = {score: np.concatenate([each[score] for each in self._scores] or [np.zeros(0)]) for score in SCORES}
        self._scores = [joined]
        return Table(self._rows[0], self.cost(self._rows[0]), joined)


METHODS = ("auto", "exhaustive", "greedy", "evolutionary")
MOST_EXHAUSTIVE = 12  # members: 4,095 committees, about ten seconds on 10,000 examples of ten classes
MOST_MEMBERS = 16  # where exhaustive search is asked for

_ROUNDS = 30  # of greed
_POPULATION, _GENERATIONS = 40, 40


def look(
    candidates: Candidates, goal: Goal, method: str = "auto", members: Sequence[int] | np.ndarray | None = None
) -> str:
    """Looks at committees of `members`, of all where None, and returns the name of the method that it took.

    Raises:
        ValueError: If there is no such method, or there are too many members for it.
    """
    places = np.arange(candidates.members) if members is None else np.asarray(members)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}. Received: {method!r}")
    if method == "auto":
        method = "exhaustive" if len(places) <= MOST_EXHAUSTIVE else "evolutionary"
    _METHODS[method](candidates, goal, places)
    return method


def _exhaustive(candidates: Candidates, _goal: Goal, members: np.ndarray) -> None:
    """Every subset, whatever it costs: the front shows what a larger budget would buy."""
    if len(members) > MOST_MEMBERS:
        raise ValueError(
            f"exhaustive search takes {MOST_MEMBERS} members at most. Received: {len(members)}, which have "
            f"{2 ** len(members) - 1:,} committees. Take the method greedy or evolutionary."
        )
    bits = (np.arange(1, 2 ** len(members))[:, None] >> np.arange(len(members))) & 1
    shares = np.zeros((len(bits), candidates.members), np.int64)
    shares[:, members] = bits
    candidates.score(shares)


def _greedy(candidates: Candidates, goal: Goal, members: np.ndarray) -> None:
    """Adds, again and again, the member that makes the committee best; one that is in it already counts once more.

    Source: Caruana et al. 2004, Ensemble Selection from Libraries of Models, ICML, sections 2 and 2.1.
    """
    one_more = np.eye(candidates.members, dtype=np.int64)[members]
    committee = np.zeros(candidates.members, np.int64)
    for _ in range(_ROUNDS):
        grown = committee + one_more
        grown = grown[affordable(candidates.cost(grown), goal)]
        if not len(grown):
            return
        committee = grown[_order(candidates.score(grown), goal)[0]]


def _evolutionary(candidates: Candidates, goal: Goal, members: np.ndarray) -> None:
    """Keeps the best of each generation, and of their children: crossed uniformly, a member or so put in or out."""
    draw = np.random.default_rng(0)
    _greedy(candidates, goal, members)
    seen = candidates.table().shares
    inside = np.isin(np.arange(candidates.members), members)
    parents = np.minimum(seen[(seen[:, ~inside] == 0).all(axis=1)], 1)
    parents = np.concatenate([parents, _random(candidates, goal, members, draw)])
    for _ in range(_GENERATIONS):
        table = candidates.score(np.unique(parents, axis=0)) if len(parents) else candidates.table()
        parents = table.shares[_order(table, goal)[:_POPULATION]]
        if len(parents) == 0:
            return
        children = [_child(parents, members, draw) for _ in range(_POPULATION)]
        children = [_afforded(each, candidates, goal, draw) for each in children]
        parents = np.concatenate([parents, *(each[None] for each in children if each.any())])


def _random(candidates: Candidates, goal: Goal, members: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Committees of any size that keep to the budget."""
    rows = np.zeros((_POPULATION, candidates.members), np.int64)
    for row in rows:
        row[draw.choice(members, draw.integers(1, len(members) + 1), replace=False)] = 1
    rows = np.stack([_afforded(row, candidates, goal, draw) for row in rows])
    return rows[rows.any(axis=1)]


def _child(parents: np.ndarray, members: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Good parents have more children: of two drawn, the better one becomes a parent."""
    mother, father = (parents[draw.integers(len(parents), size=2).min()] for _ in range(2))
    child = np.where(draw.random(len(mother)) < 0.5, mother, father)
    flipped = members[draw.random(len(members)) < 1 / len(members)]
    child[flipped] = 1 - child[flipped]
    return child


def _afforded(row: np.ndarray, candidates: Candidates, goal: Goal, draw: np.random.Generator) -> np.ndarray:
    """The row without as many of its members, drawn at random, as it takes to keep to the budget."""
    row = row.copy()
    while row.any() and not affordable(candidates.cost(row), goal):
        row[draw.choice(np.flatnonzero(row))] = 0
    return row


def _order(table: Table, goal: Goal) -> np.ndarray:
    """Rows, the best first: accurate enough or nearest to it, then by the objective and NLL, or by cost."""
    lacking = np.maximum(0, goal.min_accuracy - table.scores["accuracy"])
    losses = table.losses(goal.objective)
    keys = (table.costs, table.scores["nll"], losses)
    return np.lexsort((*((keys[1], keys[2], keys[0]) if goal.cheapest else keys), lacking))


_METHODS = types.MappingProxyType({"exhaustive": _exhaustive, "greedy": _greedy, "evolutionary": _evolutionary})


def compare_architectures(
    candidates: Candidates,
    architectures: Sequence[str],
    goal: Goal,
    method: str,
    figures: Callable[[np.ndarray], Figures],
) -> dict[str, Any]:
    """The answer and what it rests on.

    Args:
        candidates: What was looked at so far; more may be added.
        architectures: Of each member.
        goal: Both committees keep to it.
        method: As `methods.look` takes it.
        figures: Function of shares `(committees, members)`: their figures on the test split.

    Returns:
        `{"answer", "statement", "pairs"}`. The answer is "yes", "no", "undecided", or "cannot be told" where the pool
        has no such pair. Each of the pairs is `{"uniform", "mixed", "difference"}`: the shares of the two committees,
        and of mixed less uniform the differences on test with 95 % intervals. The first pair, that of the best
        uniform committee on validation, gives the answer.
    """
    kinds = np.asarray(architectures)
    uniforms = [_uniform(candidates, kinds, kind, goal, method) for kind in dict.fromkeys(architectures)]
    found = sorted((row for row in uniforms if row is not None), key=lambda row: _loss(candidates, row, goal))
    pairs = [(row, mixed) for row in found if (mixed := _mixed(candidates, kinds, row, goal, method)) is not None]
    if not pairs:
        return {"answer": "cannot be told", "statement": _why_not(kinds, bool(found)), "pairs": []}
    uniform, mixed = (figures(np.stack(rows)) for rows in zip(*pairs, strict=True))
    gaps = differences(mixed, uniform)
    answer = _answer(gaps[0][goal.objective], goal.objective)
    return {
        "answer": answer,
        "statement": _statement(answer, gaps[0][goal.objective], goal.objective, mixed.correct.shape[1]),
        "pairs": [
            {"uniform": row.tolist(), "mixed": other.tolist(), "difference": gap}
            for (row, other), gap in zip(pairs, gaps, strict=True)
        ],
    }


def _uniform(candidates: Candidates, kinds: np.ndarray, kind: str, goal: Goal, method: str) -> np.ndarray | None:
    """The best committee of two or more members of one architecture."""
    members = np.flatnonzero(kinds == kind)
    if len(members) < 2:
        return None
    look(candidates, goal, method, members)
    table = candidates.table()
    table = table.where((table.shares[:, kinds != kind] == 0).all(axis=1) & ((table.shares > 0).sum(axis=1) > 1))
    best = table.best(goal)
    return None if best is None else table.shares[best]


def _mixed(candidates: Candidates, kinds: np.ndarray, uniform: np.ndarray, goal: Goal, method: str):
    """The best committee of two or more architectures that costs no more than `uniform`."""
    cost = float(candidates.cost(uniform))
    same_cost = Goal(objective=goal.objective, max_cost=cost, min_accuracy=goal.min_accuracy)
    if len(set(kinds)) > 1:
        look(candidates, same_cost, method)
    table = candidates.table()
    present = np.stack([(table.shares[:, kinds == kind] > 0).any(axis=1) for kind in sorted(set(kinds))])
    table = table.where(present.sum(axis=0) > 1)
    best = table.best(same_cost)
    return None if best is None else table.shares[best]


def _loss(candidates: Candidates, row: np.ndarray, goal: Goal) -> float:
    return float(candidates.score(row[None]).losses(goal.objective)[0])


def _answer(gap: dict[str, float], objective: str) -> str:
    low, high = (gap["low"], gap["high"]) if objective == "accuracy" else (-gap["high"], -gap["low"])
    if low > 0:
        return "yes"
    return "no" if high <= 0 else "undecided"


def _why_not(kinds: np.ndarray, has_uniform: bool) -> str:
    if len(set(kinds)) == 1:
        return "All members are of one architecture, so there is nothing to mix."
    if not has_uniform:
        return "No architecture has two members that keep to the goal together, so there is nothing to compare with."
    return "No mix of architectures costs as little as several members of one and keeps to the goal."


def _statement(answer: str, gap: dict[str, float], objective: str, examples: int) -> str:
    words = {
        "yes": "Mixing architectures beats the same one several times",
        "no": "Mixing architectures does not beat the same one several times",
        "undecided": "Whether mixing architectures beats the same one several times cannot be decided",
    }[answer]
    unit, scale = ("points of accuracy", 100) if objective == "accuracy" else (objective.upper(), 1)
    value, low, high = (f"{scale * gap[key]:+.{2 if scale == 100 else 4}f}" for key in ("value", "low", "high"))
    return (
        f"{words} at equal or lower cost: {value} {unit} on {examples} test examples, "
        f"95 % interval {low} to {high} (of the choice of examples; another training is not in it)."
    )
