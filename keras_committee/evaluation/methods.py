"""How is a good committee found among too many to look at?

Small pools are searched exhaustively. Large ones greedily, with replacement, then by evolution, which starts from what
greed has found and so never ends below it.
"""

import types
from collections.abc import Sequence

import numpy as np

from keras_committee.evaluation.candidates import Candidates, Goal, Table, affordable

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
