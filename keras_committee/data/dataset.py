"""What data does a recipe ask for, and how does it become train, validation and test?"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sklearn.model_selection import train_test_split

from keras_committee.data import validation
from keras_committee.data.augment import Augmentation, leading_crop
from keras_committee.data.images import Encoded
from keras_committee.data.splits import Split, Splits
from keras_committee.errors import RecipeError, refuse

# Decoded images of all splits together are kept in memory up to 2 GiB: CIFAR takes 0.2 GiB and must be, ImageNet at
# 224 pixels takes 180 GiB and cannot be; 2 GiB for each member's process still leaves a small machine its memory.
MEMORY_LIMIT = 2 * 1024**3

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
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


class Reader(Protocol):
    """Where the examples come from."""

    @property
    def mend(self) -> str:
        """The last line of an error message: what the user can do."""
        ...

    def find(self) -> Found: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
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
    reader: Reader
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
        whole = [split for split in (found.train, found.validation, found.test) if split is not None]
        parts = whole if problems else [self._limited(split) for split in self._parts(found)]
        parts, unreadable = self._read(parts)
        if 0 < len(unreadable) <= self.skip_bad:
            _log.warning("%s: skipped, as skip_bad=%d allows: %s", self.name, self.skip_bad, "; ".join(unreadable))
            unreadable = []
        refuse(self.name, [*problems, *unreadable], self.reader.mend)
        train, validation, test = parts
        return Splits(
            classes=found.classes,
            train=train,
            validation=validation,
            test=test,
            batch_size=self.batch_size,
            augment=self.augment,
        )

    def _counts(self, found):
        """Examples to hold out from training, for test and for validation."""
        test = 0 if found.test is not None else amount(self.test, len(found.train))
        validation = 0 if found.validation is not None else amount(self.validation, len(found.train) - test)
        return test, validation

    def _size_problems(self, found):
        empty = [
            part for part in ("train", "test") if getattr(found, part) is not None and not len(getattr(found, part))
        ]
        if empty:
            return [] if found.problems else [f"there are no {part} examples" for part in empty]
        test, validation = self._counts(found)
        problems = check_hold_out(found.train.labels, test, found.classes, "the test split")
        if problems:
            return problems
        rest = hold_out(found.train.labels, test)[0]
        problems = check_hold_out(found.train.labels[rest], validation, found.classes, "the validation split")
        left = min(len(rest) - validation, self.limit or len(rest))
        if not problems and left < self.batch_size:
            problems = [f"{left} training examples do not fill one batch of {self.batch_size}"]
        return problems

    def _parts(self, found):
        """Train, validation and test."""
        test_count, validation_count = self._counts(found)
        rest, held = hold_out(found.train.labels, test_count)
        test = found.train.take(held) if found.test is None else found.test
        stay, held = hold_out(found.train.labels[rest], validation_count)
        validation = found.train.take(rest[held]) if found.validation is None else found.validation
        return found.train.take(rest[stay]), validation, test

    def _limited(self, split):
        return split if self.limit is None else split.take(evenly(split.labels, self.limit))

    def _read(self, splits):
        """The splits without their unreadable files, in memory where they fit, and what is wrong with those files.

        Training images whose windows are decoded stay in their files: memory would hold them framed.
        """
        stays = [place == 0 and self._reads_windows(split) for place, split in enumerate(splits)]
        sizes = [len(split) * int(np.prod(split.image_shape)) for split in splits]
        small = sum(size for size, stay in zip(sizes, stays, strict=True) if not stay) <= self.memory_limit
        read, problems = [], []
        for split, stay in zip(splits, stays, strict=True):
            images, wrong = _read_images(split.images, small and not stay)
            whole = dataclasses.replace(split, images=images)
            read.append(whole.take(np.delete(np.arange(len(split)), list(wrong))) if wrong else whole)
            problems += wrong.values()
        return read, problems

    def _reads_windows(self, split):
        """Not where the files have the size of the images: then memory holds all that they do."""
        return leading_crop(self.augment) is not None and isinstance(split.images, Encoded) and not split.images.exact


def _read_images(images, small):
    if not isinstance(images, Encoded):
        return images, {}
    return validation.read_files(images) if small else (images, validation.check_files(images))


def amount(part: float, examples: int) -> int:
    """Examples that `part` stands for: a fraction where it is a float, a count where it is an integer."""
    return round(part * examples) if isinstance(part, float) else part


def hold_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices that stay and `count` indices held out, both ascending, with the class shares of `labels`."""
    everything = np.arange(len(labels))
    if count == 0:
        return everything, everything[:0]
    stay, held = train_test_split(everything, test_size=count, stratify=labels, random_state=0)
    return np.sort(stay), np.sort(held)


def check_hold_out(labels: np.ndarray, count: int, classes: Sequence[str], name: str) -> list[str]:
    """Why `count` examples cannot be held out from `labels` with every class on both sides; empty if they can.

    `classes` are the class names in label order, `name` is what the message calls the held-out part.
    """
    if count == 0:
        return []
    present, sizes = np.unique(labels, return_counts=True)
    if count >= len(labels):
        return [f"{name} takes {count} of {len(labels)} examples: none are left for training"]
    if min(count, len(labels) - count) < len(present):
        return [f"{name} takes {count} of {len(labels)} examples: too few for {len(present)} classes on both sides"]
    return [
        f"class {classes[label]} has only one example to share between training and {name}"
        for label, size in zip(present, sizes, strict=True)
        if size < 2
    ]


def evenly(labels: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` indices, ascending, spread evenly over the classes and within each.

    Every class keeps an example where `limit` is at least the number of classes.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    _, firsts = np.unique(labels[by_class], return_index=True)
    if limit < len(firsts):
        return np.sort(by_class[_spread(len(labels), limit)])
    rest = np.delete(by_class, firsts)
    chosen = rest[_spread(len(rest), limit - len(firsts))]
    return np.sort(np.concatenate([by_class[firsts], chosen]))


def _spread(length, count):
    """`count` different places, evenly over `range(length)`; `count` is at most `length`."""
    return (np.arange(count) * 2 + 1) * length // (2 * max(count, 1))
