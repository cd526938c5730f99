"""Files of TFRecord shards: their names, and which split they belong to."""

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from keras_committee.class_folders import SPLIT_SPELLINGS, assign_splits, split_named
from keras_committee.errors import raise_if_problems

# train-00000-of-01024 (Model Garden), name-train.tfrecord-00000-of-00008 (TFDS), train-00000-of-00008.tfrecord
_NUMBERED_SHARD = re.compile(r"(?P<head>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<tail>\.tfrecords?)?")
_TFRECORD_SUFFIXES = (".tfrecord", ".tfrecords")


def split_shards(directory: Path) -> dict[str, list[Path]]:
    """Return the shards of each split in a folder, where their names start with that of their split.

    Raises:
        DataError: If there is no such folder, it has no training shards, or a shard belongs to no split.
    """
    if not directory.is_dir():
        problem = "is not a folder" if directory.exists() else "there is no such folder"
        raise_if_problems(str(directory), [problem], "Name the folder that contains the shards.")
    by_prefix = shards_by_prefix(directory)
    by_split = {split_named(prefix): paths for prefix, paths in by_prefix.items()}
    if "train" not in by_split:
        problem = "there are no training shards, named like train-00000-of-01024 or train.tfrecord"
        hint = "Name the folder of the shards. Create them with `keras-committee make-tfrecords SOURCE DEST`."
        raise_if_problems(str(directory), [problem], hint)
    problems = assign_splits(filter(split_named, by_prefix))[1]
    problems += [
        f"{paths[0].name}: named like none of the splits"
        for prefix, paths in by_prefix.items()
        if not split_named(prefix)
    ]
    hint = "Move other shards away, or name the shards of each split with the patterns of data.tfrecords."
    raise_if_problems(str(directory), problems, hint)
    return {split_name: by_split[split_name] for split_name in SPLIT_SPELLINGS if split_name in by_split}


def is_shard(name: str) -> bool:
    """Return whether a file name ends in `-00000-of-01024`, `.tfrecord` or `.tfrecords`, and is not hidden."""
    return not name.startswith(".") and (bool(_NUMBERED_SHARD.fullmatch(name)) or name.endswith(_TFRECORD_SUFFIXES))


def shards_by_prefix(directory: Path) -> dict[str, list[Path]]:
    """Return the shards of `directory`, sorted, by the part of their names before the first `-`, `.` or `_`."""
    shards: dict[str, list[Path]] = {}
    for path in sorted(path for path in directory.iterdir() if is_shard(path.name)):
        shards.setdefault(re.split("[-._]", path.name, maxsplit=1)[0], []).append(path)
    return shards


def matching_shards(pattern: str | os.PathLike) -> list[Path]:
    """Return the files that match a shell pattern, sorted; for a folder, all shards in it."""
    if os.path.isdir(pattern):
        return sorted(path for path in Path(pattern).iterdir() if is_shard(path.name))
    return sorted(Path(name) for name in glob.glob(os.fspath(pattern), recursive=True) if os.path.isfile(name))


def missing_shards(shards: Iterable[Path]) -> list[str]:
    """Return the names of missing shards: `train-00007-of-01024` implies that there are 1024."""
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
    """Return Model Garden's name of shard `number`, counted from 0, of `count`."""
    return f"{split}-{number:05d}-of-{count:05d}"
