"""How does a new version appear in a model's folder: whole or not at all, under a number that no other ever had?

TF Serving looks at the names in the folder only and never waits for a version to become complete. So a version is
written beside the others under a name that is no number, and gets its number by one rename.
"""

import contextlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from keras_committee.errors import ExportError, InUseError, RecipeError
from keras_committee.files import file_lock, fsync_dir, translate_os_errors, write_json

_HIGHEST_VERSION_FILE = (
    ".highest_version.json"  # stays when versions are deleted: a number once served is never another model
)
_STAGING_PREFIX = ".staging-"
_LOCK_TIMEOUT = 60.0  # seconds, for another export to choose its number
_MAX_VERSION = 2**63 - 1  # TF Serving reads versions as int64


def check_name(model_dir: Path) -> None:
    """Raises RecipeError unless TF Serving and its clients can name the model like its folder."""
    if not re.fullmatch(r"(?!\.)[A-Za-z0-9_.-]{1,128}", model_dir.name):
        raise RecipeError(
            f"{model_dir.name!r} cannot be the name of a model: up to 128 letters, digits, _, -, and . but not first."
            f"\n  Name a folder, such as --out {model_dir.parent / 'committee'}."
        )


@contextlib.contextmanager
def staging(model_dir: Path) -> Iterator[Path]:
    """A new folder inside `model_dir` that no server looks at; `publish` takes `version` in it. It is removed at the end.

    What dead processes left of theirs is removed first.

    Raises:
        ResourceError: If it cannot be written.
        InUseError: If another process does not let go of the folder for a minute.
    """
    folder = model_dir / f"{_STAGING_PREFIX}{uuid.uuid4().hex}"
    with contextlib.ExitStack() as locks:
        with _version_lock(model_dir):
            _remove_stale(model_dir)
            with translate_os_errors(folder):
                folder.mkdir(parents=True)
            locks.enter_context(file_lock(folder / "lock", f"{folder}"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(model_dir: Path, version_dir: Path) -> Path:
    """Gives the whole folder `version_dir`, inside a `staging` folder of `model_dir`, the next number.

    The number is above every one that there is or was. Returns the new path.

    Raises:
        ResourceError: If it cannot be written.
        ExportError: If the record of the numbers is damaged, or there is no higher number.
        InUseError: If another process does not let go of the folder for a minute.
    """
    with translate_os_errors(version_dir):
        _chmod_readable(version_dir)
        _fsync_tree(version_dir)
    with _version_lock(model_dir):
        number = 1 + max([_highest_recorded_version(model_dir), *taken_versions(model_dir)])
        if number > _MAX_VERSION:
            raise ExportError(
                f"{model_dir} has version {number - 1}: TF Serving knows no higher one. Name another folder."
            )
        target = model_dir / str(number)
        write_json(model_dir / _HIGHEST_VERSION_FILE, {"highest": number})
        with translate_os_errors(target):
            os.rename(version_dir, target)
            fsync_dir(model_dir)
    return target


def taken_versions(model_dir: Path) -> list[int]:
    """The numbers that are taken, as TF Serving reads them, ascending; "007" is 7."""
    names = [path.name for path in model_dir.iterdir()] if model_dir.is_dir() else []
    numbers = [int(name) for name in names if name.isascii() and name.isdecimal()]
    return sorted(number for number in numbers if number <= _MAX_VERSION)


def _version_lock(model_dir):
    return file_lock(model_dir / ".publishing.lock", f"model folder {model_dir}", timeout=_LOCK_TIMEOUT)


def _remove_stale(model_dir):
    for folder in model_dir.glob(f"{_STAGING_PREFIX}*"):
        with contextlib.suppress(InUseError), file_lock(folder / "lock", f"{folder}"):
            shutil.rmtree(folder, ignore_errors=True)


def _highest_recorded_version(model_dir):
    path = model_dir / _HIGHEST_VERSION_FILE
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_bytes())["highest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path} is damaged: {error}. It keeps the highest version ever published here. Nothing was published.\n"
            '  Write it anew: {"highest": N}.'
        ) from error


def _chmod_readable(folder):
    """As `chmod a+rX`: the server is another user."""
    for path in [folder, *folder.rglob("*")]:
        read_bits = 0o555 if path.is_dir() else 0o444
        path.chmod(stat.S_IMODE(path.stat().st_mode) | read_bits)


def _fsync_tree(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            fsync_dir(path)
