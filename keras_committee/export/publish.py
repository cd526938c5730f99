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
from keras_committee.files import flush_folder, owned, write_json, writing

_RECORD = ".highest_version.json"  # stays when versions are deleted: a number once served is never another model
_STAGING = ".staging-"
_PATIENCE = 60.0  # seconds, for another export to choose its number
_LARGEST = 2**63 - 1  # TF Serving reads versions as int64


def check_name(base: Path) -> None:
    """Raises RecipeError unless TF Serving and its clients can name the model like its folder."""
    if not re.fullmatch(r"(?!\.)[A-Za-z0-9_.-]{1,128}", base.name):
        raise RecipeError(
            f"{base.name!r} cannot be the name of a model: up to 128 letters, digits, _, -, and . but not first."
            f"\n  Name a folder, such as --to {base.parent / 'committee'}."
        )


@contextlib.contextmanager
def staging(base: Path) -> Iterator[Path]:
    """A new folder inside `base` that no server looks at; `publish` takes `version` in it. It is removed at the end.

    What dead processes left of theirs is removed first.

    Raises:
        ResourceError: If it cannot be written.
        InUseError: If another process does not let go of the folder for a minute.
    """
    folder = base / f"{_STAGING}{uuid.uuid4().hex}"
    with contextlib.ExitStack() as held:
        with _choosing(base):
            _remove_stale(base)
            with writing(folder):
                folder.mkdir(parents=True)
            held.enter_context(owned(folder / "lock", f"{folder}"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(base: Path, version: Path) -> Path:
    """Gives the whole folder `version`, inside a `staging` folder of `base`, the next number.

    The number is above every one that there is or was. Returns the new path.

    Raises:
        ResourceError: If it cannot be written.
        ExportError: If the record of the numbers is damaged, or there is no higher number.
        InUseError: If another process does not let go of the folder for a minute.
    """
    with writing(version):
        _open_to_readers(version)
        _flush(version)
    with _choosing(base):
        number = 1 + max([_recorded(base), *versions(base)])
        if number > _LARGEST:
            raise ExportError(f"{base} has version {number - 1}: TF Serving knows no higher one. Name another folder.")
        target = base / str(number)
        write_json(base / _RECORD, {"highest": number})
        with writing(target):
            os.rename(version, target)
            flush_folder(base)
    return target


def versions(base: Path) -> list[int]:
    """The numbers that are taken, as TF Serving reads them, ascending; "007" is 7."""
    names = [path.name for path in base.iterdir()] if base.is_dir() else []
    numbers = [int(name) for name in names if name.isascii() and name.isdecimal()]
    return sorted(number for number in numbers if number <= _LARGEST)


def _choosing(base):
    return owned(base / ".publishing.lock", f"model folder {base}", patience=_PATIENCE)


def _remove_stale(base):
    for folder in base.glob(f"{_STAGING}*"):
        with contextlib.suppress(InUseError), owned(folder / "lock", f"{folder}"):
            shutil.rmtree(folder, ignore_errors=True)


def _recorded(base):
    path = base / _RECORD
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_bytes())["highest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path} is damaged: {error}. It keeps the highest version ever published here. Nothing was published.\n"
            '  Write it anew: {"highest": N}.'
        ) from error


def _open_to_readers(folder):
    """As `chmod a+rX`: the server is another user."""
    for path in [folder, *folder.rglob("*")]:
        readable = 0o555 if path.is_dir() else 0o444
        path.chmod(stat.S_IMODE(path.stat().st_mode) | readable)


def _flush(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            flush_folder(path)
