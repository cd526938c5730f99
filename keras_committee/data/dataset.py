"""Description of a data set, and its division into training, validation and test split."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sklearn.model_selection import train_test_split

from keras_committee.class_folders import class_count_problems
from keras_committee.data.augment import Augmentation, leading_crop
from keras_committee.data.images import EncodedImages
from keras_committee.data.splits import Split, Splits
from keras_committee.data.validation import check_files, read_files
from keras_committee.errors import RecipeError, raise_if_problems
from keras_committee.progress import step
from keras_committee.split_sizes import hold_out_counts

# Decoded images of all splits are kept in memory up to 2 GiB. CIFAR takes 0.2 GiB and must be in memory; ImageNet at
# 224 pixels takes 180 GiB and cannot be. With 2 GiB per member process even a small machine keeps enough memory.
MEMORY_LIMIT = 2 * 1024**3

_SIZES_HINT = "Choose a smaller batch_size, validation or test in the recipe."
_MAX_LISTED_CLASSES = 10

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadResult:
    """The result of a reader, before anything is held out and any file is decoded.

    Args:
        classes: Class names, in label order.
        train: The training split.
        validation: The validation split; None to hold it out from `train`.
        test: The test split; None to hold it out from `train`.
        problems: One sentence per problem.
        notes: One sentence per decision that the user may want to make otherwise.
        warnings: One sentence per kind of files that were skipped.
        hint: What to do about `problems`, or about fewer than two classes; the empty string is the hint of the reader.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split | None = None
    test: Split | None = None
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    hint: str = ""


class DataReader(Protocol):
    """Source of the examples of a `DataConfig`."""

    @property
    def hint(self) -> str:
        """What to do about the problems; the last line of the error message."""
        ...

    def find(self) -> ReadResult:
        """List the examples of every split and check their labels.

        Raises:
            DataError: If there is no data.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Description of a data set; nothing is read until `load()`.

    Args:
        name: Name for messages.
        batch_size: Examples per training step, over all devices.
        reader: Source of the examples.
        validation: Examples held out for validation, a count or a fraction; ignored if the reader finds a validation
            split.
        test: Examples held out for test, before validation; ignored if the reader finds a test split.
        augment: Augmentation of the training images, or None.
        limit: Largest number of examples in each split, spread over the classes, for a short trial. None keeps all.
        memory_limit: Bytes of decoded images, over all splits, that are kept in memory. Larger data is decoded again in
            every epoch.
        skip_bad: Largest number of unreadable image files to skip with a warning.

    Raises:
        RecipeError: If a value is out of range.
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
            raise RecipeError(f"{self.name}: skip_bad must be 0 or more. Received: skip_bad={self.skip_bad!r}")
        for field in ("batch_size", "limit"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise RecipeError(f"{self.name}: {field} must be 1 or more. Received: {field}={value!r}")
        for field in ("validation", "test"):
            value = getattr(self, field)
            if value < 0 or (isinstance(value, float) and value >= 1):
                raise RecipeError(
                    f"{self.name}: {field} must be a count of 0 or more, or a fraction below 1. "
                    f"Received: {field}={value!r}"
                )

    def class_names(self) -> tuple[str, ...]:
        """Return the class names in label order, without reading an image.

        Raises:
            DataError: If there is no data.
        """
        return self.reader.find().classes

    @step("reading the data")
    def load(self) -> Splits:
        """Check and read the data.

        Raises:
            DataError: Lists every problem, by file or row.
        """
        found = self.reader.find()
        for note in (*found.notes, *found.warnings):
            _log.warning("%s: %s", self.name, note)
        missing = found.problems or [*class_count_problems(found.classes), *_empty_split_problems(found)]
        problems = [*missing, *self._size_problems(found)]
        available = [split for split in (found.train, found.validation, found.test) if split is not None]
        splits = available if problems else [self._apply_limit(split) for split in self._make_splits(found)]
        splits, unreadable = self._load_images(splits)
        if 0 < len(unreadable) <= self.skip_bad:
            _log.warning("%s: skipped because of skip_bad=%d: %s", self.name, self.skip_bad, "; ".join(unreadable))
            unreadable = []
        fitting_hint = found.hint if missing else _SIZES_HINT
        hint = self.reader.hint if unreadable else fitting_hint or self.reader.hint
        raise_if_problems(self.name, [*problems, *unreadable], hint)
        train, validation, test = splits
        loaded = Splits(
            classes=found.classes,
            train=train,
            validation=validation,
            test=test,
            batch_size=self.batch_size,
            augment=self.augment,
        )
        if self.limit is None:
            self._report_absent_classes(loaded)
        return loaded

    def _report_absent_classes(self, splits):
        """Warn of classes without a validation or test example; raise DataError if one has no training example."""
        absent = absent_classes(splits.train, splits.classes)
        problems = [f"no training example of class {name!r} is readable" for name in absent]
        raise_if_problems(self.name, problems, self.reader.hint)
        for split_name in ("validation", "test"):
            if absent := absent_classes(getattr(splits, split_name), splits.classes):
                _log.warning(
                    "%s: the %s split has no example of %s, for want of images; the scores leave %s out.",
                    self.name,
                    split_name,
                    _shorten(absent),
                    "it" if len(absent) == 1 else "them",
                )

    def _hold_out_counts(self, found):
        """Return the number of examples to hold out from training, for test and for validation."""
        validation, test = hold_out_counts(
            len(found.train),
            validation=0 if found.validation is not None else self.validation,
            test=0 if found.test is not None else self.test,
        )
        return test, validation

    def _size_problems(self, found):
        if _empty_split_problems(found):
            return []
        test, validation = self._hold_out_counts(found)
        problems = check_hold_out(found.train.labels, test, found.classes, "the test split")
        if problems:
            return problems
        remaining = hold_out(found.train.labels, test)[0]
        labels = found.train.labels[remaining]
        if test:  # the other image of a class of two is a test image
            labels = labels[_is_divisible(labels)]
        problems = check_hold_out(labels, validation, found.classes, "the validation split")
        num_train = min(len(remaining) - validation, self.limit or len(remaining))
        if not problems and num_train < self.batch_size:
            problems = [f"{num_train} training examples do not fill one batch of {self.batch_size}"]
        return problems

    def _make_splits(self, found):
        """Return train, validation and test split."""
        test_count, validation_count = self._hold_out_counts(found)
        remaining, held_out = hold_out(found.train.labels, test_count)
        test = found.train.subset(held_out) if found.test is None else found.test
        kept, held_out = hold_out(found.train.labels[remaining], validation_count)
        validation = found.train.subset(remaining[held_out]) if found.validation is None else found.validation
        return found.train.subset(remaining[kept]), validation, test

    def _apply_limit(self, split):
        return split if self.limit is None else split.subset(stratified_indices(split.labels, self.limit))

    def _load_images(self, splits):
        """Return the splits without their unreadable files, in memory if they fit, and the problems of those files.

        Training images whose random crops are decoded stay encoded: memory would hold them resized.
        """
        keep_encoded = [index == 0 and self._decodes_crops(split) for index, split in enumerate(splits)]
        sizes = [len(split) * int(np.prod(split.image_shape)) for split in splits]
        memory_size = sum(size for size, encoded in zip(sizes, keep_encoded, strict=True) if not encoded)
        fits_in_memory = memory_size <= self.memory_limit
        loaded_splits, problems = [], []
        for split, stay_encoded in zip(splits, keep_encoded, strict=True):
            images, bad_files = _read_images(split.images, fits_in_memory and not stay_encoded)
            loaded = dataclasses.replace(split, images=images)
            if bad_files:
                loaded = loaded.subset(np.delete(np.arange(len(split)), list(bad_files)))
            loaded_splits.append(loaded)
            problems += bad_files.values()
        return loaded_splits, problems

    def _decodes_crops(self, split):
        """Whether random crops are read from the files; not if the files have exactly the size of the images."""
        return (
            leading_crop(self.augment) is not None
            and isinstance(split.images, EncodedImages)
            and not split.images.require_exact_size
        )


def _empty_split_problems(found):
    splits = {"train": found.train, "test": found.test}
    return [f"there are no {name} examples" for name, split in splits.items() if split is not None and not len(split)]


def _read_images(images, into_memory):
    if not isinstance(images, EncodedImages):
        return images, {}
    return read_files(images) if into_memory else (images, check_files(images))


def hold_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the examples into those that remain and `count` held-out ones, with equal class proportions.

    Every class of two or more has an example on both sides; the example of a class of one remains.

    Args:
        labels: int32 `(examples,)`.
        count: Number of examples to hold out, for which `check_hold_out` finds no problem.

    Returns:
        Remaining and held-out indices, both ascending; the same for equal labels.
    """
    indices = np.arange(len(labels))
    if count == 0:
        return indices, indices[:0]
    divisible = indices[_is_divisible(labels)]
    _, held_out = train_test_split(divisible, test_size=count, stratify=labels[divisible], random_state=0)
    is_held_out = np.isin(indices, held_out)
    _give_every_class_a_share(is_held_out, labels)
    return indices[~is_held_out], indices[is_held_out]


def _is_divisible(labels):
    """Return whether the class of each example has another one: bool `(examples,)`."""
    return np.bincount(labels)[labels] > 1


def _give_every_class_a_share(is_held_out, labels):
    """Exchange examples, in place, until every class of two or more is on both sides.

    Proportional rounding leaves out classes of up to `1 / (2 * fraction)` examples.
    """
    rng, sizes = np.random.default_rng(0), np.bincount(labels)
    for side in (True, False):  # first held out, then remaining
        counts = np.bincount(labels[is_held_out == side], minlength=len(sizes))
        for label in np.flatnonzero((sizes > 1) & (counts == 0)):
            largest = counts.argmax()
            is_held_out[rng.choice(np.flatnonzero((labels == largest) & (is_held_out == side)))] = not side
            is_held_out[rng.choice(np.flatnonzero(labels == label))] = side
            counts[label], counts[largest] = 1, counts[largest] - 1


def absent_classes(split: Split, classes: Sequence[str]) -> list[str]:
    """Return the names of the classes without an example in a split; none for an empty split."""
    counts = np.bincount(split.labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if not count] if len(split) else []


def _shorten(names):
    more = f" and {len(names) - _MAX_LISTED_CLASSES} more" if len(names) > _MAX_LISTED_CLASSES else ""
    return f"class{'' if len(names) == 1 else 'es'} {', '.join(map(repr, names[:_MAX_LISTED_CLASSES]))}{more}"


def check_hold_out(labels: np.ndarray, count: int, classes: Sequence[str], split_name: str) -> list[str]:
    """Return why `count` examples cannot be held out with every class on both sides; empty if they can.

    Args:
        labels: int32 `(examples,)`.
        count: Number of examples to hold out.
        classes: Class names, in label order.
        split_name: Name of the held-out split for the messages.
    """
    if count == 0:
        return []
    present, sizes = np.unique(labels, return_counts=True)
    if count >= len(labels):
        return [f"{split_name} takes {count} of {len(labels)} examples: none remain for training"]
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
    """Return at most `limit` indices, ascending, evenly spread over the classes and within each.

    Every class keeps an example if `limit` is at least the number of classes.

    Args:
        labels: int32 `(examples,)`.
        limit: Largest number of indices, 0 or more.
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
    """Return `count` distinct, evenly spaced indices of `range(length)`; `count` is at most `length`."""
    return (np.arange(count) * 2 + 1) * length // (2 * max(count, 1))
