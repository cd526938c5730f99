"""What data does a recipe ask for, and how does it become train, validation and test?"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sklearn.model_selection import train_test_split

from keras_committee.data import validation
from keras_committee.data.augment import Augmentation, leading_crop
from keras_committee.data.images import EncodedImages
from keras_committee.data.splits import Split, Splits
from keras_committee.errors import RecipeError, raise_if_problems

# Decoded images of all splits together are kept in memory up to 2 GiB: CIFAR takes 0.2 GiB and must be, ImageNet at
# 224 pixels takes 180 GiB and cannot be; 2 GiB for each member's process still leaves a small machine its memory.
MEMORY_LIMIT = 2 * 1024**3

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadResult:
    """What a reader found, before any hold-out is made and any file is decoded.

    Args:
        classes: Class names, in label order.
        train, validation, test: A `Split` each; None where it is to be held out from `train`.
        problems: One sentence for each thing that is wrong.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split | None = None
    test: Split | None = None
    problems: Sequence[str] = ()


class DataReader(Protocol):
    """Where the examples come from."""

    @property
    def hint(self) -> str:
        """The last line of an error message: what the user can do."""
        ...

    def find(self) -> ReadResult: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A description of data; nothing is read until `load()`.

    Args:
        name: What messages call it.
        batch_size: Examples of one training step over all devices.
        reader: Where the examples come from.
        validation: Examples held out from training, a count or a fraction; unused where the reader has its own.
        test: The same for the test split, taken first.
        augment: Augmentation of the training images, or None.
        limit: At most so many examples in each split, spread over the classes; for a short trial. None keeps all.
        memory_limit: Bytes of decoded images, over all splits, that are kept in memory; beyond it files are decoded
            again in every pass.
        skip_bad: So many image files may be unreadable; they are left out and named in a warning.

    Raises:
        RecipeError: If a value makes no sense whatever the data are.
    """

    name: str
    batch_size: int
    reader: DataReader
    validation: float = 0
    test: float = 0
    augment: Augmentation | None = None
    limit: int | None = None
    memory_limit: int = MEMORY_LIMIT
    skip_bad: int = 0

    def __post_init__(self):
        if self.skip_bad < 0:
            raise RecipeError(f"{self.name} needs skip_bad of 0 or more. Received: skip_bad={self.skip_bad!r}")
        for field in ("batch_size", "limit"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise RecipeError(f"{self.name} needs a {field} of 1 or more. Received: {field}={value!r}")
        for field in ("validation", "test"):
            value = getattr(self, field)
            if value < 0 or (isinstance(value, float) and value >= 1):
                raise RecipeError(
                    f"{self.name} needs {field} as a count of 0 or more, or as a fraction below 1. "
                    f"Received: {field}={value!r}"
                )

    def class_names(self) -> tuple[str, ...]:
        """The classes that the reader finds, in label order; no image is read.

        Raises:
            DataError: If it finds no data.
        """
        return self.reader.find().classes

    def load(self) -> Splits:
        """Check everything and read it.

        Raises:
            DataError: Names every problem found, by file or row.
        """
        found = self.reader.find()
        problems = [*found.problems, *self._size_problems(found)]
        available = [split for split in (found.train, found.validation, found.test) if split is not None]
        splits = available if problems else [self._apply_limit(split) for split in self._make_splits(found)]
        splits, unreadable = self._load_images(splits)
        if 0 < len(unreadable) <= self.skip_bad:
            _log.warning("%s: skipped, as skip_bad=%d allows: %s", self.name, self.skip_bad, "; ".join(unreadable))
            unreadable = []
        raise_if_problems(self.name, [*problems, *unreadable], self.reader.hint)
        train, validation, test = splits
        return Splits(
            classes=found.classes,
            train=train,
            validation=validation,
            test=test,
            batch_size=self.batch_size,
            augment=self.augment,
        )

    def _hold_out_counts(self, found):
        """Examples to hold out from training, for test and for validation."""
        test = 0 if found.test is not None else resolve_count(self.test, len(found.train))
        validation = 0 if found.validation is not None else resolve_count(self.validation, len(found.train) - test)
        return test, validation

    def _size_problems(self, found):
        empty = [
            split_name
            for split_name in ("train", "test")
            if getattr(found, split_name) is not None and not len(getattr(found, split_name))
        ]
        if empty:
            return [] if found.problems else [f"there are no {part} examples" for part in empty]
        test, validation = self._hold_out_counts(found)
        problems = check_hold_out(found.train.labels, test, found.classes, "the test split")
        if problems:
            return problems
        remaining = hold_out(found.train.labels, test)[0]
        problems = check_hold_out(found.train.labels[remaining], validation, found.classes, "the validation split")
        num_train = min(len(remaining) - validation, self.limit or len(remaining))
        if not problems and num_train < self.batch_size:
            problems = [f"{num_train} training examples do not fill one batch of {self.batch_size}"]
        return problems

    def _make_splits(self, found):
        """Train, validation and test."""
        test_count, validation_count = self._hold_out_counts(found)
        remaining, held_out = hold_out(found.train.labels, test_count)
        test = found.train.subset(held_out) if found.test is None else found.test
        kept, held_out = hold_out(found.train.labels[remaining], validation_count)
        validation = found.train.subset(remaining[held_out]) if found.validation is None else found.validation
        return found.train.subset(remaining[kept]), validation, test

    def _apply_limit(self, split):
        return split if self.limit is None else split.subset(stratified_indices(split.labels, self.limit))

    def _load_images(self, splits):
        """The splits without their unreadable files, in memory where they fit, and what is wrong with those files.

        Training images whose windows are decoded stay in their files: memory would hold them framed.
        """
        keep_encoded = [index == 0 and self._decodes_crops(split) for index, split in enumerate(splits)]
        sizes = [len(split) * int(np.prod(split.image_shape)) for split in splits]
        fits_in_memory = (
            sum(size for size, encoded in zip(sizes, keep_encoded, strict=True) if not encoded) <= self.memory_limit
        )
        loaded_splits, problems = [], []
        for split, stay in zip(splits, keep_encoded, strict=True):
            images, bad_files = _read_images(split.images, fits_in_memory and not stay)
            loaded = dataclasses.replace(split, images=images)
            loaded_splits.append(
                loaded.subset(np.delete(np.arange(len(split)), list(bad_files))) if bad_files else loaded
            )
            problems += bad_files.values()
        return loaded_splits, problems

    def _decodes_crops(self, split):
        """Not where the files have the size of the images: then memory holds all that they do."""
        return (
            leading_crop(self.augment) is not None
            and isinstance(split.images, EncodedImages)
            and not split.images.require_exact_size
        )


def _read_images(images, into_memory):
    if not isinstance(images, EncodedImages):
        return images, {}
    return validation.read_files(images) if into_memory else (images, validation.check_files(images))


def resolve_count(count_or_fraction: float, num_examples: int) -> int:
    """Examples that `count_or_fraction` stands for: a fraction where it is a float, a count where it is an integer."""
    return round(count_or_fraction * num_examples) if isinstance(count_or_fraction, float) else count_or_fraction


def hold_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices that stay and `count` indices held out, both ascending, with the class shares of `labels`."""
    indices = np.arange(len(labels))
    if count == 0:
        return indices, indices[:0]
    kept, held_out = train_test_split(indices, test_size=count, stratify=labels, random_state=0)
    return np.sort(kept), np.sort(held_out)


def check_hold_out(labels: np.ndarray, count: int, classes: Sequence[str], split_name: str) -> list[str]:
    """Why `count` examples cannot be held out from `labels` with every class on both sides; empty if they can.

    `classes` are the class names in label order, `split_name` is what the message calls the held-out part.
    """
    if count == 0:
        return []
    present, sizes = np.unique(labels, return_counts=True)
    if count >= len(labels):
        return [f"{split_name} takes {count} of {len(labels)} examples: none are left for training"]
    if min(count, len(labels) - count) < len(present):
        return [
            f"{split_name} takes {count} of {len(labels)} examples: too few for {len(present)} classes on both sides"
        ]
    return [
        f"class {classes[label]} has only one example to share between training and {split_name}"
        for label, size in zip(present, sizes, strict=True)
        if size < 2
    ]


def stratified_indices(labels: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` indices, ascending, spread evenly over the classes and within each.

    Every class keeps an example where `limit` is at least the number of classes.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    _, first_per_class = np.unique(labels[by_class], return_index=True)
    if limit < len(first_per_class):
        return np.sort(by_class[_evenly_spaced(len(labels), limit)])
    remaining = np.delete(by_class, first_per_class)
    chosen = remaining[_evenly_spaced(len(remaining), limit - len(first_per_class))]
    return np.sort(np.concatenate([by_class[first_per_class], chosen]))


def _evenly_spaced(length, count):
    """`count` different places, evenly over `range(length)`; `count` is at most `length`."""
    return (np.arange(count) * 2 + 1) * length // (2 * max(count, 1))
