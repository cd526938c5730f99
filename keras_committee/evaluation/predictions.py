"""What did every member of a run say of every example of a split, and does it still hold?

A member predicts a split once. Its log probabilities are kept in `votes/<split>/<member>-<key>.npy`, where the key is
the hash of the weights and of the data they came from; any subset, head or cascade is arithmetic on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from keras_committee.errors import VerificationError
from keras_committee.files import file_hash
from keras_committee.models.loading import load_member
from keras_committee.models.predict import log_probabilities
from keras_committee.recipe import Recipe
from keras_committee.run import Run

if TYPE_CHECKING:
    from keras_committee.data.splits import Splits
import dataclasses
import hashlib
import io
import logging
from pathlib import Path
from typing import Any

from keras_committee.data import Splits
from keras_committee.files import translate_os_errors, write_file


@dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """The votes of all members on one split.

    Attributes:
        members: The indices of the members, ascending.
        log_probabilities: float32 `(examples, members, classes)`.
        labels: int32 `(examples,)`.
        classes: Names of the classes.
        weight_hashes: SHA-256 of each member's `model.keras`, in hexadecimal digits.
        data_fingerprint: The fingerprint of the split.
        source_fingerprint: The same of what its images were made from; equal for the same files at two sizes.
    """

    members: tuple[int, ...]
    log_probabilities: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    weight_hashes: tuple[str, ...] = ()
    data_fingerprint: str = ""
    source_fingerprint: str = ""


def load_or_compute_predictions(
    run: Run, recipe: Recipe, split: str = "test", min_members: int | None = None
) -> SplitPredictions:
    """The votes of every member on a split: from the run folder where they are current, else predicted and kept there.

    Args:
        run: The run folder.
        recipe: Its recipe.
        split: `"train"`, `"validation"` or `"test"`.
        min_members: With so many members or more the committee is taken as it is; None wants all of them.

    Raises:
        IncompleteError: If too few members are trained.
        DataError: If the data cannot be read.
        RecipeError: If the data have other classes than the members were trained for.
        VerificationError: If a member gives anything but one finite number for each class.
    """
    members = run.available_members(recipe.members, min_members)
    return predict_split(run, members, recipe.data.load(), split)


def predict_split(run: Run, members: Sequence[int], splits: "Splits", split: str) -> SplitPredictions:
    """The same for the `members` at hand, on data that are loaded already.

    Raises:
        RecipeError: If the data have other classes than the members were trained for.
        VerificationError: If a member gives anything but one finite number for each class.
    """
    run.require_classes(splits.classes)
    examples = getattr(splits, split)
    data_fingerprint = examples.fingerprint()
    weight_hashes = [file_hash(run.member(index).model) for index in members]
    predictions = [
        _load_or_predict_member(run, index, split, examples, weights_hash + data_fingerprint)
        for index, weights_hash in zip(members, weight_hashes, strict=True)
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


def _check_predictions(run: Run, index: int, log_probs: np.ndarray, num_classes: int) -> None:
    problem = (
        None
        if log_probs.shape[1] == num_classes
        else f"gives {log_probs.shape[1]} classes; the data have {num_classes}"
    )
    if problem is None and not np.isfinite(log_probs).all():
        problem = f"gives votes that are not finite for {int((~np.isfinite(log_probs)).any(axis=1).sum())} examples"
    if problem:
        raise VerificationError(
            f"member {index} of {run.path} {problem}. It is averaged with no other.\n"
            f"  Delete {run.member(index).model} and train it anew, or evaluate without it: --allow-incomplete."
        )


def _load_or_predict_member(run: Run, index: int, split: str, examples, source: str) -> np.ndarray:
    folder, name = run.path / "votes" / split, f"{index:02d}"
    log_probs = load_if_current(folder, name, source)
    if log_probs is None:
        log_probs = log_probabilities(load_member(run.member(index).model), examples.batches(256))
        store(folder, name, source, log_probs)
    if len(log_probs) != len(examples):
        raise RuntimeError(f"member {index} gave {len(log_probs)} votes on {len(examples)} examples")
    return log_probs


_DIGEST_BYTES = hashlib.sha256().digest_size


def load_if_current(folder: Path, name: str, source: str) -> np.ndarray | None:
    """The array `name` that was computed from `source`, read-only and mapped into memory; None where it is not there.

    A damaged file is told on stderr and taken as not there.
    """
    file = _array_path(folder, name, source)
    if not file.exists():
        return None
    try:
        _verify_checksum(file)
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning("%s is damaged: %s. It is made anew.", file, error)
        return None


def store(folder: Path, name: str, source: str, array: np.ndarray) -> None:
    """Writes the array for `load_if_current`, and deletes those of other sources under the same name. Raises ResourceError."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    file = _array_path(folder, name, source)
    write_file(file, buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with translate_os_errors(folder):
        for stale in [*folder.glob(f"{name}-*.npy"), *folder.glob(f"{name}.npz")]:
            if stale != file:
                stale.unlink(missing_ok=True)


def _array_path(folder: Path, name: str, source: str) -> Path:
    return folder / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npy"


def _verify_checksum(file: Path) -> None:
    with open(file, "rb") as stream:
        content = stream.read()
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise ValueError("its content does not have its checksum")


@dataclasses.dataclass(frozen=True)
class PreloadedData:
    """Data that are read already: `load()` gives `splits` as often as it is asked."""

    splits: Splits
    batch_size: int

    def load(self) -> Splits:
        return self.splits


def preload(recipe: Recipe) -> tuple[Recipe, Splits]:
    """The recipe with its data read, and these. Raises DataError."""
    splits: Any = recipe.data.load()
    return dataclasses.replace(recipe, data=PreloadedData(splits, recipe.data.batch_size)), splits
