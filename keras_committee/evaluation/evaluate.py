"""How good is each member, and each committee of them?"""

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.evaluation.committee_scores import HEADS, SCORES, scores, shares_of
from keras_committee.evaluation.latency import latency
from keras_committee.evaluation.member_info import describe
from keras_committee.evaluation.pool import refuse_twins
from keras_committee.evaluation.predictions import Votes, cast_votes
from keras_committee.files import write_json
from keras_committee.layers import GeometricMean, head_name, head_of
from keras_committee.models.loading import load_member
from keras_committee.recipe import Recipe
from keras_committee.run import Run

# All 4,095 committees of twelve members; beyond that a size has this many of its subsets, drawn without repetition.
MOST_SUBSETS = 1000


def evaluate(
    run: Run,
    recipe: Recipe,
    split: str = "test",
    *,
    min_members: int | None = None,
    allow_twins: bool = False,
    timed: bool = False,
) -> dict:
    """Evaluate members and committees of every size on a split, and write `evaluation.json` into the run folder.

    Every committee size is taken over all its subsets of the members (over 1,000 of them drawn at random where there
    are more). `mflops` is 2 x multiply-adds / 1e6 for one image, summed over the members of a committee.

    Args:
        run: The run folder.
        recipe: Its recipe.
        split: `"train"`, `"validation"` or `"test"`.
        min_members: As in `cast_votes`; `missing` in the result says who is not there.
        allow_twins: Whether members may have identical weights.
        timed: Whether to measure the latency of each member, too: `"latency"` in milliseconds.

    Returns:
        The content of `evaluation.json`.

    Raises:
        IncompleteError: If too few members are trained.
        DataError: If the data cannot be read.
        VerificationError: If a member's votes are no votes, or two members have identical weights.
    """
    votes = cast_votes(run, recipe, split, min_members)
    head = recipe.head or GeometricMean()
    members = _members(run, votes, allow_twins)
    if timed:
        _time(run, members)
    probabilities = np.exp(votes.log_probabilities)
    result = {
        "recipe": run.recipe_file().name,
        "split": split,
        "examples": len(votes.labels),
        "classes": len(votes.classes),
        "head": head_name(head),
        "members": members,
        "missing": sorted(set(range(recipe.members)) - set(votes.members)),
        "committees": [
            committee_of_size(size, votes, head, [member["mflops"] for member in members])
            for size in range(1, len(members) + 1)
        ],
        "diversity": diversity(probabilities, votes.labels),
        "uncertainty": uncertainty(probabilities, _answers(votes, votes.members, head).argmax(axis=1) == votes.labels),
    }
    write_json(run.path / "evaluation.json", result)
    run.journal("evaluated", split=split, examples=len(votes.labels))
    return result


def committee_of_size(size: int, votes: Votes, head, mflops: list[float]) -> dict:
    """Mean, standard deviation and range of each metric over the committees of `size` members.

    The standard deviation is that of the subsets at hand (divisor n), which share members: it tells how much the choice
    of members matters, and is no standard error.
    """
    subsets = subsets_of(votes.log_probabilities.shape[1], size)
    measured = _scores(votes, subsets, head)
    cost = float(np.mean([sum(mflops[member] for member in subset) for subset in subsets]))
    return {"size": size, "mflops": cost, **{name: _spread(values) for name, values in measured.items()}}


def subsets_of(members: int, size: int) -> list[tuple[int, ...]]:
    """The subsets of `size` out of `members`: all of them, or MOST_SUBSETS drawn with a fixed seed."""
    if math.comb(members, size) <= MOST_SUBSETS:
        return list(itertools.combinations(range(members), size))
    draw, drawn = random.Random(0), set()
    while len(drawn) < MOST_SUBSETS:
        drawn.add(tuple(sorted(draw.sample(range(members), size))))
    return sorted(drawn)


def _scores(votes: Votes, subsets: list[tuple[int, ...]], head) -> dict[str, list[float]]:
    """Each score of each subset."""
    name = head_name(head)
    if name not in HEADS:  # a head of the recipe's own
        rows = [_summary(votes, subset, head) for subset in subsets]
        return {score: [row[score] for row in rows] for score in SCORES}
    weights = head.get_config().get("weights")
    weights = weights and [weights[member] for member in votes.members]
    shares = shares_of(subsets, votes.log_probabilities.shape[1], weights)
    measured = scores(votes.log_probabilities, votes.labels, shares, name)
    return {score: measured[score].tolist() for score in SCORES}


def _summary(votes: Votes, subset: tuple[int, ...], head) -> dict[str, float]:
    return metrics.summary(_answers(votes, [votes.members[place] for place in subset], head), votes.labels)


def _answers(votes: Votes, members: Sequence[int], head) -> np.ndarray:
    """The probabilities `(examples, classes)` that the committee of `members` gives."""
    places = [votes.members.index(member) for member in members]
    return keras.ops.convert_to_numpy(head_of(head, members)(votes.log_probabilities[:, places]))


def _spread(values: list[float]) -> dict:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": min(values),
        "max": max(values),
        "subsets": len(values),
    }


def _members(run: Run, votes: Votes, allow_twins: bool) -> list[dict]:
    descriptions = [describe(run, index) for index in votes.members]
    if not allow_twins:
        digests = {str(index): each.weights for index, each in zip(votes.members, descriptions, strict=True)}
        refuse_twins(digests, str(run.path))
    return [
        {
            "index": index,
            "name": each.name,
            "parameters": each.parameters,
            "mflops": each.mflops,
            **metrics.summary(np.exp(votes.log_probabilities[:, place]), votes.labels),
        }
        for place, (index, each) in enumerate(zip(votes.members, descriptions, strict=True))
    ]


def _time(run: Run, members: list[dict]) -> None:
    models = [load_member(run.member(member["index"]).model) for member in members]
    for member, measured in zip(members, latency(models), strict=True):
        member["latency"] = [dataclasses.asdict(each) for each in measured]


def diversity(votes: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The block `diversity` of `evaluation.json`.

    Matrices `(members, members)`, whose entries are null where they are not defined: `disagreement`, `double_fault`,
    `q_statistic`, `error_correlation`. And `ambiguity`: what all members together gain, in Brier score under the
    arithmetic mean (`brier`) and in NLL under the geometric mean (`nll`): `members`, `committee` and the `ambiguity`
    between them.

    Args:
        votes: Probabilities `(examples, members, classes)`.
        labels: Integers `(examples,)`.
    """
    return {
        "disagreement": metrics.disagreement(votes).tolist(),
        "double_fault": metrics.double_fault(votes, labels).tolist(),
        "q_statistic": _with_nulls(metrics.q_statistic(votes, labels)),
        "error_correlation": _with_nulls(metrics.error_correlation(votes, labels)),
        "ambiguity": {"brier": metrics.ambiguity(votes, labels), "nll": metrics.log_ambiguity(votes, labels)},
    }


def uncertainty(votes: np.ndarray, right: np.ndarray) -> dict[str, dict[str, float | None]]:
    """The block `uncertainty` of `evaluation.json`: means in nats over `all` answers, the `right` and the `wrong` ones.

    Each has `total`, `expected` and `mutual`, as `metrics.uncertainty` defines them; null where there is no such
    answer.

    Args:
        votes: Probabilities `(examples, members, classes)`.
        right: Booleans `(examples,)`: whether the committee's answer is right.
    """
    parts = metrics.uncertainty(votes)
    chosen = {"all": np.ones_like(right), "right": right, "wrong": ~right}
    return {
        answers: {name: float(values[which].mean()) if which.any() else None for name, values in parts.items()}
        for answers, which in chosen.items()
    }


def _with_nulls(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
