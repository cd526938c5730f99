"""Do members of different architectures beat the same architecture several times, at equal or lower cost?

The paper searched for architectures that make a good committee together, and found no gain over copies of one good
network (Kondratyuk et al. 2020, arXiv:2005.00570, on neural architecture search). Here the question is put to the pool
at hand: for each architecture, the best committee of several of its members, and the best mixed one that costs no more,
both chosen on validation, are compared on test.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_committee.evaluation.bootstrap import differences
from keras_committee.evaluation.candidates import Candidates, Goal
from keras_committee.evaluation.methods import look
from keras_committee.evaluation.subsets import Figures


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
