"""Images in TFRecord shards."""

import abc
import dataclasses
import functools
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.class_folders import assign_splits
from keras_committee.data.augment import Augmentation
from keras_committee.data.dataset import DataConfig, ReadResult
from keras_committee.data.images import BatchedImages, user_cache_paths
from keras_committee.data.preprocessing import ImageTransform, resolve_transform
from keras_committee.data.record_index import Fields, RecordIndex, load_or_build_index
from keras_committee.data.splits import Split
from keras_committee.errors import DataError, raise_if_problems
from keras_committee.files import expand_home
from keras_committee.shard_files import matching_shards, missing_shards, split_shards


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
    augment: Augmentation | None = None,
    skip_bad: int = 0,
) -> DataConfig:
    """ImageNet, or any classes, in TFRecords of Model Garden's format, as `keras-committee make-tfrecords` writes them.

    The shards of a split are the files of `directory` named like `train-00000-of-01024` or `train.tfrecord`. Next to
    `train` there may be `validation` and `test`, in any spelling that `image_folder` recognizes; `validation` without
    `test` is the test split, and other shards are an error: use `tfrecords` to name each split. An example contains
    `image/encoded`, a JPEG or PNG, and `image/class/label`, optionally also `image/class/text` and
    `image/class/synset`.

    The first time, every shard is read once: each checksum is verified, and an index of the records is stored next to
    the shards, or in `~/.cache/keras-committee`. The index gives random access, so that the order of training is a
    function of seed and step alone, as with files, on one host or several.

    Args:
        directory: The folder.
        batch_size: Examples per training step, over all devices.
        size: Height and width, in pixels, to resize every image to; or
        transform: Image transform, such as `center_crop(224)`.
        labels: Text file with one class name per line, in label order. None uses `labels.txt` of the folder if it
            exists, else the names in the examples.
        first_label: Label of the first class: 1 as in Model Garden's ImageNet, where 0 is the background.
        validation: Examples held out for validation if there is no such split, a count or a fraction.
        test: Examples held out for test if there is no such split, a count or a fraction.
        augment: Augmentation of the training images, or None.
        skip_bad: Largest number of unreadable images to skip with a warning; with more, all are listed in an error.
    """
    reader = ShardFolder(
        directory=expand_home(directory),
        transform=resolve_transform("imagenet_records", size, transform),
        labels=None if labels is None else Path(labels),
        first_label=first_label,
    )
    return DataConfig(
        name=f"imagenet_records({os.fspath(directory)!r})",
        batch_size=batch_size,
        reader=reader,
        validation=validation,
        test=test,
        augment=augment,
        skip_bad=skip_bad,
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
    augment: Augmentation | None = None,
    skip_bad: int = 0,
) -> DataConfig:
    """TFRecords of examples with an encoded image and a label, with any names of files and fields.

    Args:
        train: The training shards: a pattern such as `"data/flowers-train*"`, or a folder.
        batch_size: Examples per training step, over all devices.
        first_label: Label of the first class, usually 0 or 1.
        size: Height and width, in pixels, to resize every image to; or
        transform: Image transform, such as `center_crop(224)`.
        image_field: Name of the field with the encoded image, a JPEG or PNG.
        label_field: Name of the field with the label, an integer.
        labels: Text file with one class name per line, in label order, or None.
        validation: A pattern of shards; or examples held out from training, a count or a fraction.
        test: A pattern of shards; or examples held out from training, a count or a fraction.
        augment: Augmentation of the training images, or None.
        skip_bad: Largest number of unreadable images to skip with a warning; with more, all are listed in an error.
    """
    patterns, counts = named_splits_and_counts(validation=validation, test=test)
    reader = ShardPatterns(
        patterns={name: expand_home(pattern) for name, pattern in {"train": train, **patterns}.items()},
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
        skip_bad=skip_bad,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardReader(abc.ABC):
    """Reader of splits in TFRecord shards. A subclass finds the files.

    Args:
        transform: The transform from a record's image to one of the split's.
        labels: File of class names, or None.
        first_label: Label of the first class.
    """

    transform: ImageTransform
    labels: Path | None = None
    first_label: int
    hint: str = (
        "Fix or remove what is listed above (or change the sizes in the recipe; skip_bad=N skips up to N unreadable "
        "images), then run the command again."
    )

    @abc.abstractmethod
    def shards(self) -> dict[str, list[Path]]:
        """Return the shards of each existing split: train, validation and test. Raises DataError."""

    def roles(self, split_names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Return which of the existing splits serves as each split, and one sentence per decision."""
        return {name: name for name in split_names}, []

    def field_names(self) -> Fields:
        """Return the names of the fields of an example."""
        return Fields()

    def expected_counts(self) -> dict[str, int]:
        """Return the number of examples of each split for which it is known."""
        return {}

    def class_names(self) -> Sequence[str] | None:
        """Return the class names in label order, or None if only the examples contain them."""
        return None if self.labels is None else _read_class_names(self.labels)

    def find(self) -> ReadResult:
        shards, fields, indices = self.shards(), self.field_names(), {}
        directory = str(next(iter(shards.values()))[0].parent)
        absent = [path.name for paths in shards.values() for path in paths if not path.exists()]
        raise_if_problems(directory, [f"{name}: the shard is missing" for name in absent], self.hint)
        problems = [f"{name}: the shard is missing" for paths in shards.values() for name in missing_shards(paths)]
        for split_name, paths in shards.items():
            indices[split_name], index_problems = load_or_build_index(paths, fields)
            problems += index_problems
        if not problems:
            problems = self._count_problems(indices)
        names = self.class_names() or _class_names_from_examples(list(indices.values()), self.first_label)
        problems = problems or self._label_problems(indices, names)
        raise_if_problems(directory, problems, self.hint)
        roles, notes = self.roles(indices)
        splits = {role: self._make_split(indices[split_name]) for role, split_name in roles.items()}
        return ReadResult(
            classes=tuple(names),
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits.get("test"),
            notes=notes,
        )

    def _make_split(self, index):
        images = TFRecordImages(index=index, rows=np.arange(len(index.rows)), transform=self.transform)
        return Split(images=images, labels=(index.rows["label"] - self.first_label).astype(np.int32))

    def _count_problems(self, indices):
        return [
            f"{split_name}: {len(indices[split_name].rows)} records, expected {count}"
            for split_name, count in self.expected_counts().items()
            if split_name in indices and len(indices[split_name].rows) != count
        ]

    def _label_problems(self, indices, names):
        """Find labels out of range, and classes without an example."""
        problems, last_label = [], self.first_label + len(names) - 1
        for split_name, index in indices.items():
            labels = index.rows["label"]
            problems += [
                f"{index.name(row)}: label {labels[row]} is out of range {self.first_label}..{last_label} "
                "(from first_label and the number of class names)"
                for row in np.flatnonzero((labels < self.first_label) | (labels > last_label))
            ]
            problems += [
                f"{split_name}: no example has label {label} ({names[label - self.first_label]!r})"
                for label in np.setdiff1d(np.arange(self.first_label, last_label + 1), labels)
            ]
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFolder(ShardReader):
    """Reader of one folder, where the names of the shards start with that of their split.

    Args:
        directory: The folder.
    """

    directory: Path

    def shards(self) -> dict[str, list[Path]]:
        return split_shards(self.directory)

    def roles(self, split_names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        roles, _, notes = assign_splits(split_names)
        return roles, [f"{note}; to choose, use data.tfrecords" for note in notes]

    def expected_counts(self) -> dict[str, int]:
        counts = read_records_json(
            self.directory, lambda plan: {name: int(split["examples"]) for name, split in plan["splits"].items()}
        )
        return counts or {}

    def class_names(self) -> Sequence[str] | None:
        default = self.directory / "labels.txt"
        return _read_class_names(default) if self.labels is None and default.is_file() else super().class_names()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPatterns(ShardReader):
    """Reader of the shards that match patterns.

    Args:
        patterns: Pattern of each split, as of a shell.
        fields: Names of the fields of an example.
    """

    patterns: dict[str, Path]
    fields: Fields

    def field_names(self) -> Fields:
        return self.fields

    def shards(self) -> dict[str, list[Path]]:
        found = {split_name: matching_shards(pattern) for split_name, pattern in self.patterns.items()}
        problems = [f"{self.patterns[name]}: no file matches the pattern" for name, paths in found.items() if not paths]
        raise_if_problems("tfrecords", problems, "Name the shards of each split with a pattern, or their folder.")
        return found


def read_records_json(directory: Path, parse: Callable[[Any], Any]) -> Any:
    """Return `parse` of the content of `records.json` in a folder; None if there is no such file. Raises DataError."""
    try:
        return parse(json.loads((directory / "records.json").read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / 'records.json'} cannot be read: {error}. Restore or remove it.") from error


def named_splits_and_counts(*, validation: float | str, test: float | str) -> tuple[dict[str, str], dict[str, float]]:
    """Separate splits given by name from those to hold out; a named split has the count 0."""
    values = {"validation": validation, "test": test}
    named = {split_name: value for split_name, value in values.items() if isinstance(value, str)}
    return named, {split_name: 0 if isinstance(value, str) else value for split_name, value in values.items()}


def _read_class_names(path):
    try:
        names = path.read_text(encoding="utf-8-sig").strip("\n").split("\n")  # Windows writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the class names in {path} cannot be read: {error}. Name another file as labels.") from error
    if not all(name.strip() for name in names):
        raise DataError(
            f"{path} has an empty line; every line must be a class name. Fix it, or name another file as labels."
        )
    return names


def _class_names_from_examples(indices: Sequence[RecordIndex], first_label: int) -> list[str]:
    """Return the texts of the classes, or their synsets if two texts are equal, or their labels."""
    names_by_label = {label: class_name for index in indices for label, class_name in index.class_names.items()}
    labels = range(first_label, max(names_by_label, default=first_label) + 1)
    for text_or_synset in (0, 1):
        names = [names_by_label.get(label, ("", ""))[text_or_synset] for label in labels]
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(label) for label in labels]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TFRecordImages(BatchedImages):
    """Encoded images in TFRecord shards.

    Args:
        index: Index of all records of the shards.
        rows: Rows of the index, in the order of the examples: int64 `(examples,)`.
        transform: The transform from a record's image to one of the split's.
        require_exact_size: Whether the images must have the size of the transform; otherwise they are transformed.
    """

    index: RecordIndex
    rows: np.ndarray
    transform: ImageTransform
    require_exact_size: bool = False

    def read_batch(self, indices: np.ndarray) -> np.ndarray:
        """Read the encoded images at `indices`: bytes `(batch,)` of dtype object.

        Raises:
            DataError: If a shard is missing or has changed since it was indexed.
        """
        rows = self.rows[indices]
        locations = self.index.rows[rows]
        shards = [self._open_shard(number) for number in self.index.shard_numbers(rows)]
        reads = list(zip(shards, locations["offset"].tolist(), locations["length"].tolist(), strict=True))
        for shard, offset, length in reads:  # the kernel fetches all of them while the first is read
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
        # This reference keeps the shard open: the cache may drop it when another thread opens one.
        shard = self._open_shard(self.index.shard_numbers(self.rows[[index]])[0])
        size = min(16, length)
        return os.pread(shard.descriptor, size, offset), os.pread(shard.descriptor, size, offset + length - size)

    def source_id(self) -> bytes:
        """Return the SHA-256 of the checksum and length of each record, in order, without reading the shards.

        It changes with any byte of a record, and does not depend on how the records are divided into shards.
        """
        rows = self.index.rows[self.rows]
        return hashlib.sha256(rows["checksum"].tobytes() + rows["length"].tobytes()).digest()

    def content_keys(self) -> np.ndarray:
        rows = self.index.rows[self.rows]
        return rows["checksum"].astype(np.uint64) << np.uint64(32) | rows["length"].astype(np.uint64)

    def cache_paths(self) -> list[Path]:
        folder = self.index.shards[0].parent
        return [folder / ".decoded.npy", *user_cache_paths(folder, "decoded.npy")]

    def _open_shard(self, number):
        return _shard_cache()(self.index.shards[number], self.index.sizes_and_mtimes[number])


class _OpenShard:
    """An open shard, closed when the last reference is dropped.

    The cache may drop it while a thread reads it, and keeps only one of two that threads open at once.
    """

    descriptor = -1

    def __init__(self, path: Path, size_and_mtime: tuple[int, int]):
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. Restore it and run the same command.") from error
        stat = os.fstat(self.descriptor)
        if (stat.st_size, stat.st_mtime_ns) != size_and_mtime:
            raise DataError(f"{path} has changed since it was indexed. Run the same command again.")

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.cache
def _shard_cache():
    """Cache of `_OpenShard`; keeps at most a quarter of the files open that this process may open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return functools.lru_cache(max(8, limit // 4) if limit != resource.RLIM_INFINITY else 4096)(_OpenShard)
