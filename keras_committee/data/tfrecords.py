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

from keras_committee.data.dataset import DataConfig, ReadResult
from keras_committee.data.images import EncodedImages
from keras_committee.data.preprocessing import ImageTransform, resolve_transform
from keras_committee.data.record_index import Fields, RecordIndex, load_or_build_index
from keras_committee.data.splits import Split
from keras_committee.errors import DataError, raise_if_problems

SPLIT_NAMES = ("train", "validation", "test")


def imagenet_records(
    directory: str | os.PathLike,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    transform: ImageTransform | None = None,
    labels: str | os.PathLike | None = None,
    first_label: int = 1,
    validation: float = 0.1,
    test: float = 0.2,
    augment=None,
) -> DataConfig:
    """ImageNet, or any classes, in TFRecords of Model Garden's format; `keras-committee make-tfrecords` writes them.

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
        transform: which part of every image is seen and at which size, such as `center_crop(224)`.
        labels: A text file with one class name in each line, in label order; None takes `labels.txt` of the folder if
            there is one, else what the examples call their classes.
        first_label: The label of the first class: 1 as in Model Garden's ImageNet, where 0 is the background.
        validation: Examples held out from training, a count or a fraction, where there is no such split.
        test: The same for the test split.
        augment: Augmentation of the training images, or None.
    """
    reader = ShardFolder(
        directory=Path(directory),
        transform=resolve_transform("imagenet_records", size, transform),
        labels=None if labels is None else Path(labels),
        first_label=first_label,
    )
    name = f"imagenet_records({os.fspath(directory)!r})"
    return DataConfig(
        name=name, batch_size=batch_size, reader=reader, validation=validation, test=test, augment=augment
    )


def tfrecords(
    train: str | os.PathLike,
    batch_size: int,
    *,
    first_label: int,
    size: tuple[int, int] | None = None,
    transform: ImageTransform | None = None,
    image_field: str = Fields.image,
    label_field: str = Fields.label,
    labels: str | os.PathLike | None = None,
    validation: float | str = 0.1,
    test: float | str = 0.2,
    augment=None,
) -> DataConfig:
    """TFRecords of examples with an encoded image and a label, whatever files and fields are called.

    Args:
        train: The training shards: a pattern such as `"data/flowers-train*"`, or a folder.
        batch_size: Examples of one training step over all devices.
        first_label: The label of the first class, mostly 0 or 1.
        size: Height and width, in pixels, that every image is resized to; or
        transform: which part of every image is seen and at which size, such as `center_crop(224)`.
        image_field: Name of the field with the encoded image, a JPEG or PNG.
        label_field: Name of the field with the label, an integer.
        labels: A text file with one class name in each line, in label order, or None.
        validation: A pattern of shards; or what is held out from training, a count or a fraction.
        test: The same for the test split.
        augment: Augmentation of the training images, or None.
    """
    patterns, counts = named_splits_and_counts(validation=validation, test=test)
    reader = ShardPatterns(
        patterns={"train": os.fspath(train), **patterns},
        transform=resolve_transform("tfrecords", size, transform),
        labels=None if labels is None else Path(labels),
        first_label=first_label,
        fields=Fields(image=image_field, label=label_field),
    )
    return DataConfig(
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
        transform: How the images become images of one size.
        labels: File of class names, or None.
        first_label: The label of the first class.
    """

    transform: ImageTransform
    labels: Path | None = None
    first_label: int
    hint: str = "Mend or remove what is named above (or change the recipe's sizes), then run the command again."

    @abc.abstractmethod
    def shards(self) -> dict[str, list[Path]]:
        """The shards of each split there is, of train, validation and test. Raises DataError."""

    def field_names(self) -> Fields:
        return Fields()

    def expected_counts(self) -> dict[str, int]:
        """How many examples a split must have, where that is known."""
        return {}

    def class_names(self) -> Sequence[str] | None:
        """The names, in label order, where they are known without the examples."""
        return None if self.labels is None else _read_class_names(self.labels)

    def find(self) -> ReadResult:
        shards, fields, indices = self.shards(), self.field_names(), {}
        directory = str(next(iter(shards.values()))[0].parent)
        missing = [path.name for paths in shards.values() for path in paths if not path.exists()]
        raise_if_problems(directory, [f"{name}: the shard is missing" for name in missing], self.hint)
        problems = [f"{name}: the shard is missing" for paths in shards.values() for name in missing_shards(paths)]
        for split_name, paths in shards.items():
            indices[split_name], index_problems = load_or_build_index(paths, fields)
            problems += index_problems
        if not problems:
            problems = self._count_problems(indices)
        names = self.class_names() or _class_names_from_examples(list(indices.values()), self.first_label)
        problems = problems or self._label_problems(indices, names)
        raise_if_problems(directory, problems, self.hint)
        splits = {part: self._make_split(index) for part, index in indices.items()}
        if "test" not in splits and "validation" in splits:
            splits["test"] = splits.pop("validation")
        return ReadResult(
            classes=tuple(names), train=splits["train"], validation=splits.get("validation"), test=splits.get("test")
        )

    def _make_split(self, index):
        images = TFRecordImages(index=index, rows=np.arange(len(index.rows)), transform=self.transform)
        return Split(images=images, labels=(index.rows["label"] - self.first_label).astype(np.int32))

    def _count_problems(self, indices):
        return [
            f"{split_name}: {len(indices[split_name].rows)} records, but {count} were written"
            for split_name, count in self.expected_counts().items()
            if split_name in indices and len(indices[split_name].rows) != count
        ]

    def _label_problems(self, indices, names):
        """Labels that are no class, and classes without an example."""
        problems, last_label = [], self.first_label + len(names) - 1
        for split_name, index in indices.items():
            labels = index.rows["label"]
            is_wrong = (labels < self.first_label) | (labels > last_label)
            problems += [
                f"{index.name(row)}: label {labels[row]}, the classes' are {self.first_label}..{last_label} (first_label and "
                "the number of class names say so)"
                for row in np.flatnonzero(is_wrong)
            ]
            missing_labels = np.setdiff1d(np.arange(self.first_label, last_label + 1), labels)
            problems += [
                f"{split_name}: no example has label {label} ({names[label - self.first_label]!r})"
                for label in missing_labels
            ]
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFolder(ShardReader):
    """Shards whose names begin with `train`, `validation` or `val`, and `test`, in one folder."""

    directory: Path

    def shards(self) -> dict[str, list[Path]]:
        if not self.directory.is_dir():
            kind = "is not a folder" if self.directory.exists() else "there is no such folder"
            raise_if_problems(str(self.directory), [kind], "Name the folder that holds the shards.")
        prefixes = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
        found = {split_name: split_shards(self.directory, prefixes[split_name]) for split_name in SPLIT_NAMES}
        if not found["train"]:
            hint = (
                "Name the folder that holds the shards, or write them with keras-committee make-tfrecords SOURCE DEST."
            )
            problem = "there are no training shards, named like train-00000-of-01024 or train.tfrecord"
            raise_if_problems(str(self.directory), [problem], hint)
        return {part: paths for part, paths in found.items() if paths}

    def expected_counts(self) -> dict[str, int]:
        counts = read_records_json(
            self.directory, lambda plan: {part: int(split["examples"]) for part, split in plan["splits"].items()}
        )
        return counts or {}

    def class_names(self) -> Sequence[str] | None:
        beside = self.directory / "labels.txt"
        return _read_class_names(beside) if self.labels is None and beside.is_file() else super().class_names()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPatterns(ShardReader):
    """Shards that patterns match: split -> pattern."""

    patterns: dict[str, str]
    fields: Fields

    def field_names(self) -> Fields:
        return self.fields

    def shards(self) -> dict[str, list[Path]]:
        found = {split_name: matching_shards(pattern) for split_name, pattern in self.patterns.items()}
        problems = [f"{pattern}: no file matches it" for part, pattern in self.patterns.items() if not found[part]]
        raise_if_problems("tfrecords", problems, "Name the shards of each split with a pattern, or their folder.")
        return found


def read_records_json(directory: Path, parse: Callable[[Any], Any]) -> Any:
    """What `parse` finds in the `records.json` of a folder; None where there is none. Raises DataError."""
    try:
        return parse(json.loads((directory / "records.json").read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / 'records.json'} cannot be read: {error}. Restore or remove it.") from error


def named_splits_and_counts(*, validation: float | str, test: float | str) -> tuple[dict[str, str], dict[str, float]]:
    """The splits that are named, and how many examples are held out for the others: 0 for a named one."""
    values = {"validation": validation, "test": test}
    named = {split_name: value for split_name, value in values.items() if isinstance(value, str)}
    return named, {part: 0 if isinstance(value, str) else value for part, value in values.items()}


def _read_class_names(path):
    """The class names in a file."""
    try:
        names = path.read_text(encoding="utf-8").strip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the class names in {path} cannot be read: {error}. Name another file as labels.") from error
    if not all(name.strip() for name in names):
        raise DataError(f"{path} has an empty line, expected a class name in each. Mend it, or name another as labels.")
    return names


def _class_names_from_examples(indices: Sequence[RecordIndex], first_label: int) -> list[str]:
    """What the examples call the classes: their texts, or where two are the same their synsets, or the labels."""
    names_by_label = {label: words for index in indices for label, words in index.class_names.items()}
    labels = range(first_label, max(names_by_label, default=first_label) + 1)
    for text_or_synset in (0, 1):
        names = [names_by_label.get(label, ("", ""))[text_or_synset] for label in labels]
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(label) for label in labels]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TFRecordImages(EncodedImages):
    """Images in TFRecord shards.

    Args:
        index: Where every record of the shards lies.
        rows: Which of them are the examples, and in which order: int64 `(examples,)`.
        transform: How they become images of one size.
        require_exact_size: Whether they must have that size already; they are framed otherwise.
    """

    index: RecordIndex
    rows: np.ndarray
    transform: ImageTransform
    require_exact_size: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: np.ndarray) -> Self:
        return dataclasses.replace(self, rows=self.rows[indices])

    def make_read_fn(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to the encoded images, string `(batch,)`.

        One call of Python for a batch: from the page cache it read 30,000 to 54,000 images a second of 10 kB;
        `FixedLengthRecordDataset`, which stays in C++ but opens a file for each record, read 900 to 1,500, and
        `TFRecordDataset`, in the order of the file, 16,000 to 90,000 (two cores, shared with other work).
        """

        def read(indices):
            contents = tf.numpy_function(self.read_batch, [indices], tf.string, stateful=False)
            return tf.ensure_shape(contents, indices.shape)

        return read

    def read_batch(self, indices: np.ndarray) -> np.ndarray:
        """The encoded images at `indices`, bytes `(batch,)` of dtype object.

        Raises:
            DataError: If a shard is gone, or is not the one that was indexed.
        """
        rows = self.rows[indices]
        locations = self.index.rows[rows]
        shards = [self._open_shard(number) for number in self.index.shard_numbers(rows)]
        reads = list(zip(shards, locations["offset"].tolist(), locations["length"].tolist(), strict=True))
        for shard, offset, length in reads:  # the kernel fetches all of them while the first is waited for
            os.posix_fadvise(shard.descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        contents = np.empty(len(reads), object)
        contents[:] = [os.pread(shard.descriptor, length, offset) for shard, offset, length in reads]
        return contents

    def name(self, index: int) -> str:
        return self.index.name(int(self.rows[index]))

    def read(self, index: int) -> bytes:
        return self.read_batch(np.array([index]))[0]

    def head_and_tail(self, index: int) -> tuple[bytes, bytes]:
        location = self.index.rows[self.rows[index]]
        offset, length = int(location["offset"]), int(location["length"])
        shard = self._open_shard(
            self.index.shard_numbers(self.rows[[index]])[0]
        )  # held: two threads may each open their own
        size = min(16, length)
        return os.pread(shard.descriptor, size, offset), os.pread(shard.descriptor, size, offset + length - size)

    def source_id(self) -> bytes:
        """SHA-256 of each record's checksum and length, in order: it changes with any byte, and not with the shards.

        Nothing is read for it.
        """
        rows = self.index.rows[self.rows]
        return hashlib.sha256(rows["checksum"].tobytes() + rows["length"].tobytes()).digest()

    def _open_shard(self, number):
        return _shard_cache()(self.index.shards[number], self.index.sizes_and_mtimes[number])


class _OpenShard:
    """An open shard. It is closed when nobody holds it: it may fall out of the cache while a thread reads it.

    Nor does the cache hold both where two threads open the same one at once.
    """

    descriptor = -1

    def __init__(self, path: Path, size_and_mtime: tuple[int, int]):
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}. Put it back and run the same command."
            ) from error
        stat = os.fstat(self.descriptor)
        if (stat.st_size, stat.st_mtime_ns) != size_and_mtime:
            raise DataError(f"{path} has changed since it was indexed. Run the same command again.")

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.cache
def _shard_cache():
    """`_OpenShard` by path and stamp; at most a quarter of the files that this process may open stay open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return functools.lru_cache(max(8, limit // 4) if limit != resource.RLIM_INFINITY else 4096)(_OpenShard)


# train-00000-of-01024 (Model Garden), name-train.tfrecord-00000-of-00008 (TFDS), train-00000-of-00008.tfrecord
_NUMBERED_SHARD = re.compile(r"(?P<head>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<tail>\.tfrecords?)?")
TFRECORD_SUFFIXES = (".tfrecord", ".tfrecords")


def is_shard(name: str) -> bool:
    """Whether a file of this name is one: it ends in `-00000-of-01024`, `.tfrecord` or `.tfrecords`."""
    return not name.startswith(".") and (bool(_NUMBERED_SHARD.fullmatch(name)) or name.endswith(TFRECORD_SUFFIXES))


def split_shards(directory: Path, splits: Sequence[str]) -> list[Path]:
    """The shards of `directory`, sorted, whose names begin with one of `splits` and then `-`, `.` or `_`."""
    name_pattern = re.compile(f"({'|'.join(map(re.escape, splits))})[-._]")
    return sorted(path for path in directory.iterdir() if name_pattern.match(path.name) and is_shard(path.name))


def matching_shards(pattern: str | os.PathLike) -> list[Path]:
    """The files that a pattern of the shell matches, sorted; a folder's name stands for all shards in it."""
    if os.path.isdir(pattern):
        return sorted(path for path in Path(pattern).iterdir() if is_shard(path.name))
    return sorted(Path(name) for name in glob.glob(os.fspath(pattern), recursive=True) if os.path.isfile(name))


def missing_shards(shards: Iterable[Path]) -> list[str]:
    """The names of the shards that others promise: `train-00007-of-01024` says that there are 1024."""
    numbers_by_group: dict[tuple[Path, str, str, str], set[int]] = {}
    for path in shards:
        if match := _NUMBERED_SHARD.fullmatch(path.name):
            key = (path.parent, match["head"], match["count"], match["tail"] or "")
            numbers_by_group.setdefault(key, set()).add(int(match["number"]))
    return [
        f"{head}-{number:05d}-of-{count}{tail}"
        for (_, head, count, tail), present in numbers_by_group.items()
        for number in range(int(count))
        if number not in present
    ]


def shard_name(split: str, number: int, count: int) -> str:
    """Model Garden's name of shard `number`, counted from 0, of `count`."""
    return f"{split}-{number:05d}-of-{count:05d}"
