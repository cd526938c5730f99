"""How do TFRecord shards become examples?"""

import abc
import dataclasses
import functools
import glob
import hashlib
import json
import os
import re
import resource
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow as tf

from keras_committee.data.dataset import Data, Found
from keras_committee.data.images import Encoded
from keras_committee.data.preprocessing import Framing, chosen_framing
from keras_committee.data.record_index import Fields, RecordIndex, record_index
from keras_committee.data.splits import Split
from keras_committee.errors import DataError, refuse

PARTS = ("train", "validation", "test")


def imagenet_records(
    directory: str | os.PathLike,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    framing: Framing | None = None,
    labels: str | os.PathLike | None = None,
    first_label: int = 1,
    validation: float = 0.1,
    test: float = 0.2,
    augment=None,
) -> Data:
    """ImageNet, or any classes, in TFRecords of Model Garden's format; `keras-committee records` writes them.

    The shards of a split are the files of `directory` named like `train-00000-of-01024` or `train.tfrecord`. Beside
    `train` there may be `validation` (or `val`) and `test`; `validation` without `test` is the test split. An example
    holds `image/encoded`, a JPEG or PNG, and `image/class/label`, and may hold `image/class/text` and `.../synset`.

    The first time, every shard is read once from end to end: each checksum is verified, and an index of the records is
    kept beside the shards, or in `~/.cache/keras-committee`. With it any record is read on its own, so training sees
    the examples in an order that follows from seed and step alone, as from files, on one host or several.

    Args:
        directory: The folder.
        batch_size: Examples of one training step over all devices.
        size: Height and width, in pixels, that every image is resized to; or
        framing: which part of every image is seen and at which size, such as `centre_crop(224)`.
        labels: A text file with one class name in each line, in label order; None takes `labels.txt` of the folder if
            there is one, else what the examples call their classes.
        first_label: The label of the first class: 1 as in Model Garden's ImageNet, where 0 is the background.
        validation: Examples held out from training, a count or a fraction, where there is no such split.
        test: The same for the test split.
        augment: Augmentation of the training images, or None.
    """
    reader = ShardFolder(
        directory=Path(directory),
        framing=chosen_framing("imagenet_records", size, framing),
        labels=None if labels is None else Path(labels),
        first_label=first_label,
    )
    name = f"imagenet_records({os.fspath(directory)!r})"
    return Data(name=name, batch_size=batch_size, reader=reader, validation=validation, test=test, augment=augment)


def tfrecords(
    train: str | os.PathLike,
    batch_size: int,
    *,
    first_label: int,
    size: tuple[int, int] | None = None,
    framing: Framing | None = None,
    image_field: str = Fields.image,
    label_field: str = Fields.label,
    labels: str | os.PathLike | None = None,
    validation: float | str = 0.1,
    test: float | str = 0.2,
    augment=None,
) -> Data:
    """TFRecords of examples with an encoded image and a label, whatever files and fields are called.

    Args:
        train: The training shards: a pattern such as `"data/flowers-train*"`, or a folder.
        batch_size: Examples of one training step over all devices.
        first_label: The label of the first class, mostly 0 or 1.
        size: Height and width, in pixels, that every image is resized to; or
        framing: which part of every image is seen and at which size, such as `centre_crop(224)`.
        image_field: Name of the field with the encoded image, a JPEG or PNG.
        label_field: Name of the field with the label, an integer.
        labels: A text file with one class name in each line, in label order, or None.
        validation: A pattern of shards; or what is held out from training, a count or a fraction.
        test: The same for the test split.
        augment: Augmentation of the training images, or None.
    """
    patterns, counts = named_or_held(validation=validation, test=test)
    reader = ShardPatterns(
        patterns={"train": os.fspath(train), **patterns},
        framing=chosen_framing("tfrecords", size, framing),
        labels=None if labels is None else Path(labels),
        first_label=first_label,
        fields=Fields(image=image_field, label=label_field),
    )
    return Data(
        name=f"tfrecords({os.fspath(train)!r})",
        batch_size=batch_size,
        reader=reader,
        augment=augment,
        validation=counts["validation"],
        test=counts["test"],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardReader(abc.ABC):
    """Reads splits in shards. Which files they are is for a subclass to say.

    Args:
        framing: How the images become images of one size.
        labels: File of class names, or None.
        first_label: The label of the first class.
    """

    framing: Framing
    labels: Path | None = None
    first_label: int
    mend: str = "Mend or remove what is named above (or change the recipe's sizes), then run the command again."

    @abc.abstractmethod
    def shards(self) -> dict[str, list[Path]]:
        """The shards of each split there is, of train, validation and test. Raises DataError."""

    def field_names(self) -> Fields:
        return Fields()

    def promised(self) -> dict[str, int]:
        """How many examples a split must have, where that is known."""
        return {}

    def class_names(self) -> Sequence[str] | None:
        """The names, in label order, where they are known without the examples."""
        return None if self.labels is None else _lines(self.labels)

    def find(self) -> Found:
        shards, fields, indices = self.shards(), self.field_names(), {}
        place = str(next(iter(shards.values()))[0].parent)
        gone = [path.name for paths in shards.values() for path in paths if not path.exists()]
        refuse(place, [f"{name}: the shard is missing" for name in gone], self.mend)
        problems = [f"{name}: the shard is missing" for paths in shards.values() for name in missing_shards(paths)]
        for part, paths in shards.items():
            indices[part], wrong = record_index(paths, fields)
            problems += wrong
        if not problems:
            problems = self._count_problems(indices)
        names = self.class_names() or _found_names(list(indices.values()), self.first_label)
        problems = problems or self._label_problems(indices, names)
        refuse(place, problems, self.mend)
        splits = {part: self._split(index) for part, index in indices.items()}
        if "test" not in splits and "validation" in splits:
            splits["test"] = splits.pop("validation")
        return Found(
            classes=tuple(names), train=splits["train"], validation=splits.get("validation"), test=splits.get("test")
        )

    def _split(self, index):
        images = Records(index=index, rows=np.arange(len(index.rows)), framing=self.framing)
        return Split(images=images, labels=(index.rows["label"] - self.first_label).astype(np.int32))

    def _count_problems(self, indices):
        return [
            f"{part}: {len(indices[part].rows)} records, but {count} were written"
            for part, count in self.promised().items()
            if part in indices and len(indices[part].rows) != count
        ]

    def _label_problems(self, indices, names):
        """Labels that are no class, and classes without an example."""
        problems, last = [], self.first_label + len(names) - 1
        for part, index in indices.items():
            labels = index.rows["label"]
            wrong = (labels < self.first_label) | (labels > last)
            problems += [
                f"{index.name(row)}: label {labels[row]}, the classes' are {self.first_label}..{last} (first_label and "
                "the number of class names say so)"
                for row in np.flatnonzero(wrong)
            ]
            absent = np.setdiff1d(np.arange(self.first_label, last + 1), labels)
            problems += [
                f"{part}: no example has label {label} ({names[label - self.first_label]!r})" for label in absent
            ]
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFolder(ShardReader):
    """Shards whose names begin with `train`, `validation` or `val`, and `test`, in one folder."""

    directory: Path

    def shards(self) -> dict[str, list[Path]]:
        if not self.directory.is_dir():
            kind = "is not a folder" if self.directory.exists() else "there is no such folder"
            refuse(str(self.directory), [kind], "Name the folder that holds the shards.")
        prefixes = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
        found = {part: split_shards(self.directory, prefixes[part]) for part in PARTS}
        if not found["train"]:
            mend = "Name the folder that holds the shards, or write them with keras-committee records SOURCE DEST."
            wanted = "there are no training shards, named like train-00000-of-01024 or train.tfrecord"
            refuse(str(self.directory), [wanted], mend)
        return {part: paths for part, paths in found.items() if paths}

    def promised(self) -> dict[str, int]:
        counts = planned(
            self.directory, lambda plan: {part: int(split["examples"]) for part, split in plan["splits"].items()}
        )
        return counts or {}

    def class_names(self) -> Sequence[str] | None:
        beside = self.directory / "labels.txt"
        return _lines(beside) if self.labels is None and beside.is_file() else super().class_names()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPatterns(ShardReader):
    """Shards that patterns match: split -> pattern."""

    patterns: dict[str, str]
    fields: Fields

    def field_names(self) -> Fields:
        return self.fields

    def shards(self) -> dict[str, list[Path]]:
        found = {part: matching_shards(pattern) for part, pattern in self.patterns.items()}
        nothing = [f"{pattern}: no file matches it" for part, pattern in self.patterns.items() if not found[part]]
        refuse("tfrecords", nothing, "Name the shards of each split with a pattern, or their folder.")
        return found


def planned(directory: Path, read: Callable[[Any], Any]) -> Any:
    """What `read` finds in the `records.json` of a folder; None where there is none. Raises DataError."""
    try:
        return read(json.loads((directory / "records.json").read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / 'records.json'} cannot be read: {error}. Restore or remove it.") from error


def named_or_held(*, validation: float | str, test: float | str) -> tuple[dict[str, str], dict[str, float]]:
    """The splits that are named, and how many examples are held out for the others: 0 for a named one."""
    asked = {"validation": validation, "test": test}
    named = {part: value for part, value in asked.items() if isinstance(value, str)}
    return named, {part: 0 if isinstance(value, str) else value for part, value in asked.items()}


def _lines(path):
    """The class names in a file."""
    try:
        names = path.read_text(encoding="utf-8").strip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the class names in {path} cannot be read: {error}. Name another file as labels.") from error
    if not all(name.strip() for name in names):
        raise DataError(f"{path} has an empty line, expected a class name in each. Mend it, or name another as labels.")
    return names


def _found_names(indices: Sequence[RecordIndex], first_label: int) -> list[str]:
    """What the examples call the classes: their texts, or where two are the same their synsets, or the labels."""
    called = {label: words for index in indices for label, words in index.names.items()}
    labels = range(first_label, max(called, default=first_label) + 1)
    for kind in (0, 1):
        names = [called.get(label, ("", ""))[kind] for label in labels]
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(label) for label in labels]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Records(Encoded):
    """Images in TFRecord shards.

    Args:
        index: Where every record of the shards lies.
        rows: Which of them are the examples, and in which order: int64 `(examples,)`.
        framing: How they become images of one size.
        exact: Whether they must have that size already; they are framed otherwise.
    """

    index: RecordIndex
    rows: np.ndarray
    framing: Framing
    exact: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> Self:
        return dataclasses.replace(self, rows=self.rows[indices])

    def contents(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to the encoded images, string `(batch,)`.

        One call of Python for a batch: from the page cache it read 30,000 to 54,000 images a second of 10 kB;
        `FixedLengthRecordDataset`, which stays in C++ but opens a file for each record, read 900 to 1,500, and
        `TFRecordDataset`, in the order of the file, 16,000 to 90,000 (two cores, shared with other work).
        """

        def read(indices):
            contents = tf.numpy_function(self.read_all, [indices], tf.string, stateful=False)
            return tf.ensure_shape(contents, indices.shape)

        return read

    def read_all(self, indices: np.ndarray) -> np.ndarray:
        """The encoded images at `indices`, bytes `(batch,)` of dtype object.

        Raises:
            DataError: If a shard is gone, or is not the one that was indexed.
        """
        rows = self.rows[indices]
        places = self.index.rows[rows]
        shards = [self._shard(number) for number in self.index.shard_of(rows)]
        wanted = list(zip(shards, places["offset"].tolist(), places["length"].tolist(), strict=True))
        for shard, offset, length in wanted:  # the kernel fetches all of them while the first is waited for
            os.posix_fadvise(shard.descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        contents = np.empty(len(wanted), object)
        contents[:] = [os.pread(shard.descriptor, length, offset) for shard, offset, length in wanted]
        return contents

    def name(self, index: int) -> str:
        return self.index.name(int(self.rows[index]))

    def read(self, index: int) -> bytes:
        return self.read_all(np.array([index]))[0]

    def ends(self, index: int) -> tuple[bytes, bytes]:
        place = self.index.rows[self.rows[index]]
        offset, length = int(place["offset"]), int(place["length"])
        shard = self._shard(self.index.shard_of(self.rows[[index]])[0])  # held: two threads may each open their own
        size = min(16, length)
        return os.pread(shard.descriptor, size, offset), os.pread(shard.descriptor, size, offset + length - size)

    def origin(self) -> bytes:
        """SHA-256 of each record's checksum and length, in order: it changes with any byte, and not with the shards.

        Nothing is read for it.
        """
        rows = self.index.rows[self.rows]
        return hashlib.sha256(rows["checksum"].tobytes() + rows["length"].tobytes()).digest()

    def _shard(self, number):
        return _descriptors()(self.index.shards[number], self.index.stamps[number])


class _Shard:
    """An open shard. It is closed when nobody holds it: it may fall out of the cache while a thread reads it.

    Nor does the cache hold both where two threads open the same one at once.
    """

    descriptor = -1

    def __init__(self, path: Path, stamp: tuple[int, int]):
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}. Put it back and run the same command."
            ) from error
        stat = os.fstat(self.descriptor)
        if (stat.st_size, stat.st_mtime_ns) != stamp:
            raise DataError(f"{path} has changed since it was indexed. Run the same command again.")

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.cache
def _descriptors():
    """`_Shard` by path and stamp; at most a quarter of the files that this process may open stay open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return functools.lru_cache(max(8, limit // 4) if limit != resource.RLIM_INFINITY else 4096)(_Shard)


# train-00000-of-01024 (Model Garden), name-train.tfrecord-00000-of-00008 (TFDS), train-00000-of-00008.tfrecord
_NUMBERED = re.compile(r"(?P<head>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<tail>\.tfrecords?)?")
SUFFIXES = (".tfrecord", ".tfrecords")


def is_shard(name: str) -> bool:
    """Whether a file of this name is one: it ends in `-00000-of-01024`, `.tfrecord` or `.tfrecords`."""
    return not name.startswith(".") and (bool(_NUMBERED.fullmatch(name)) or name.endswith(SUFFIXES))


def split_shards(directory: Path, splits: Sequence[str]) -> list[Path]:
    """The shards of `directory`, sorted, whose names begin with one of `splits` and then `-`, `.` or `_`."""
    begins = re.compile(f"({'|'.join(map(re.escape, splits))})[-._]")
    return sorted(path for path in directory.iterdir() if begins.match(path.name) and is_shard(path.name))


def matching_shards(pattern: str | os.PathLike) -> list[Path]:
    """The files that a pattern of the shell matches, sorted; a folder's name stands for all shards in it."""
    if os.path.isdir(pattern):
        return sorted(path for path in Path(pattern).iterdir() if is_shard(path.name))
    return sorted(Path(name) for name in glob.glob(os.fspath(pattern), recursive=True) if os.path.isfile(name))


def missing_shards(shards: Iterable[Path]) -> list[str]:
    """The names of the shards that others promise: `train-00007-of-01024` says that there are 1024."""
    numbers: dict[tuple[Path, str, str, str], set[int]] = {}
    for path in shards:
        if match := _NUMBERED.fullmatch(path.name):
            key = (path.parent, match["head"], match["count"], match["tail"] or "")
            numbers.setdefault(key, set()).add(int(match["number"]))
    return [
        f"{head}-{number:05d}-of-{count}{tail}"
        for (_, head, count, tail), there in numbers.items()
        for number in range(int(count))
        if number not in there
    ]


def shard_name(split: str, number: int, count: int) -> str:
    """Model Garden's name of shard `number`, counted from 0, of `count`."""
    return f"{split}-{number:05d}-of-{count:05d}"
