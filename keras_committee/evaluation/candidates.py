"""Which committees have been looked at, what do they cost and score, and which of them is the best for a goal?

A committee is a row of whole shares, as in `subsets`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_committee.evaluation.subsets import SCORES, scores

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
