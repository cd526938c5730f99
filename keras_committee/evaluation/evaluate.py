"""Evaluation of members and of committees of every size."""

import csv
import dataclasses
import io
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_committee import aggregation, costs, metrics
from keras_committee.errors import RunError, pluralize
from keras_committee.evaluation.committee_scores import SCORE_NAMES, scores, selective_scores, subset_multiplicities
from keras_committee.evaluation.latency import measure_latencies
from keras_committee.evaluation.member_info import load_member_info
from keras_committee.evaluation.out_of_fold import OutOfFold, predict_out_of_fold
from keras_committee.evaluation.pool import check_no_duplicate_weights
from keras_committee.evaluation.predictions import (
    SplitPredictions,
    load_or_compute_predictions,
    predict_split,
    preload,
    resolve_split,
)
from keras_committee.evaluation.training_summary import kept_epochs
from keras_committee.files import write_file, write_record
from keras_committee.layers import GeometricMean, head_name, subset_head
from keras_committee.metrics.selective import SELECTIVE_METRICS
from keras_committee.models.loading import load_member
from keras_committee.progress import track
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.selection import Selection

MIN_CLASSES_FOR_TOP_5 = 11  # among fewer, five of them are a large part
_MAX_CLASSES_OF_MATRIX = 20  # a larger confusion matrix is not legible
_CURVE_POINTS = 100  # of a risk-coverage curve
_MAX_SUBSETS = 1000  # of one size: all committees of twelve members; larger numbers are sampled


def evaluate(
    run: Run,
    recipe: Recipe,
    split: str | None = None,
    *,
    min_members: int | None = None,
    allow_duplicate_weights: bool = False,
    measure_latency: bool = False,
    label_errors: bool = False,
) -> dict:
    """Evaluate members and committees of every size on a split, and write `evaluation.json` to the run folder.

    The misclassified images are listed in `misclassified.csv` beside it, see `write_misclassified`, and with
    `label_errors` those whose label is probably wrong in `label_errors.csv`.

    The scores of a committee size are means over all subsets of the members of that size, or over 1,000 random ones
    where there are more. `mflops` is 2 x multiply-adds / 1e6 for one image, summed over the members of a committee;
    None if unknown, and then `uncounted` names the layers of a member that cannot be counted. `accuracy_interval` is
    the 95 % Wilson interval over the images. A member with a history has the `epoch` whose weights were kept, and
    `epochs`, the number trained.

    `per_class` has precision and recall of the committee of all members, null where they are not defined, and
    `confusion_matrix`, with at most 20 classes, the number of examples of each true class (rows) with each predicted
    class (columns). With more than ten classes there is a `top_5_accuracy` of each member, and of the committee.

    Members and committees have `aurc`, the area under the risk-coverage curve, and `coverage_at_1_percent_risk` and
    `coverage_at_5_percent_risk`, the largest fraction of answers with at most this error rate, by confidence.
    `risk_coverage` is the curve of the committee of all members. `selected` has the scores of the committee or cascade
    in `selection.json` of the run folder, by its own confidence, if all its members are those of the run.

    With `Recipe(resample=...)`, `out_of_fold` has the scores on the training images, each of which is predicted by the
    committee of the members that were not trained on it; see `predict_out_of_fold`. So are suspicious labels of the
    split `"train"`.

    Args:
        run: The run folder.
        recipe: Its recipe.
        split: `"train"`, `"validation"` or `"test"`; None uses `"test"`, or `"validation"` if there is no test split.
        min_members: As in `load_or_compute_predictions`. `missing` in the result lists the members without a model.
        allow_duplicate_weights: Accept members with identical weights.
        measure_latency: Measure the latency of each member, too: `"latency"` in milliseconds.
        label_errors: List the images whose label is probably wrong, see `write_label_errors`.

    Returns:
        The content of `evaluation.json`.

    Raises:
        IncompleteError: If too few members are trained.
        DataError: If the data cannot be read.
        VerificationError: If a member's predictions are not finite, or two members have identical weights.
    """
    run.available_members(recipe.members, min_members)  # before the data are loaded
    recipe, splits = preload(recipe)
    split = resolve_split(split, [splits])
    predictions = load_or_compute_predictions(run, recipe, split, min_members)
    head = recipe.head or GeometricMean()
    members = _member_results(run, predictions, allow_duplicate_weights, kept_epochs(run, recipe))
    if measure_latency:
        _add_latencies(run, members)
    probabilities = np.exp(predictions.log_probabilities)
    committee = aggregation.combine(subset_head(head, predictions.members), predictions.log_probabilities)
    examples = getattr(splits, split)
    misclassified = write_misclassified(run, examples, predictions, committee)
    unseen = predict_out_of_fold(run, predictions.members, splits, head)
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
        "risk_coverage": risk_coverage(committee, predictions.labels),
        "uncertainty": mean_uncertainty(probabilities, committee.argmax(axis=1) == predictions.labels),
        "per_class": per_class_scores(committee, predictions.labels, predictions.classes),
        **_confusion_matrix(committee, predictions.labels),
        **top_5_accuracy(committee, predictions.labels),
        "misclassified": misclassified,
        **_selected_scores(run, predictions, splits, split),
        **({"out_of_fold": unseen.scores()} if unseen else {}),
    }
    if label_errors:
        result["label_errors"] = _find_label_errors(run, split, examples, predictions, committee, unseen)
    write_record(run.path / "evaluation.json", result)
    run.append_event("evaluated", split=split, examples=len(predictions.labels))
    return result


def _selected_scores(run: Run, predictions: SplitPredictions, splits: Any, split: str) -> dict[str, Any]:
    """Return `{"selected"}`, the scores of `selection.json`; nothing without one, or with members of other runs."""
    try:
        selection = Selection.read(run.path / "selection.json")
        columns = [predictions.weight_hashes.index(member.weights) for member in selection.members]
    except (RunError, ValueError):
        return {}
    members = [predictions.members[column] for column in columns]
    views = [member.view for member in selection.members]
    log_probs = predictions.log_probabilities[:, columns]
    if any(views):
        log_probs = predict_split(run, members, splits, split, views).log_probabilities
    log_probs = log_probs / aggregation.temperatures_of(selection.members)
    outputs, labels = aggregation.selected_outputs(selection, log_probs), predictions.labels
    probabilities = outputs["probabilities"]
    return {
        "selected": {
            "kind": selection.kind,
            "members": members,
            **metrics.classification_metrics(probabilities, labels),
            **metrics.selective_metrics(outputs["confidence"], probabilities.argmax(axis=1) == labels),
        }
    }


def per_class_scores(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return `class`, `examples`, `precision` and `recall` of each class, null where they are not defined.

    Args:
        probabilities: Floats `(examples, classes)`.
        labels: Integers `(examples,)`.
        classes: Names of the classes.
    """
    matrix = metrics.confusion_matrix(probabilities, labels)
    precision, recall = _with_nulls(np.stack(metrics.precision_and_recall(matrix)))
    return [
        {"class": name, "examples": int(examples), "precision": class_precision, "recall": class_recall}
        for name, examples, class_precision, class_recall in zip(
            classes, matrix.sum(axis=1), precision, recall, strict=True
        )
    ]


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Return the risk-coverage curve of a committee at 100 coverages: lists `coverage`, `risk` and `threshold`.

    Args:
        probabilities: Floats `(examples, classes)`; the largest one is the confidence.
        labels: Integers `(examples,)`.
    """
    curve = metrics.risk_coverage_curve(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    points = np.unique(np.searchsorted(curve.coverage, np.arange(1, _CURVE_POINTS + 1) / _CURVE_POINTS - 1e-9))
    columns = {"coverage": curve.coverage, "risk": curve.risk, "threshold": curve.thresholds}
    return {name: values[points].tolist() for name, values in columns.items()}


def _confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list[list[int]]]:
    """Return `{"confusion_matrix"}`, or nothing for more than 20 classes."""
    if probabilities.shape[1] > _MAX_CLASSES_OF_MATRIX:
        return {}
    return {"confusion_matrix": metrics.confusion_matrix(probabilities, labels).tolist()}


def top_5_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `{"top_5_accuracy"}`, or nothing for ten classes or fewer."""
    if probabilities.shape[1] < MIN_CLASSES_FOR_TOP_5:
        return {}
    return {"top_5_accuracy": metrics.top_k_accuracy(probabilities, labels, k=5)}


def write_misclassified(
    run: Run, examples: Any, predictions: SplitPredictions, committee: np.ndarray
) -> dict[str, str | int]:
    """Write the images that the committee of all members classifies wrongly to `misclassified.csv` of the run folder.

    A row has the index in the split, the name (of a file, or a record of a shard; the index again for images without
    one), the true and the predicted class with the committee's probabilities of both, and the number of members that
    are wrong. The most certain errors come first.

    Args:
        run: The run folder.
        examples: The split.
        predictions: The members' predictions on it.
        committee: Probabilities `(examples, classes)` of the committee of all members.

    Returns:
        `file`, the name of the file, and `images`, their number.
    """
    labels, classes, predicted = predictions.labels, predictions.classes, committee.argmax(axis=1)
    wrong_members = (predictions.log_probabilities.argmax(axis=2) != labels[:, None]).sum(axis=1)
    wrong = most_certain_errors(committee, labels)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["index", "image", "true_class", "predicted_class", "probability", "true_class_probability",
                     "wrong_members"])  # fmt: skip
    for index in wrong.tolist():
        true, guess = int(labels[index]), int(predicted[index])
        probabilities = (f"{committee[index, column]:.4f}" for column in (guess, true))
        row = [index, examples.images.name(index), classes[true], classes[guess], *probabilities, wrong_members[index]]
        writer.writerow(row)
    file = run.path / "misclassified.csv"
    write_file(file, table.getvalue().encode(errors="surrogateescape"))
    return {"file": file.name, "images": len(wrong)}


def _find_label_errors(
    run: Run,
    split: str,
    examples: Any,
    predictions: SplitPredictions,
    committee: np.ndarray,
    unseen: OutOfFold | None,
) -> dict[str, Any]:
    """Write the label errors of a split; those of the training split by the members that did not see an image."""
    if split == "train" and unseen is not None:
        unseen_predictions = predictions.subset(unseen.rows)
        found = write_label_errors(run, split, examples, unseen_predictions, unseen.probabilities, unseen.rows)
        return found | {"out_of_sample": True, "checked": len(unseen.rows)}
    return write_label_errors(run, split, examples, predictions, committee)


def write_label_errors(
    run: Run,
    split: str,
    examples: Any,
    predictions: SplitPredictions,
    committee: np.ndarray,
    rows: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write the images whose label is probably wrong to `label_errors.csv` of the run folder.

    They are those of `metrics.label_errors`, the most suspicious first. A row has the index in the split, the name as
    in `write_misclassified`, label and suggested class, the probabilities of both by the committee, and the margin.

    Args:
        run: The run folder.
        split: Name of the split. Members have memorized wrong labels of `"train"`, so few of these are found.
        examples: The split.
        predictions: The members' predictions on it.
        committee: Probabilities `(examples, classes)` of the committee of all members.
        rows: Indices in the split of the examples of `predictions`; None: all of them in order.

    Returns:
        `file`, the name of the file; `images`, their number; and `out_of_sample`, whether the members were not trained
        on the split.
    """
    found, labels, classes = (
        metrics.label_errors(committee, predictions.labels),
        predictions.labels,
        predictions.classes,
    )
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ["index", "image", "label", "suggested_class", "label_probability", "suggested_probability", "margin"]
    )
    for index, suggested, margin in zip(found.indices.tolist(), found.suggested.tolist(), found.margins, strict=True):
        label = int(labels[index])
        probabilities = (f"{committee[index, column]:.4f}" for column in (label, suggested))
        row = index if rows is None else int(rows[index])
        names = examples.images.name(row), classes[label], classes[suggested]
        writer.writerow([row, *names, *probabilities, f"{margin:.4f}"])
    file = run.path / "label_errors.csv"
    write_file(file, table.getvalue().encode(errors="surrogateescape"))
    return {"file": file.name, "images": len(found.indices), "out_of_sample": split != "train"}


def most_certain_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the indices of the misclassified examples, by descending probability of the predicted class."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]


def score_committees_of_size(size: int, predictions: SplitPredictions, head, mflops: Sequence[float | None]) -> dict:
    """Return mean, standard deviation and range of each metric over the committees of `size` members.

    The standard deviation is that of the given subsets (divisor n), which share members: it measures how much the
    choice of members matters and is not a standard error.
    """
    subsets = member_subsets(predictions.log_probabilities.shape[1], size)
    scores_by_name = _score_subsets(predictions, subsets, head)
    member_costs = [costs.from_document(cost) for cost in mflops]
    mean_mflops = float(np.mean([sum(member_costs[member] for member in subset) for subset in subsets]))
    return {
        "size": size,
        "mflops": costs.to_document(mean_mflops),
        "accuracy_interval": metrics.accuracy_interval(
            float(np.mean(scores_by_name["accuracy"])), len(predictions.labels)
        ),
        **{name: _summary_statistics(values) for name, values in scores_by_name.items()},
    }


def member_subsets(num_members: int, size: int) -> list[tuple[int, ...]]:
    """Return all subsets of `size` out of `num_members`, or 1,000 of them drawn with a fixed seed."""
    if math.comb(num_members, size) <= _MAX_SUBSETS:
        return list(itertools.combinations(range(num_members), size))
    rng, subsets = random.Random(0), set()
    while len(subsets) < _MAX_SUBSETS:
        subsets.add(tuple(sorted(rng.sample(range(num_members), size))))
    return sorted(subsets)


def _score_subsets(predictions: SplitPredictions, subsets: list[tuple[int, ...]], head) -> dict[str, list[float]]:
    """Return each score of each subset."""
    log_probs, labels = predictions.log_probabilities, predictions.labels
    name, weights = aggregation.resolve_head(subset_head(head, predictions.members))
    if isinstance(name, str):
        multiplicities = subset_multiplicities(subsets, log_probs.shape[1], weights)
        parts = (function(log_probs, labels, multiplicities, name) for function in (scores, selective_scores))
        return {score: values.tolist() for part in parts for score, values in part.items()}
    outputs = (aggregation.combine(head, log_probs[:, list(subset)]) for subset in subsets)
    rows = [_all_scores(probabilities, labels) for probabilities in outputs]
    return {score: [row[score] for row in rows] for score in (*SCORE_NAMES, *SELECTIVE_METRICS)}


def _all_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the scores of one member or committee; its confidence is the largest probability."""
    correct = probabilities.argmax(axis=1) == labels
    return {
        **metrics.classification_metrics(probabilities, labels),
        **metrics.selective_metrics(probabilities.max(axis=1), correct),
    }


def _summary_statistics(values: list[float]) -> dict:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": min(values),
        "max": max(values),
        "subsets": len(values),
    }


def _member_results(
    run: Run, predictions: SplitPredictions, allow_duplicate_weights: bool, epochs: dict[int, dict[str, int]]
) -> list[dict]:
    count = len(predictions.members)
    indices = track(predictions.members, f"counting the cost of {pluralize(count, 'member')}", count)
    member_infos = [load_member_info(run, index) for index in indices]
    if not allow_duplicate_weights:
        weight_hashes = {
            str(index): info.weights for index, info in zip(predictions.members, member_infos, strict=True)
        }
        check_no_duplicate_weights(weight_hashes, str(run.path))
    return [
        {
            "index": index,
            "name": info.name,
            "parameters": info.parameters,
            "mflops": info.mflops,
            **({"uncounted": list(info.uncounted)} if info.uncounted else {}),
            **_member_scores(np.exp(predictions.log_probabilities[:, position]), predictions.labels),
            **epochs.get(index, {}),
        }
        for position, (index, info) in enumerate(zip(predictions.members, member_infos, strict=True))
    ]


def _member_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the scores of a member in `evaluation.json`."""
    scores = _all_scores(probabilities, labels)
    return {
        **scores,
        "accuracy_interval": metrics.accuracy_interval(scores["accuracy"], len(labels)),
        **top_5_accuracy(probabilities, labels),
    }


def _add_latencies(run: Run, members: list[dict]) -> None:
    models = [load_member(run.member(member["index"]).model) for member in members]
    for member, latencies in zip(members, measure_latencies(models), strict=True):
        member["latency"] = [dataclasses.asdict(latency) for latency in latencies]


def diversity(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the block `diversity` of `evaluation.json`.

    Matrices `(members, members)`, whose entries are null where they are not defined: `disagreement`, `double_fault`,
    `q_statistic`, `error_correlation`. And `ambiguity`, the decomposition of the gain of all members together: in Brier
    score under the arithmetic mean (`brier`) and in NLL under the geometric mean (`nll`).

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
    """Return the block `uncertainty` of `evaluation.json`: means over `all`, the `right` and the `wrong` predictions.

    Each has `total`, `expected` and `mutual` of `metrics.uncertainty_decomposition`, in nats; null where there is no
    such prediction.

    Args:
        probabilities: Probabilities `(examples, members, classes)`.
        correct: Booleans `(examples,)`: whether the committee's prediction is correct.
    """
    decomposition = metrics.uncertainty_decomposition(probabilities)
    masks = {"all": np.ones_like(correct), "right": correct, "wrong": ~correct}
    return {
        group: {name: float(values[mask].mean()) if mask.any() else None for name, values in decomposition.items()}
        for group, mask in masks.items()
    }


def _with_nulls(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
