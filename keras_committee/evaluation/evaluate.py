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
from keras_committee.evaluation.committee_scores import HEADS, SCORE_NAMES, scores, subset_multiplicities
from keras_committee.evaluation.latency import measure_latencies
from keras_committee.evaluation.member_info import load_member_info
from keras_committee.evaluation.pool import check_no_duplicate_weights
from keras_committee.evaluation.predictions import SplitPredictions, load_or_compute_predictions
from keras_committee.files import write_json
from keras_committee.layers import GeometricMean, head_name, subset_head
from keras_committee.models.loading import load_member
from keras_committee.recipe import Recipe
from keras_committee.run import Run

# All 4,095 committees of twelve members; beyond that a size has this many of its subsets, drawn without repetition.
MAX_SUBSETS = 1000


def evaluate(
    run: Run,
    recipe: Recipe,
    split: str = "test",
    *,
    min_members: int | None = None,
    allow_duplicate_weights: bool = False,
    measure_latency: bool = False,
) -> dict:
    """Evaluate members and committees of every size on a split, and write `evaluation.json` into the run folder.

    Every committee size is taken over all its subsets of the members (over 1,000 of them drawn at random where there
    are more). `mflops` is 2 x multiply-adds / 1e6 for one image, summed over the members of a committee.

    Args:
        run: The run folder.
        recipe: Its recipe.
        split: `"train"`, `"validation"` or `"test"`.
        min_members: As in `load_or_compute_predictions`; `missing` in the result says who is not there.
        allow_duplicate_weights: Whether members may have identical weights.
        measure_latency: Whether to measure the latency of each member, too: `"latency"` in milliseconds.

    Returns:
        The content of `evaluation.json`.

    Raises:
        IncompleteError: If too few members are trained.
        DataError: If the data cannot be read.
        VerificationError: If a member's votes are no votes, or two members have identical weights.
    """
    predictions = load_or_compute_predictions(run, recipe, split, min_members)
    head = recipe.head or GeometricMean()
    members = _member_results(run, predictions, allow_duplicate_weights)
    if measure_latency:
        _add_latencies(run, members)
    probabilities = np.exp(predictions.log_probabilities)
    result = {
        "recipe": run.recipe_file().name,
        "split": split,
        "examples": len(predictions.labels),
        "classes": len(predictions.classes),
        "head": head_name(head),
        "members": members,
        "missing": sorted(set(range(recipe.members)) - set(predictions.members)),
        "committees": [
            score_committees_of_size(size, predictions, head, [member["mflops"] for member in members])
            for size in range(1, len(members) + 1)
        ],
        "diversity": diversity(probabilities, predictions.labels),
        "uncertainty": mean_uncertainty(
            probabilities,
            _committee_probabilities(predictions, predictions.members, head).argmax(axis=1) == predictions.labels,
        ),
    }
    write_json(run.path / "evaluation.json", result)
    run.append_event("evaluated", split=split, examples=len(predictions.labels))
    return result


def score_committees_of_size(size: int, predictions: SplitPredictions, head, mflops: list[float]) -> dict:
    """Mean, standard deviation and range of each metric over the committees of `size` members.

    The standard deviation is that of the subsets at hand (divisor n), which share members: it tells how much the choice
    of members matters, and is no standard error.
    """
    subsets = member_subsets(predictions.log_probabilities.shape[1], size)
    scores_by_name = _score_subsets(predictions, subsets, head)
    mean_mflops = float(np.mean([sum(mflops[member] for member in subset) for subset in subsets]))
    return {
        "size": size,
        "mflops": mean_mflops,
        **{name: _summary_statistics(values) for name, values in scores_by_name.items()},
    }


def member_subsets(num_members: int, size: int) -> list[tuple[int, ...]]:
    """The subsets of `size` out of `num_members`: all of them, or MOST_SUBSETS drawn with a fixed seed."""
    if math.comb(num_members, size) <= MAX_SUBSETS:
        return list(itertools.combinations(range(num_members), size))
    rng, subsets = random.Random(0), set()
    while len(subsets) < MAX_SUBSETS:
        subsets.add(tuple(sorted(rng.sample(range(num_members), size))))
    return sorted(subsets)


def _score_subsets(predictions: SplitPredictions, subsets: list[tuple[int, ...]], head) -> dict[str, list[float]]:
    """Each score of each subset."""
    name = head_name(head)
    if name not in HEADS:  # a head of the recipe's own
        rows = [_score_subset(predictions, subset, head) for subset in subsets]
        return {score: [row[score] for row in rows] for score in SCORE_NAMES}
    weights = head.get_config().get("weights")
    weights = weights and [weights[member] for member in predictions.members]
    multiplicities = subset_multiplicities(subsets, predictions.log_probabilities.shape[1], weights)
    subset_scores = scores(predictions.log_probabilities, predictions.labels, multiplicities, name)
    return {score: subset_scores[score].tolist() for score in SCORE_NAMES}


def _score_subset(predictions: SplitPredictions, subset: tuple[int, ...], head) -> dict[str, float]:
    return metrics.classification_metrics(
        _committee_probabilities(predictions, [predictions.members[position] for position in subset], head),
        predictions.labels,
    )


def _committee_probabilities(predictions: SplitPredictions, members: Sequence[int], head) -> np.ndarray:
    """The probabilities `(examples, classes)` that the committee of `members` gives."""
    positions = [predictions.members.index(member) for member in members]
    return keras.ops.convert_to_numpy(subset_head(head, members)(predictions.log_probabilities[:, positions]))


def _summary_statistics(values: list[float]) -> dict:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": min(values),
        "max": max(values),
        "subsets": len(values),
    }


def _member_results(run: Run, predictions: SplitPredictions, allow_duplicate_weights: bool) -> list[dict]:
    member_infos = [load_member_info(run, index) for index in predictions.members]
    if not allow_duplicate_weights:
        weight_hashes = {
            str(index): each.weights for index, each in zip(predictions.members, member_infos, strict=True)
        }
        check_no_duplicate_weights(weight_hashes, str(run.path))
    return [
        {
            "index": index,
            "name": each.name,
            "parameters": each.parameters,
            "mflops": each.mflops,
            **metrics.classification_metrics(np.exp(predictions.log_probabilities[:, position]), predictions.labels),
        }
        for position, (index, each) in enumerate(zip(predictions.members, member_infos, strict=True))
    ]


def _add_latencies(run: Run, members: list[dict]) -> None:
    models = [load_member(run.member(member["index"]).model) for member in members]
    for member, latencies in zip(members, measure_latencies(models), strict=True):
        member["latency"] = [dataclasses.asdict(each) for each in latencies]


def diversity(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The block `diversity` of `evaluation.json`.

    Matrices `(members, members)`, whose entries are null where they are not defined: `disagreement`, `double_fault`,
    `q_statistic`, `error_correlation`. And `ambiguity`: what all members together gain, in Brier score under the
    arithmetic mean (`brier`) and in NLL under the geometric mean (`nll`): `members`, `committee` and the `ambiguity`
    between them.

    Args:
        probabilities: Probabilities `(examples, members, classes)`.
        labels: Integers `(examples,)`.
    """
    return {
        "disagreement": metrics.disagreement(probabilities).tolist(),
        "double_fault": metrics.double_fault(probabilities, labels).tolist(),
        "q_statistic": _with_nulls(metrics.q_statistic(probabilities, labels)),
        "error_correlation": _with_nulls(metrics.error_correlation(probabilities, labels)),
        "ambiguity": {
            "brier": metrics.ambiguity(probabilities, labels),
            "nll": metrics.log_ambiguity(probabilities, labels),
        },
    }


def mean_uncertainty(probabilities: np.ndarray, correct: np.ndarray) -> dict[str, dict[str, float | None]]:
    """The block `uncertainty` of `evaluation.json`: means in nats over `all` answers, the `correct` and the `wrong` ones.

    Each has `total`, `expected` and `mutual`, as `metrics.uncertainty` defines them; null where there is no such
    answer.

    Args:
        probabilities: Probabilities `(examples, members, classes)`.
        correct: Booleans `(examples,)`: whether the committee's answer is right.
    """
    decomposition = metrics.uncertainty_decomposition(probabilities)
    masks = {"all": np.ones_like(correct), "right": correct, "wrong": ~correct}
    return {
        group: {name: float(values[mask].mean()) if mask.any() else None for name, values in decomposition.items()}
        for group, mask in masks.items()
    }


def _with_nulls(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
