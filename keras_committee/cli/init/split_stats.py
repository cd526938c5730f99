"""Statistics of the images in TFRecord files, Hugging Face data sets and arrays.

Every TFRecord file is read once, with its checksums verified. Training reuses the index that this writes.
"""

import dataclasses
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.class_folders import class_count_problems
from keras_committee.cli.init.image_stats import ImageStats, shorter_sides, subsample
from keras_committee.data.arrays import ArrayFile
from keras_committee.data.dataset import ReadResult
from keras_committee.data.huggingface import SavedDataset
from keras_committee.data.images import EncodedImages
from keras_committee.data.preprocessing import resize
from keras_committee.data.record_index import Fields, load_or_build_index
from keras_committee.data.tfrecords import ShardFolder, read_records_json
from keras_committee.errors import raise_if_problems

_HINT = "Fix or remove what is named above, then run the command again."


def collect_tfrecord_stats(directory: Path) -> ImageStats:
    """Read the TFRecord files that `data.imagenet_records` reads.

    Raises:
        DataError: If files are invalid or images unreadable. Lists every problem, as training does.
    """
    first_label = _first_label(directory)
    found = ShardFolder(directory=directory, transform=resize(1), first_label=first_label).find()
    stats = _stats_of_splits(found, f"imagenet_records({str(directory)!r})", "tfrecords")
    return dataclasses.replace(stats, first_label=first_label)


def collect_hf_stats(path: Path) -> ImageStats:
    """Read the Hugging Face data set that `data.hf` reads. Raises as `collect_tfrecord_stats`."""
    found = SavedDataset(path=path, transform=resize(1)).find()
    return _stats_of_splits(found, f"hf({str(path)!r})", "hf")


def collect_array_stats(path: Path) -> ImageStats:
    """Read the `.npz` file that `data.npz` reads. Raises as `collect_tfrecord_stats`."""
    found = ArrayFile(path=path, size=None, classes=None).find()
    raise_if_problems(f"npz({str(path)!r})", found.problems, _HINT)
    return _stats_of_splits(found, f"npz({str(path)!r})", "arrays")


def _stats_of_splits(found: ReadResult, name: str, source: str) -> ImageStats:
    splits = {"train": found.train, "validation": found.validation, "test": found.test}
    available = {name: split for name, split in splits.items() if split is not None}
    sides, unreadable = _sample_sides(available)
    problems = [*class_count_problems(found.classes), *unreadable]
    raise_if_problems(name, problems, _HINT)
    return ImageStats(
        class_counts=_class_counts(found.classes, list(available.values())),
        training_counts=_class_counts(found.classes, [found.train]),
        held_out=tuple(name for name in ("validation", "test") if name in available),
        median_side=round(statistics.median(sides)),
        source=source,
        notes=found.notes,
    )


def _first_label(directory: Path) -> int:
    """Return the first label of `records.json`; without it, 0 if an example has label 0, else 1 as in Model Garden."""
    shards = ShardFolder(directory=directory, transform=resize(1), first_label=1).shards()
    first_label = read_records_json(directory, lambda plan: int(plan["first_label"]))
    if first_label is None:
        index, _ = load_or_build_index([path for path in shards["train"] if path.exists()], Fields())
        return 0 if 0 in index.rows["label"] else 1
    return first_label


def _sample_sides(splits: Mapping[str, Any]) -> tuple[list[int], list[str]]:
    sides, problems = [], []
    for split in splits.values():
        if not isinstance(split.images, EncodedImages):
            sides.append(min(split.image_shape[:2]))
            continue
        files = {name: io.BytesIO(content) for name, content in _sample_contents(split)}
        split_sides, split_problems = shorter_sides(files)
        sides, problems = sides + split_sides, problems + split_problems
    return sides, problems


def _sample_contents(split: Any) -> Iterator[tuple[str, bytes]]:
    """Yield the names and encoded images of examples that are evenly spread over the split."""
    for row in subsample(range(len(split))):
        yield split.images.name(row), split.images.read(row)


def _class_counts(classes: Sequence[str], splits: Sequence[Any]) -> dict[str, int]:
    counts = np.bincount(np.concatenate([split.labels for split in splits]), minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
