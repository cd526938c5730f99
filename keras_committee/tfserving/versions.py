"""Version folders and names, as TensorFlow Serving reads them.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
"""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from keras_committee.errors import RecipeError

MAX_VERSION = 2**63 - 1  # versions are int64
MANIFEST_FILE = "committee.json"  # of an export, inside a version folder
NAME_RULE = "1 to 128 of A-Z a-z 0-9 _ . -, and no leading dot"

_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,128}")
_VERSION = re.compile(r"[0-9]+")


def is_valid_name(name: str) -> bool:
    """Whether requests can name a model or a version label `name`; see `NAME_RULE`."""
    return bool(_NAME.fullmatch(name))


def parse_version(name: str) -> int | None:
    """Return the version that a folder called `name` holds: "7" and "007" are 7. None if it is no decimal int64."""
    version = int(name) if _VERSION.fullmatch(name) else MAX_VERSION + 1
    return version if version <= MAX_VERSION else None


def find_versions(model_dir: Path) -> dict[int, Path]:
    """Return the version folders in `model_dir` by version, ascending.

    Symbolic links count, and the content is not read. Of two folders with the same version, such as `7` and
    `007`, the last name in sorted order counts.

    Raises:
        OSError: If the folder cannot be read.
    """
    return dict(sorted(_version_folders(model_dir)))


def list_versions(model_dir: str | Path) -> list[int]:
    """Return the versions in `model_dir`, ascending.

    Raises:
        RecipeError: If the folder cannot be read, or two folders have the same version.
    """
    try:
        versions = sorted(version for version, _ in _version_folders(Path(model_dir)))
    except OSError as error:
        raise RecipeError(
            f"{model_dir} is not a model folder: {error.strerror}. Create one with `keras-committee export RUN`."
        ) from error
    if duplicates := sorted({version for version in versions if versions.count(version) > 1}):
        raise RecipeError(
            f"{model_dir} has two folders of version {duplicates[0]}, such as 7 and 007; a server loads only one."
        )
    return versions


class FolderState(NamedTuple):
    """What changes while files are copied into a folder.

    Attributes:
        num_entries: Number of files and folders in it.
        num_bytes: Their sizes.
        changed_at: Last change of any of them, in seconds since 1970.
    """

    num_entries: int
    num_bytes: int
    changed_at: float


def folder_state(folder: Path) -> FolderState:
    """Return the state of the files in `folder`. Symbolic links are followed; entries that cannot be read count as 0.

    The time is that of the last change of an inode, which a copy cannot set.
    """
    pending, seen, num_bytes, changed_at = [os.fspath(folder)], set(), 0, 0.0
    while pending:
        path = pending.pop()
        try:
            info = os.stat(path)
            if (info.st_dev, info.st_ino) in seen:
                continue
            pending += [entry.path for entry in os.scandir(path)] if stat.S_ISDIR(info.st_mode) else []
        except OSError:
            continue  # a broken link, or a file that was renamed meanwhile
        seen.add((info.st_dev, info.st_ino))
        num_bytes, changed_at = num_bytes + info.st_size, max(changed_at, info.st_ctime)
    return FolderState(len(seen), num_bytes, changed_at)


def _version_folders(model_dir: Path) -> list[tuple[int, Path]]:
    folders = [path for path in model_dir.iterdir() if path.is_dir() or path.is_symlink()]
    versions = [(parse_version(path.name), path) for path in folders]
    return [(version, path) for version, path in versions if version is not None]
