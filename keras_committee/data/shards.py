"""Which files make up one split of a sharded data set, and are they all there?"""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

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
