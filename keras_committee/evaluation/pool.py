"""Pool of members from one or more runs, with their predictions on the same examples."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from keras_committee import aggregation, costs
from keras_committee.class_folders import distinguish
from keras_committee.errors import DataError, RecipeError, VerificationError, pluralize
from keras_committee.evaluation.calibration import fit_temperature
from keras_committee.evaluation.member_info import MemberInfo, load_member_info
from keras_committee.evaluation.predictions import SplitPredictions, predict_split
from keras_committee.files import file_hash
from keras_committee.progress import track
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.selection import SelectedMember, Selection, View
from keras_committee.split_sizes import divide_for_promise


@dataclass(frozen=True, kw_only=True)
class PoolMember:
    """One member of a pool.

    Attributes:
        run: Its run folder.
        index: Its index there.
        weights_hash: SHA-256 of its `model.keras`, in hexadecimal digits.
        name: The model's name.
        parameters: Number of trainable weights.
        mflops: 2 x multiply-adds / 1e6 for one image; None if unknown.
        uncounted: Layers whose cost is unknown.
        architecture: Hash of its layers; members of one architecture differ in their weights or views only.
        view: The view of the image that it predicts; None for the image itself.
        temperature: Divisor of its logits, by which its predictions in the pool are divided already.
    """

    run: Path
    index: int
    weights_hash: str
    name: str
    parameters: int
    mflops: float | None
    architecture: str
    uncounted: tuple[str, ...] = ()
    view: View | None = None
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Members of one or more runs with the same classes and examples.

    Attributes:
        members: The members, in the order of the runs, of the indices in each, and of the views of each.
        classes: Names of the classes, in label order.
        predictions: For each split float32 log-probabilities `(examples, members, classes)`.
        labels: For each split int32 `(examples,)`.
        missing: For each run the indices of the members that are not trained.
        validation_source: Fingerprint of the sources of all validation images, by which they are divided.
        division: Number of images of each part, `"choose"` and `"promise"`, where the validation split is divided and
            the pool has one part of it; else None.
    """

    members: tuple[PoolMember, ...]
    classes: tuple[str, ...]
    predictions: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    missing: Mapping[str, list[int]]
    validation_source: str = ""
    division: Mapping[str, int] | None = None

    def divided(self) -> tuple["Pool", "Pool"]:
        """Return the pool with the part of the validation split to choose with, and with that to make promises on."""
        log_probs, labels = self.predictions["validation"], self.labels["validation"]
        parts = divide_for_promise(self.validation_source, len(labels))
        division = dict(zip(("choose", "promise"), map(len, parts), strict=True))
        choose, promise = (
            dataclasses.replace(
                self,
                predictions={**self.predictions, "validation": log_probs[part]},
                labels={**self.labels, "validation": labels[part]},
                division=division,
            )
            for part in parts
        )
        return choose, promise

    def positions(self, members: Iterable[SelectedMember]) -> list[int]:
        """Return the position of each selected member in the pool. Raises KeyError with a member that is not in it."""
        positions: dict[tuple[str, View | None], int] = {}
        for position, member in enumerate(self.members):
            positions.setdefault((member.weights_hash, member.view), position)
        members = list(members)
        if unknown := [member for member in members if (member.weights, member.view) not in positions]:
            raise KeyError(unknown[0])
        return [positions[member.weights, member.view] for member in members]

    def outputs(self, selection: Selection, split: str) -> dict[str, np.ndarray]:
        """Return the outputs of a selection on a split, see `aggregation.selected_outputs`.

        Raises:
            KeyError: With a member that is not in the pool.
        """
        positions = self.positions(selection.members)
        applied = aggregation.temperatures_of(self.members[position] for position in positions)
        divisors = aggregation.temperatures_of(selection.members) / applied
        return aggregation.selected_outputs(selection, self.predictions[split][:, positions] / divisors)

    def with_temperatures(self) -> "Pool":
        """Return the pool whose members have temperatures, fitted on the validation split as by `calibrate`."""
        log_probs, labels = self.predictions["validation"], self.labels["validation"]
        temperatures = [fit_temperature(log_probs[:, position], labels) for position in range(len(self.members))]
        divisors = np.array(temperatures, np.float32)[:, None]
        return dataclasses.replace(
            self,
            members=tuple(
                dataclasses.replace(member, temperature=temperature)
                for member, temperature in zip(self.members, temperatures, strict=True)
            ),
            predictions={split: log_softmax(each / divisors, axis=-1) for split, each in self.predictions.items()},
        )

    def position_of(self, entry: Mapping[str, Any]) -> int:
        """Return the position of the member of an `entry` of a selection's report, with `run`, `index` and `view`."""
        key = entry["run"], entry["index"], entry.get("view") and View(**entry["view"])
        return [(str(member.run), member.index, member.view) for member in self.members].index(key)

    @property
    def mflops(self) -> np.ndarray:
        """MFLOPs of each member: float64 `(members,)`; infinite if unknown."""
        return np.array([costs.from_document(member.mflops) for member in self.members])

    def with_known_costs(self) -> "Pool":
        """Return the pool of the members whose cost is known. Raises RecipeError if there are none."""
        known = np.flatnonzero(np.isfinite(self.mflops)).tolist()
        if not known:
            raise RecipeError(
                f"the cost of no member is known, so none can be selected by it.\n{self.unknown_cost_note()}"
            )
        return dataclasses.replace(
            self,
            members=tuple(self.members[index] for index in known),
            predictions={split: log_probs[:, known] for split, log_probs in self.predictions.items()},
        )

    def unknown_cost_note(self) -> str:
        """Return a note on the members of unknown cost, or ""."""
        return costs.unknown_cost_note(
            (f"{member.run} member {member.index} ({member.name})", member.uncounted)
            for member in self.members
            if member.view is None
        )


def load_pool(
    runs: Sequence[Run],
    splits: Sequence[str] = ("validation", "test"),
    *,
    min_members: int | None = None,
    allow_duplicate_weights: bool = False,
    views: Sequence[View] = (),
) -> Pool:
    """Return the pool of all members of `runs`, with their predictions on `splits`.

    Where the validation split of a run is divided, the pool has the part to choose with, see `Run.divide`. Executes the
    recipes in the run folders; the caller holds the locks of the folders.

    Args:
        runs: At least one run.
        splits: Names from `"train"`, `"validation"` and `"test"`.
        min_members: Accept incomplete runs with at least this many members; None requires all members.
        allow_duplicate_weights: Accept members with identical weights.
        views: Views of the image with which each member takes part once more, as a member of the same weights.

    Raises:
        RecipeError: If a run is given twice, a split has no examples, classes or channels differ, or a shift of `views`
            is as large as the image.
        IncompleteError: If a run has too few members.
        RunError: If a member does not contain its classes and image transform, or a file is damaged.
        DataError: If data cannot be read, or the examples of the runs differ.
        VerificationError: If a member's predictions are not finite, or two members have identical weights.
    """
    pool = load_whole_pool(
        runs, splits, min_members=min_members, allow_duplicate_weights=allow_duplicate_weights, views=views
    )
    return pool.divided()[0] if "validation" in splits and any(run.is_divided() for run in runs) else pool


def load_whole_pool(
    runs: Sequence[Run],
    splits: Sequence[str] = ("validation", "test"),
    *,
    min_members: int | None = None,
    allow_duplicate_weights: bool = False,
    views: Sequence[View] = (),
) -> Pool:
    """Return the pool of `load_pool` with the whole validation split, also where it is divided."""
    _check_duplicates(runs)
    recipes = [run.recipe() for run in runs]
    indices = [run.available_members(recipe.members, min_members) for run, recipe in zip(runs, recipes, strict=True)]
    pool_members = _load_pool_members(runs, indices, allow_duplicate_weights, views)
    predictions_per_run = [
        _predict_splits(run, members, recipe, splits, views)
        for run, members, recipe in zip(runs, indices, recipes, strict=True)
    ]
    predictions = {
        split: {str(run.path): part[split] for run, part in zip(runs, predictions_per_run, strict=True)}
        for split in splits
    }
    for split, by_run in predictions.items():
        require_equal_classes({run: run_predictions.classes for run, run_predictions in by_run.items()})
        require_equal_examples(by_run, split)
    first_predictions = {split: next(iter(by_run.values())) for split, by_run in predictions.items()}
    return Pool(
        members=pool_members,
        classes=first_predictions[splits[0]].classes,
        predictions={split: _concatenate_members(by_run.values()) for split, by_run in predictions.items()},
        labels={split: first.labels for split, first in first_predictions.items()},
        missing={
            str(run.path): sorted(set(range(recipe.members)) - set(members))
            for run, recipe, members in zip(runs, recipes, indices, strict=True)
        },
        validation_source=first_predictions["validation"].source_fingerprint if "validation" in splits else "",
    )


def _check_duplicates(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("runs must hold at least one run. Received: none")
    seen: dict[Path, Path] = {}
    for run in runs:
        first = seen.setdefault(run.path.resolve(), run.path)
        if first is not run.path:
            raise RecipeError(
                f"{first} and {run.path} are the same run, so its members would count twice. List it once."
            )


def _load_pool_members(
    runs: Sequence[Run], indices: Sequence[Sequence[int]], allow_duplicate_weights: bool, views: Sequence[View]
) -> tuple[PoolMember, ...]:
    """Return the members, after checking that their classes, channels and weights allow one committee."""
    run_and_index = [(run, index) for run, members in zip(runs, indices, strict=True) for index in members]
    names = [f"{run.path} member {index}" for run, index in run_and_index]
    data_infos = [run.data_info(index) for run, index in run_and_index]
    require_equal_classes({name: info.classes for name, info in zip(names, data_infos, strict=True)})
    text = f"counting the cost of {pluralize(len(names), 'member')}"
    member_infos = [load_member_info(run, index) for run, index in track(run_and_index, text, len(names))]
    require_equal_channels({name: info.input_shape for name, info in zip(names, member_infos, strict=True)})
    if not allow_duplicate_weights:
        display_names = [
            str(index) if len(runs) == 1 else name for name, (_, index) in zip(names, run_and_index, strict=True)
        ]
        weight_hashes = {name: info.weights for name, info in zip(display_names, member_infos, strict=True)}
        check_no_duplicate_weights(weight_hashes, str(runs[0].path) if len(runs) == 1 else "the pool")
    for name, info in zip(names, member_infos, strict=True):
        _check_shifts(name, info, views)
    return tuple(
        _pool_member(run, index, info, view)
        for (run, index), info in zip(run_and_index, member_infos, strict=True)
        for view in (None, *views)
    )


def _check_shifts(name: str, info: MemberInfo, views: Sequence[View]) -> None:
    """Raise RecipeError if a shift is as large as the image."""
    size = min((side for side in info.input_shape[:2] if side is not None), default=math.inf)
    shift = max((abs(view.shift) for view in views), default=0)
    if shift >= size:
        height, width = info.input_shape[:2]
        raise RecipeError(f"images of {height}x{width}, as {name} takes, cannot be shifted by {shift} pixels.")


def _predict_splits(
    run: Run, members: Sequence[int], recipe: Recipe, split_names: Sequence[str], views: Sequence[View]
) -> dict[str, SplitPredictions]:
    splits = recipe.data.load()
    empty_splits = [split for split in split_names if not len(getattr(splits, split))]
    if empty_splits:
        use = {"validation": "Members are selected on it", "test": "The accuracy is reported on it"}
        raise RecipeError(
            f"the data of {run.path} have no {empty_splits[0]} split.\n  {use.get(empty_splits[0], 'It is needed')}: "
            f"set `{empty_splits[0]}` of the recipe's data to a count or a fraction, in a new run."
        )
    indices_and_views = [(index, view) for index in members for view in (None, *views)]
    indices, member_views = zip(*indices_and_views, strict=True)
    return {split: predict_split(run, indices, splits, split, member_views) for split in split_names}


def _concatenate_members(predictions: Iterable[SplitPredictions]) -> np.ndarray:
    return np.concatenate([run_predictions.log_probabilities for run_predictions in predictions], axis=1)


def _pool_member(run: Run, index: int, info: MemberInfo, view: View | None) -> PoolMember:
    return PoolMember(
        run=run.path,
        index=index,
        weights_hash=file_hash(run.member(index).model),
        name=info.name if view is None else f"{info.name} ({view})",
        parameters=info.parameters,
        mflops=info.mflops,
        architecture=info.architecture,
        uncounted=info.uncounted,
        view=view,
    )


def require_equal_classes(classes: Mapping[str, tuple[str, ...]]) -> None:
    """Raise RecipeError, with a table, unless all members have the same classes in the same order.

    Args:
        classes: Names of the classes by the names of the members.
    """
    all_classes = list(classes.values())
    mismatched = next((names for names in all_classes if names != all_classes[0]), all_classes[0])
    if mismatched == all_classes[0]:
        return
    first, second = next(
        pair for pair in zip_longest(all_classes[0], mismatched, fillvalue="nothing") if pair[0] != pair[1]
    )
    first, second = distinguish(first, second)
    raise RecipeError(
        f"the members have different classes: where one has {first}, another has {second}.\n"
        + _table({member: f"{len(names)} classes: {', '.join(names)}" for member, names in classes.items()})
        + "\n  They cannot form one committee. Train them on data with the same classes in the same order."
    )


def require_equal_channels(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise RecipeError, with a table, unless all members take the same number of channels.

    Members of different height and width are allowed: each receives the images at its own size.

    Args:
        shapes: `(height, width, channels)` by the names of the members.
    """
    if len({shape[2] for shape in shapes.values()}) <= 1:
        return
    raise RecipeError(
        "the members take images with different numbers of channels (height x width x channels).\n"
        + _table({member: " x ".join(map(str, shape)) for member, shape in shapes.items()})
        + "\n  They cannot form one committee. Train them on images with the same number of channels."
    )


def require_equal_examples(predictions_by_run: Mapping[str, SplitPredictions], split: str) -> None:
    """Raise DataError unless the predictions of all runs are on the same examples in the same order.

    Examples are the same if their pixels or their source files are equal: each run has its own image transform.
    """
    (first, expected), *others = predictions_by_run.items()
    for run, predictions in others:
        if predictions.data_fingerprint != expected.data_fingerprint and (
            not predictions.source_fingerprint or predictions.source_fingerprint != expected.source_fingerprint
        ):
            raise DataError(
                f"the {split} examples of {first} and {run} differ: {_describe_difference(expected, predictions)}.\n"
                "  Train the members on the same data with the same validation and test splits."
            )


def check_no_duplicate_weights(weight_hashes: Mapping[str, str], owner: str) -> None:
    """Raise VerificationError if two members have identical weights.

    Args:
        weight_hashes: Hash of the weights by the names of the members.
        owner: Name of the run or pool in the message.
    """
    first_with_hash: dict[str, str] = {}
    for member, digest in weight_hashes.items():
        duplicate = first_with_hash.setdefault(digest, member)
        if duplicate != member:
            raise VerificationError(
                f"members {duplicate} and {member} of {owner} have identical weights (sha256 {digest[:12]}).\n"
                "  Check that the recipe sets no seed in `member`, or accept them with --allow-duplicate-weights."
            )


def _describe_difference(a: SplitPredictions, b: SplitPredictions) -> str:
    if len(a.labels) != len(b.labels):
        return f"{len(a.labels)} and {len(b.labels)} examples"
    different = int((a.labels != b.labels).sum())
    return f"{different} of {len(a.labels)} labels" if different else "the labels are equal, the images are not"


def _table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in rows.items())
