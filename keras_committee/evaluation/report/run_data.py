"""Data of the report: runs, members, committees of each architecture, and selections."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee import aggregation, flops, metrics
from keras_committee.choices import SPLITS
from keras_committee.costs import from_document, to_document
from keras_committee.errors import RunError
from keras_committee.evaluation.cascade import CascadeConfig, MemberPredictions, simulate_cascade
from keras_committee.evaluation.evaluate import evaluate, score_committees_of_size
from keras_committee.evaluation.pool import require_equal_classes, require_equal_examples
from keras_committee.evaluation.predictions import (
    SplitPredictions,
    load_or_compute_predictions,
    predict_split,
    preload,
    resolve_split,
)
from keras_committee.files import read_record
from keras_committee.layers import (
    GeometricMean,
    expected_depth,
    get_head,
    head_name,
    stochastic_depth_blocks,
    subset_head,
)
from keras_committee.models.loading import load_member
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.selection import SelectedMember, Selection, View


@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticDepthStats:
    """Stochastic depth of a run's members: number of blocks, expected depth, fraction of multiply-adds saved."""

    num_blocks: int
    expected_depth: float
    expected_flops_reduction: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """Data of one run.

    Attributes:
        name: Name in the report: that of the folder, or its path if two folders share a name.
        path: Run folder.
        docstring: The recipe's docstring.
        parameters, environment, events: Content of the run folder.
        evaluation: Content of `evaluation.json` for this split and these members.
        predictions: Predictions on the split of the report.
        head: Head of the whole committee of the recipe.
        histories: Rows of `history.jsonl` of each member that has one, by member index.
        anytime_accuracy: Epochs and the committee's validation accuracy after each; None if unknown.
        depth_stats: None for members of constant depth.
        other_results: Content of `calibration.json` and `robustness.json`, if present.
        examples: Split of the report, with its images.
        data_name: Name of the data set.
        split_sizes: Number of examples of each split that has some.
        restore_best: As in `Recipe`.
        view_predictions: Log-probabilities `(examples, classes)` of members on the views of selections, by the hash of
            the weights and the view.
    """

    name: str
    path: Path
    docstring: str
    parameters: dict[str, Any]
    environment: dict[str, Any]
    events: list[dict[str, Any]]
    evaluation: dict[str, Any]
    predictions: SplitPredictions
    head: Any
    histories: dict[int, list[dict[str, Any]]]
    anytime_accuracy: tuple[list[int], list[float]] | None
    depth_stats: StochasticDepthStats | None
    other_results: dict[str, dict[str, Any]]
    examples: Any
    data_name: str
    split_sizes: dict[str, int]
    restore_best: str | None = None
    view_predictions: dict[tuple[str, View], np.ndarray] = dataclasses.field(default_factory=dict)


def load_run_data(
    runs: Sequence[Run],
    split: str | None,
    selections: Sequence[Path] = (),
    *,
    min_members: int | None = None,
    allow_duplicate_weights: bool = False,
) -> list[RunData]:
    """Load the data of each run once; missing predictions and evaluations are computed and stored in the run folder.

    Executes the recipes in the run folders; the caller holds the locks of the folders.

    Args:
        runs: At least one run.
        split: As in `evaluate`; None uses `"validation"` if one of the runs has no test split.
        selections: Files of selections, whose members may predict views.
        min_members: As in `evaluate`.
        allow_duplicate_weights: As in `evaluate`.

    Raises:
        IncompleteError: If a run has too few members.
        DataError: If data cannot be read, or the examples of the runs differ.
        RecipeError: If the classes of the runs differ.
        VerificationError: If predictions are invalid, or two members of a run have identical weights.
    """
    names = [run.path.resolve().name for run in runs]
    names = [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]
    data_cache: list[tuple[Any, Recipe, Any]] = []
    loaded = [_load_splits_once(run, data_cache) for run in runs]
    split = resolve_split(split, [splits for _, splits in loaded])
    run_data = [
        _load_run(run, name, recipe, splits, split, min_members, allow_duplicate_weights)
        for run, name, (recipe, splits) in zip(runs, names, loaded, strict=True)
    ]
    require_equal_classes({data.name: data.predictions.classes for data in run_data})
    require_equal_examples({data.name: data.predictions for data in run_data}, split)
    members = [member for file in selections for member in Selection.read(file).members]
    return [
        dataclasses.replace(data, view_predictions=_predict_views(run, data, members, splits, split))
        for run, data, (_, splits) in zip(runs, run_data, loaded, strict=True)
    ]


def _predict_views(
    run: Run, data: RunData, members: Sequence[SelectedMember], splits: Any, split: str
) -> dict[tuple[str, View], np.ndarray]:
    """Return the predictions of those of the members that predict a view and are members of the run."""
    indices = dict(zip(data.predictions.weight_hashes, data.predictions.members, strict=True))
    keys = list(
        dict.fromkeys((member.weights, member.view) for member in members if member.view and member.weights in indices)
    )
    if not keys:
        return {}
    views = [view for _, view in keys]
    predictions = predict_split(run, [indices[weights] for weights, _ in keys], splits, split, views)
    return dict(zip(keys, np.moveaxis(predictions.log_probabilities, 1, 0), strict=True))


def _load_splits_once(run: Run, data_cache: list[tuple[Any, Recipe, Any]]) -> tuple[Recipe, Any]:
    """Return the recipe with preloaded data and the splits; runs with equal data share them."""
    recipe = run.recipe()
    for data, cached_recipe, splits in data_cache:
        if data == recipe.data:
            return dataclasses.replace(recipe, data=cached_recipe.data), splits
    loaded_recipe, splits = preload(recipe)
    data_cache.append((recipe.data, loaded_recipe, splits))
    return loaded_recipe, splits


def _load_run(
    run: Run, name: str, recipe: Recipe, splits: Any, split: str, min_members: int | None, allow_duplicate_weights: bool
) -> RunData:
    predictions = load_or_compute_predictions(run, recipe, split, min_members)
    head = recipe.head or GeometricMean()
    evaluation = _read_cached_json(run.path / "evaluation.json")
    if evaluation is None or not is_current(evaluation, predictions, split, head_name(head)):
        evaluation = evaluate(
            run, recipe, split, min_members=min_members, allow_duplicate_weights=allow_duplicate_weights
        )
    histories = {index: run.member(index).read_history() for index in predictions.members}
    histories = {index: rows for index, rows in histories.items() if rows}
    other_results = {name: _read_cached_json(run.path / f"{name}.json") for name in ("calibration", "robustness")}
    return RunData(
        name=name,
        path=run.path,
        docstring=run.recipe_file().docstring,
        parameters=run.parameters(),
        environment=run.environment(),
        events=run.events(),
        evaluation=evaluation,
        predictions=predictions,
        head=head,
        histories=histories,
        anytime_accuracy=_anytime_accuracy(run, predictions.members, head, splits.validation.labels, histories),
        depth_stats=_load_depth_stats(run, histories),
        other_results={name: document for name, document in other_results.items() if document is not None},
        examples=getattr(splits, split),
        data_name=recipe.data.name,
        split_sizes={name: len(getattr(splits, name)) for name in SPLITS if len(getattr(splits, name))},
        restore_best=recipe.restore_best,
    )


def is_current(evaluation: dict[str, Any], predictions: SplitPredictions, split: str, head: str) -> bool:
    """Check that an `evaluation.json` matches these predictions: split, members, head and scores."""
    try:
        stored_scores = [
            {name: row[name] for name in ("accuracy", "nll", "ece", "brier")} for row in evaluation["members"]
        ]
        matches = (evaluation["split"], evaluation["examples"], evaluation["head"]) == (
            split,
            len(predictions.labels),
            head,
        )
        matches = matches and [row["index"] for row in evaluation["members"]] == list(predictions.members)
        matches = matches and len(evaluation["committees"]) == len(predictions.members)
        matches = matches and all("aurc" in row for row in evaluation["members"])
    except (KeyError, TypeError):  # written by another version or program
        return False
    if not matches:
        return False
    scores = [
        metrics.classification_metrics(np.exp(predictions.log_probabilities[:, index]), predictions.labels)
        for index in range(len(predictions.members))
    ]
    return all(
        np.isclose(row[name], score[name], rtol=1e-6, atol=1e-9)
        for row, score in zip(stored_scores, scores, strict=True)
        for name in score
    )


def _read_cached_json(path: Path) -> Any:
    """Return the JSON document of a file, or None if it does not exist. Raises RunError if it is damaged."""
    try:
        return read_record(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.\n  Delete it and run the command that wrote it again.") from error


def _anytime_accuracy(
    run: Run, members: Sequence[int], head: Any, labels: np.ndarray, histories: dict[int, list[dict]]
) -> tuple[list[int], list[float]] | None:
    """Return the committee's accuracy after each epoch for which all members stored predictions."""
    if len(members) < 2 or not histories or not len(labels):
        return None
    accuracies = {}
    for row in next(iter(histories.values())):
        member_dirs = [run.member(index) for index in members]
        if all(member_dir.epoch_predictions(row["epoch"]).exists() for member_dir in member_dirs):
            predictions = np.stack([member_dir.read_epoch_predictions(row["epoch"]) for member_dir in member_dirs], 1)
            predicted = aggregation.combine(subset_head(head, members), predictions).argmax(axis=1)
            accuracies[row["epoch"]] = float((predicted == labels).mean()) if len(predicted) == len(labels) else None
    accuracies = {epoch: accuracy for epoch, accuracy in accuracies.items() if accuracy is not None}
    return (list(accuracies), list(accuracies.values())) if accuracies else None


def _load_depth_stats(run: Run, histories: dict[int, list[dict]]) -> StochasticDepthStats | None:
    member_indices = [index for index, rows in histories.items() if "realised_depth" in rows[0]]
    if not member_indices:
        return None
    model = load_member(run.member(member_indices[0]).model)
    return StochasticDepthStats(
        num_blocks=len(stochastic_depth_blocks(model)),
        expected_depth=expected_depth(model),
        expected_flops_reduction=flops.expected_flops_reduction(model),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """The committees of one architecture, of every size.

    Attributes:
        name: Architecture name that the members share.
        members: Indices among all members of the report, ascending.
        committees: As in `evaluation.json`, by ascending size. An unknown cost is infinite.
        parameters: Trainable parameters of one member; the mean if they differ.
        mixed: Whether the members have different architectures.
        gain: Accuracy of the committee of all members minus that of the mean member.
        gain_error: Standard error of the gain over the examples (paired).
    """

    name: str
    members: tuple[int, ...]
    committees: tuple[dict[str, Any], ...]
    parameters: float
    mixed: bool = False
    gain: float = 0.0
    gain_error: float = 0.0

    @property
    def single_member(self) -> dict[str, Any]:
        return self.committees[0]

    @property
    def full_committee(self) -> dict[str, Any]:
        return self.committees[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectedCommittee:
    """A committee or cascade from a selection file, scored on the predictions of this report.

    Attributes:
        name: Name in the report.
        kind: "committee" or "cascade". A cascade of one stage, from which no image exits early, is a committee.
        one_stage: Whether it is such a cascade.
        members: Member names, in execution order.
        mflops: Mean MFLOPs per image; infinite if unknown.
        worst_mflops: MFLOPs of an image for which all stages run.
        scores: Accuracy, NLL, ECE and Brier score.
        exits: For each stage of a cascade: members, rate, accuracy, nll, ece; the last three None if no image exits.
        full: Scores and MFLOPs if all members always run.
        confidence: float32 `(examples,)`, of each answer.
        correct: bool `(examples,)`, whether each answer is correct.
        latency: What `select` measured of a cascade, as in `report.cascade.latency` of the selection file; or None.
    """

    name: str
    kind: str
    members: tuple[str, ...]
    mflops: float
    worst_mflops: float
    scores: dict[str, float]
    exits: tuple[dict[str, Any], ...] = ()
    one_stage: bool = False
    full: dict[str, float] = dataclasses.field(default_factory=dict)
    confidence: np.ndarray | None = None
    correct: np.ndarray | None = None
    latency: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostPoint:
    """A deployable committee in the plot of accuracy against cost."""

    name: str
    mflops: float
    accuracy: float


def architecture_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the architecture of each member of a run.

    It is the member's name; members whose names differ only by a number share the stem: "linear_0" and "linear_1" are
    both "linear".
    """
    stems = {re.sub(r"[_-]?\d+$", "", name) for name in names}
    numbered = len(names) > 1 and len(set(names)) == len(names) and len(stems) == 1 and "" not in stems
    return tuple(stems) * len(names) if numbered else tuple(names)


def cost_points(series: Sequence[Series], selected: Sequence[SelectedCommittee]) -> list[CostPoint]:
    """Return a point per committee size, the mean over its subsets, and per selection, where the cost is known."""
    points = [
        CostPoint(
            name=committee_name(committee["size"], architecture),
            mflops=committee["mflops"],
            accuracy=committee["accuracy"]["mean"],
        )
        for architecture in series
        for committee in architecture.committees
    ]
    points += [
        CostPoint(name=committee.name, mflops=committee.mflops, accuracy=committee.scores["accuracy"])
        for committee in selected
    ]
    return [point for point in points if math.isfinite(point.mflops)]


def pareto_front(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the Pareto-optimal points by ascending cost."""
    front_points: list[CostPoint] = []
    for point in sorted(points, key=lambda point: (point.mflops, -point.accuracy)):
        if not front_points or point.accuracy > front_points[-1].accuracy:
            front_points.append(point)
    return front_points


def best_committee(series: Sequence[Series]) -> tuple[Series, dict[str, Any]] | None:
    """Return the committee size of the highest mean accuracy over its subsets, and its architecture; None without one.

    It has two or more members. Of equally accurate ones it is the cheapest.
    """
    committees = [(one, committee) for one in series for committee in one.committees if committee["size"] > 1]
    return min(committees, key=lambda pair: (-pair[1]["accuracy"]["mean"], pair[1]["mflops"]), default=None)


def committee_name(size: int, series: Series) -> str:
    """Return the name of a committee of a series: "3 x small", or "small" for a single member."""
    return series.name if size == 1 and not series.mixed else f"{size} x {series.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """Members of all runs of a report, and their committees.

    Attributes:
        runs: The runs.
        split: Name of the split.
        labels: int32 `(examples,)`.
        classes: Names of the classes.
        predictions: float32 log-probabilities `(examples, members, classes)`, in the order of the runs.
        members: For each member `run`, `architecture` and its row of `evaluation.json`.
        series: The committees of each architecture, by ascending cost.
        series_predictions: float32 `(examples, classes)` for each series, of the committee of all its members.
        committee_predictions: float32 `(examples, classes)`, of the committee of all members of all architectures.
        selected: The selections.
    """

    runs: tuple[RunData, ...]
    split: str
    labels: np.ndarray
    classes: tuple[str, ...]
    predictions: np.ndarray
    members: tuple[dict[str, Any], ...]
    series: tuple[Series, ...]
    series_predictions: tuple[np.ndarray, ...]
    committee_predictions: np.ndarray
    selected: tuple[SelectedCommittee, ...]


def load_report_data(runs: Sequence[RunData], split: str, selections: Sequence[Path]) -> ReportData:
    """Combine the runs and score the selections.

    Raises:
        RunError: If a selection file is invalid, or has a member that belongs to none of the runs.
    """
    predictions = np.concatenate([run.predictions.log_probabilities for run in runs], axis=1)
    members = [member for run in runs for member in _member_rows(run)]
    pairs = [
        _architecture_series(name, members, predictions, runs)
        for name in dict.fromkeys(member["architecture"] for member in members)
    ]
    pairs += _mixed_series(runs, members, predictions)
    pairs = sorted(pairs, key=lambda pair: pair[0].single_member["mflops"])
    first_predictions = runs[0].predictions
    return ReportData(
        runs=tuple(runs),
        split=split,
        labels=first_predictions.labels,
        classes=first_predictions.classes,
        predictions=predictions,
        members=tuple(members),
        series=tuple(series for series, _ in pairs),
        series_predictions=tuple(output for _, output in pairs),
        committee_predictions=aggregation.combine(
            subset_head(runs[0].head, first_predictions.members) if len(runs) == 1 else GeometricMean(), predictions
        ),
        selected=tuple(_score_selection(path, selections, runs, predictions) for path in selections),
    )


def _member_rows(run: RunData) -> list[dict[str, Any]]:
    rows = run.evaluation["members"]
    names = architecture_names([row["name"] for row in rows])
    return [
        {"run": run.name, "architecture": name, **_with_numeric_cost(row)}
        for row, name in zip(rows, names, strict=True)
    ]


def _with_numeric_cost(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of `evaluation.json` for arithmetic: an unknown cost is infinite."""
    return {**row, "mflops": from_document(row["mflops"])}


def _architecture_series(
    name: str, members: Sequence[dict[str, Any]], predictions: np.ndarray, all_runs: Sequence[RunData]
) -> tuple[Series, np.ndarray]:
    """Build the series of one architecture, from `evaluation.json` if it comprises one whole run."""
    indices = tuple(index for index, member in enumerate(members) if member["architecture"] == name)
    run_names = {members[index]["run"] for index in indices}
    run = next(run for run in all_runs if run.name in run_names)
    if len(run_names) == 1 and len(indices) == len(run.predictions.members):
        return _build_series(name, indices, members, predictions, run.predictions.labels, run)
    return _build_series(name, indices, members, predictions, run.predictions.labels, None)


def _mixed_series(
    runs: Sequence[RunData], members: Sequence[dict], predictions: np.ndarray
) -> list[tuple[Series, np.ndarray]]:
    """Build a series for each run with several architectures."""
    pairs = []
    for run in runs:
        indices = tuple(index for index, member in enumerate(members) if member["run"] == run.name)
        if len({members[index]["architecture"] for index in indices}) > 1:
            series, committee_predictions = _build_series(
                f"{run.name}, mixed", indices, members, predictions, run.predictions.labels, run
            )
            pairs.append((dataclasses.replace(series, mixed=True), committee_predictions))
    return pairs


def _build_series(
    name: str,
    indices: tuple[int, ...],
    members: Sequence[dict],
    predictions: np.ndarray,
    labels: np.ndarray,
    run: RunData | None,
) -> tuple[Series, np.ndarray]:
    """Build a series; with `run` it comprises that whole run, under its own head."""
    subset = predictions[:, list(indices)]
    head = subset_head(run.head, run.predictions.members) if run else GeometricMean()
    committee_predictions = aggregation.combine(head, subset)
    gains = (committee_predictions.argmax(axis=1) == labels) - (subset.argmax(axis=2) == labels[:, None]).mean(axis=1)
    committees = (
        run.evaluation["committees"]
        if run
        else _score_committee_sizes(subset, labels, [members[index] for index in indices])
    )
    series = Series(
        name=name,
        members=indices,
        committees=tuple(map(_with_numeric_cost, committees)),
        parameters=float(np.mean([members[member_index]["parameters"] for member_index in indices])),
        gain=float(gains.mean()),
        gain_error=float(gains.std() / np.sqrt(len(labels))),
    )
    return series, committee_predictions


def _score_committee_sizes(predictions: np.ndarray, labels: np.ndarray, members: Sequence[dict]) -> list[dict]:
    member_predictions = SplitPredictions(
        members=tuple(range(len(members))),
        log_probabilities=predictions,
        labels=labels,
        classes=tuple(map(str, range(predictions.shape[2]))),
    )
    costs = [to_document(member["mflops"]) for member in members]
    return [
        score_committees_of_size(size, member_predictions, GeometricMean(), costs)
        for size in range(1, len(members) + 1)
    ]


def _score_selection(
    path: Path, paths: Sequence[Path], runs: Sequence[RunData], predictions: np.ndarray
) -> SelectedCommittee:
    """Score the selection in file `path` on the predictions of this report."""
    selection = Selection.read(path)
    views = {key: log_probs for run in runs for key, log_probs in run.view_predictions.items()}
    indices = _member_indices(path, selection, runs)
    log_probs = [
        predictions[:, index] if member.view is None else views[member.weights, member.view]
        for index, member in zip(indices, selection.members, strict=True)
    ]
    head = get_head(selection.head, **({"weights": list(selection.weights)} if selection.weights else {}))
    costs = [from_document(member.mflops) for member in selection.members]
    member_predictions = MemberPredictions(
        np.stack(log_probs, axis=1) / aggregation.temperatures_of(selection.members),
        runs[0].predictions.labels,
        costs,
        head,
    )
    all_members = tuple(range(len(indices)))
    full = {
        **metrics.classification_metrics(member_predictions.probabilities(all_members), member_predictions.labels),
        "mflops": member_predictions.cost(all_members),
    }
    one_stage = selection.stages is not None and len(selection.stages) == 1
    kind = "committee" if one_stage else selection.kind
    fields = {
        "name": kind if len(paths) == 1 else f"{kind} {path.parent.name}/{path.stem}",
        "kind": kind,
        "one_stage": one_stage,
        "members": tuple(member.name for member in selection.members),
        "full": full,
    }
    if selection.stages is None or one_stage:
        scores = {name: value for name, value in full.items() if name != "mflops"}
        probabilities = member_predictions.probabilities(all_members)
        return SelectedCommittee(
            **fields,
            mflops=full["mflops"],
            worst_mflops=full["mflops"],
            scores=scores,
            confidence=member_predictions.confidences(all_members, selection.confidence),
            correct=probabilities.argmax(axis=1) == member_predictions.labels,
        )
    config = CascadeConfig(
        order=all_members,
        sizes=tuple(stage.members for stage in selection.stages),
        thresholds=tuple(stage.threshold for stage in selection.stages if stage.threshold is not None),
        lower_thresholds=selection.lower_thresholds(),
        confidence=selection.confidence,
    )
    result = simulate_cascade(member_predictions, config)
    exits = tuple(dataclasses.asdict(stage_exit) for stage_exit in result.exits)
    return SelectedCommittee(
        **fields,
        mflops=result.mflops,
        worst_mflops=result.worst_mflops,
        scores=result.scores,
        confidence=result.confidence,
        correct=result.correct,
        exits=exits,
        latency=selection.report.get("cascade", {}).get("latency"),
    )


def _member_indices(path: Path, selection: Selection, runs: Sequence[RunData]) -> list[int]:
    hashes = [weights for run in runs for weights in run.predictions.weight_hashes]
    for member in selection.members:
        if member.weights not in hashes:
            raise RunError(
                f"{path} contains member {member.index} of {member.run}, whose weights (sha256 {member.weights[:12]})"
                " belong to none of the runs of this report.\n  Add that run to the command, or run"
                " `keras-committee select` again if the member was retrained."
            )
    return [hashes.index(member.weights) for member in selection.members]
