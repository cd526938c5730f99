"""Predictions of every member on a split, computed once and cached in the run folder.

A cached array of log-probabilities has in its name a key: the hash of the weights and of the data that it was computed
from. Committees, heads and cascades are computed from these arrays.
"""

import dataclasses
import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.data import Split, Splits
from keras_committee.data.validation import name_unreadable_images
from keras_committee.errors import DataError, VerificationError, pluralize
from keras_committee.files import file_hash, read_checked, translate_os_errors, write_checked
from keras_committee.models.loading import load_member
from keras_committee.models.predict import log_probabilities
from keras_committee.models.views import ViewModel
from keras_committee.progress import step, track
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.selection import View


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """Predictions of all members on one split.

    Attributes:
        members: Indices of the members, ascending; those given to `predict_split`.
        log_probabilities: float32 `(examples, members, classes)`.
        labels: int32 `(examples,)`.
        classes: Names of the classes.
        weight_hashes: SHA-256 of each member's `model.keras`, in hexadecimal digits.
        data_fingerprint: Fingerprint of the split.
        source_fingerprint: Fingerprint of the sources of its images; equal for the same files at two sizes.
    """

    members: tuple[int, ...]
    log_probabilities: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    weight_hashes: tuple[str, ...] = ()
    data_fingerprint: str = ""
    source_fingerprint: str = ""

    def subset(self, examples: np.ndarray | list[int]) -> "SplitPredictions":
        """Return the predictions on some examples, given by indices. The fingerprints remain those of the split."""
        return dataclasses.replace(
            self, log_probabilities=self.log_probabilities[examples], labels=self.labels[examples]
        )


def load_or_compute_predictions(
    run: Run, recipe: Recipe, split: str = "test", min_members: int | None = None
) -> SplitPredictions:
    """Return the predictions of every member on a split, from the cache in the run folder where they are current.

    Args:
        run: The run folder.
        recipe: Its recipe.
        split: `"train"`, `"validation"` or `"test"`.
        min_members: Accept an incomplete run with at least this many members; None requires all members.

    Raises:
        IncompleteError: If too few members are trained.
        DataError: If the data cannot be read.
        RecipeError: If the classes of the data differ from those that the members were trained on.
        VerificationError: If the output of a member is not one finite number per class.
    """
    members = run.available_members(recipe.members, min_members)
    return predict_split(run, members, recipe.data.load(), split)


def resolve_split(split: str | None, data: Sequence[Splits]) -> str:
    """Return the name of the split to evaluate on: `split`, or for None `"test"`, `"validation"` if a run has no test.

    Args:
        split: `"train"`, `"validation"`, `"test"` or None.
        data: The loaded data of each run.
    """
    return split or ("test" if all(len(splits.test) for splits in data) else "validation")


def predict_split(
    run: Run, members: Sequence[int], splits: Splits, split: str, views: Sequence[View | None] | None = None
) -> SplitPredictions:
    """Return the predictions of some members on a split of loaded data.

    Args:
        run: The run folder.
        members: Indices of the members. One index may be given with several views.
        splits: The loaded data.
        split: Name of the split.
        views: For each of them the view of the image that it predicts; None for the images themselves.

    Raises:
        DataError: If the split has no examples, or an image cannot be read.
        RecipeError: If the classes of the data differ from those that the members were trained on.
        VerificationError: If the output of a member is not one finite number per class.
    """
    run.require_classes(splits.classes)
    examples = getattr(splits, split)
    if not len(examples):
        raise DataError(
            f"the data of {run.path} have no {split} split. The run was not changed.\n"
            f"  Use another split, or set `{split}` of the recipe's data to a count or a fraction, in a new run."
        )
    data_fingerprint = examples.fingerprint()
    weight_hashes = [file_hash(run.member(index).model) for index in members]
    text = f"predicting {len(examples):,} {split} images with {pluralize(len(members), 'member')}"
    sources = list(zip(members, views or [None] * len(members), weight_hashes, strict=True))
    predictions = [
        _load_or_predict_member(run, index, view, split, examples, weights_hash + data_fingerprint)
        for index, view, weights_hash in track(sources, text, len(members))
    ]
    for index, log_probs in zip(members, predictions, strict=True):
        _check_predictions(run, index, log_probs, len(splits.classes))
    return SplitPredictions(
        members=tuple(members),
        log_probabilities=np.stack(predictions, axis=1),
        labels=examples.labels,
        classes=splits.classes,
        weight_hashes=tuple(weight_hashes),
        data_fingerprint=data_fingerprint,
        source_fingerprint=examples.source_id(),
    )


@dataclasses.dataclass(frozen=True)
class PreloadedData:
    """Data of a recipe that are already loaded: `load()` returns `splits`."""

    splits: Splits
    batch_size: int
    name: str

    def load(self) -> Splits:
        return self.splits


def preload(recipe: Recipe) -> tuple[Recipe, Splits]:
    """Load the data of a recipe; return the recipe with `PreloadedData`, and the splits. Raises DataError."""
    splits: Any = recipe.data.load()
    return dataclasses.replace(recipe, data=PreloadedData(splits, recipe.data.batch_size, recipe.data.name)), splits


def load_if_current(folder: Path, name: str, source: str) -> np.ndarray | None:
    """Return the cached array `name` that was computed from `source`, memory-mapped and read-only; None if absent.

    A damaged file is reported in the log and counts as absent.
    """
    file = _array_path(folder, name, source)
    if not file.exists():
        return None
    try:
        read_checked(file)
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning("%s is damaged: %s. It is computed again.", file, error)
        return None


def store(folder: Path, name: str, source: str, array: np.ndarray) -> None:
    """Write an array for `load_if_current` and delete those of other sources under this name. Raises ResourceError."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    file = _array_path(folder, name, source)
    write_checked(file, buffer.getvalue())
    with translate_os_errors(folder):
        for stale in [*folder.glob(f"{name}-*.npy"), *folder.glob(f"{name}.npz")]:
            if stale != file:
                stale.unlink(missing_ok=True)


def store_member_predictions(run: Run, index: int, split: str, data_fingerprint: str, log_probs: np.ndarray) -> None:
    """Store predictions of a finished member, so that no command computes them again. Raises ResourceError.

    Args:
        run: The run folder.
        index: Index of the member.
        split: `"validation"` or `"test"`.
        data_fingerprint: Fingerprint of the split.
        log_probs: Log-probabilities, float32 `(examples, classes)`.
    """
    store(*_cache_entry(run, index, split), file_hash(run.member(index).model) + data_fingerprint, log_probs)


def _check_predictions(run: Run, index: int, log_probs: np.ndarray, num_classes: int) -> None:
    problem = (
        None
        if log_probs.shape[1] == num_classes
        else f"has {log_probs.shape[1]} outputs; the data have {num_classes} classes"
    )
    if problem is None and not np.isfinite(log_probs).all():
        problem = f"has outputs that are not finite for {int((~np.isfinite(log_probs)).any(axis=1).sum())} examples"
    if problem:
        raise VerificationError(
            f"member {index} of {run.path} {problem}. No committee was evaluated.\n"
            f"  Delete {run.member(index).model} and train it again, or evaluate without it: --allow-incomplete."
        )


def _load_or_predict_member(
    run: Run, index: int, view: View | None, split: str, examples: Split, source: str
) -> np.ndarray:
    folder, name = _cache_entry(run, index, split, view)
    log_probs = load_if_current(folder, name, source)
    if log_probs is None:
        with name_unreadable_images(examples):
            with step(f"member {index}: loading"):
                model = load_member(run.member(index).model)
                model = model if view is None else ViewModel(model, view)
            batches = examples.batches(256)
            text = f"member {index}: {len(examples):,} {split} images{f' ({view})' if view else ''}"
            log_probs = log_probabilities(model, track(batches, text, len(examples), size=lambda batch: len(batch[0])))
        store(folder, name, source, log_probs)
    if len(log_probs) != len(examples):
        raise RuntimeError(f"member {index} made {len(log_probs)} predictions on {len(examples)} examples")
    return log_probs


def predict_examples(run: Run, index: int, name: str, examples: Split, num_classes: int) -> np.ndarray:
    """Return the log-probabilities of one member on any examples, from the cache where they are current.

    Args:
        run: The run folder.
        index: Index of the member.
        name: Name of these examples in the cache.
        examples: The examples.
        num_classes: Number of classes of the data.

    Returns:
        float32 `(examples, classes)`.

    Raises:
        DataError: If an image cannot be read.
        VerificationError: If the output of the member is not one finite number per class.
    """
    source = file_hash(run.member(index).model) + examples.fingerprint()
    log_probs = _load_or_predict_member(run, index, None, name, examples, source)
    _check_predictions(run, index, log_probs, num_classes)
    return log_probs


def _cache_entry(run: Run, index: int, split: str, view: View | None = None) -> tuple[Path, str]:
    """Return the folder and the name under which the predictions of a member are stored."""
    return run.path / "predictions" / split, f"{index:02d}{f'_{view.file_name}' if view else ''}"


def _array_path(folder: Path, name: str, source: str) -> Path:
    return folder / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npy"
