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
from keras_committee.files import write_file, writing


@dataclass(frozen=True, kw_only=True)
class Votes:
    """The votes of all members on one split.

    Attributes:
        members: The indices of the members, ascending.
        log_probabilities: float32 `(examples, members, classes)`.
        labels: int32 `(examples,)`.
        classes: Names of the classes.
        weights: SHA-256 of each member's `model.keras`, in hexadecimal digits.
        data: The fingerprint of the split.
        origin: The same of what its images were made from; equal for the same files at two sizes.
    """

    members: tuple[int, ...]
    log_probabilities: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    weights: tuple[str, ...] = ()
    data: str = ""
    origin: str = ""


def cast_votes(run: Run, recipe: Recipe, split: str = "test", min_members: int | None = None) -> Votes:
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
    members = run.members_at_hand(recipe.members, min_members)
    return votes_on(run, members, recipe.data.load(), split)


def votes_on(run: Run, members: Sequence[int], splits: "Splits", split: str) -> Votes:
    """The same for the `members` at hand, on data that are loaded already.

    Raises:
        RecipeError: If the data have other classes than the members were trained for.
        VerificationError: If a member gives anything but one finite number for each class.
    """
    run.require_classes(splits.classes)
    examples = getattr(splits, split)
    data = examples.fingerprint()
    weights = [file_hash(run.member(index).model) for index in members]
    votes = [_member_votes(run, index, split, examples, w + data) for index, w in zip(members, weights, strict=True)]
    for index, each in zip(members, votes, strict=True):
        _check(run, index, each, len(splits.classes))
    return Votes(
        members=tuple(members),
        log_probabilities=np.stack(votes, axis=1),
        labels=examples.labels,
        classes=splits.classes,
        weights=tuple(weights),
        data=data,
        origin=examples.origin(),
    )


def _check(run: Run, index: int, votes: np.ndarray, classes: int) -> None:
    wrong = None if votes.shape[1] == classes else f"gives {votes.shape[1]} classes; the data have {classes}"
    if wrong is None and not np.isfinite(votes).all():
        wrong = f"gives votes that are not finite for {int((~np.isfinite(votes)).any(axis=1).sum())} examples"
    if wrong:
        raise VerificationError(
            f"member {index} of {run.path} {wrong}. It is averaged with no other.\n"
            f"  Delete {run.member(index).model} and train it anew, or evaluate without it: --min-members."
        )


def _member_votes(run: Run, index: int, split: str, examples, source: str) -> np.ndarray:
    folder, name = run.path / "votes" / split, f"{index:02d}"
    votes = current(folder, name, source)
    if votes is None:
        votes = log_probabilities(load_member(run.member(index).model), examples.batches(256))
        keep(folder, name, source, votes)
    if len(votes) != len(examples):
        raise RuntimeError(f"member {index} gave {len(votes)} votes on {len(examples)} examples")
    return votes


_DIGEST_BYTES = hashlib.sha256().digest_size


def current(folder: Path, name: str, source: str) -> np.ndarray | None:
    """The array `name` that was computed from `source`, read-only and mapped into memory; None where it is not there.

    A damaged file is told on stderr and taken as not there.
    """
    file = _file(folder, name, source)
    if not file.exists():
        return None
    try:
        _verify(file)
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning("%s is damaged: %s. It is made anew.", file, error)
        return None


def keep(folder: Path, name: str, source: str, array: np.ndarray) -> None:
    """Writes the array for `current`, and deletes those of other sources under the same name. Raises ResourceError."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    file = _file(folder, name, source)
    write_file(file, content.getvalue() + hashlib.sha256(content.getvalue()).digest())
    with writing(folder):
        for old in [*folder.glob(f"{name}-*.npy"), *folder.glob(f"{name}.npz")]:
            if old != file:
                old.unlink(missing_ok=True)


def _file(folder: Path, name: str, source: str) -> Path:
    return folder / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npy"


def _verify(file: Path) -> None:
    with open(file, "rb") as opened:
        content = opened.read()
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise ValueError("its content does not have its checksum")


@dataclasses.dataclass(frozen=True)
class LoadedData:
    """Data that are read already: `load()` gives `splits` as often as it is asked."""

    splits: Splits
    batch_size: int

    def load(self) -> Splits:
        return self.splits


def loaded(recipe: Recipe) -> tuple[Recipe, Splits]:
    """The recipe with its data read, and these. Raises DataError."""
    splits: Any = recipe.data.load()
    return dataclasses.replace(recipe, data=LoadedData(splits, recipe.data.batch_size)), splits
