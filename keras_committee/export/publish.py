"""Atomic publication of versions in a model folder.

TF Serving reads only the names in the folder, and loads a version as soon as it appears. So a version is written
beside the others in a folder whose name is not a number, and gets its number by one rename.
"""

import contextlib
import errno
import importlib.util
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from keras_committee.errors import ExportError, InUseError, RecipeError
from keras_committee.export import formats
from keras_committee.files import file_lock, fsync_dir, read_record, translate_os_errors, write_record
from keras_committee.tfserving.versions import MAX_VERSION, NAME_RULE, is_valid_name, parse_version

# Kept when versions are deleted, so that a number never names two models: clients may have cached results.
_HIGHEST_VERSION_FILE = ".highest_version.json"
_STAGING_PREFIX = ".staging-"
_LOCK_TIMEOUT = 60.0  # seconds, for another export to get its number


def default_model_dir(run: Path, model_format: str = formats.SAVED_MODEL, member: int | None = None) -> Path:
    """Return the model folder of a run, `saved_models/NAME`, or in another format such as `onnx_models/NAME`.

    A `member` alone has a folder of its own, as a server would answer with it in place of the committee.
    """
    home = "saved_models" if model_format == formats.SAVED_MODEL else f"{model_format}_models"
    return Path(home) / (run.resolve().name + ("" if member is None else f"_member_{member}"))


def check_name(model_dir: Path) -> None:
    """Raise RecipeError unless the name of the folder can be the name of a model."""
    if not is_valid_name(model_dir.name):
        raise RecipeError(
            f"{model_dir.name!r} cannot be the name of a model, which must be {NAME_RULE}."
            f"\n  Choose another folder, such as --out {model_dir.parent / 'committee'}."
        )


def check_target(
    model_dir: Path,
    model_format: str = formats.SAVED_MODEL,
    precision: str = "float32",
    input_dtype: str = "float32",
) -> None:
    """Raise if a model cannot be exported to this folder, before it is loaded.

    Args:
        model_dir: The folder.
        model_format: One of `formats.FORMATS`.
        precision: The requested precision.
        input_dtype: One of `formats.INPUT_DTYPES`.

    Raises:
        RecipeError: If its name cannot be the name of a model, it has versions in another format, a package of the
            format is missing, or the format has no such precision or input.
        ResourceError: If the folder cannot be written.
    """
    check_name(model_dir)
    formats.check_format(model_format, precision, input_dtype)
    if model_format == formats.SAVED_MODEL and importlib.util.find_spec("tensorflow_serving") is None:
        raise RecipeError('warm-up requests require tensorflow-serving-api.\n  pip install "keras-committee[serving]"')
    with translate_os_errors(model_dir):
        existing = next(path for path in (model_dir, *model_dir.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(existing))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
        formats.check_no_other_format(model_dir, model_format)


@contextlib.contextmanager
def staging(model_dir: Path) -> Iterator[Path]:
    """Create a folder inside `model_dir` that servers ignore, and delete it at the end.

    Write the version to its subfolder `version`, and then call `publish`. Folders that killed processes left behind are
    deleted first.

    Raises:
        ResourceError: If the folder cannot be written.
        InUseError: If another process holds the lock of `model_dir` for a minute.
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
    """Rename the complete folder `version_dir` to the next version number in `model_dir`.

    Args:
        model_dir: Folder of the versions.
        version_dir: Folder of the new version, inside a `staging` folder of `model_dir`.

    Returns:
        The new path. Its number is higher than any that exists or was ever published.

    Raises:
        ResourceError: If the folder cannot be written.
        ExportError: If the file with the highest version is damaged, or there is no higher number.
        InUseError: If another process holds the lock of `model_dir` for a minute.
    """
    with translate_os_errors(version_dir):
        _make_readable(version_dir)
        _fsync_tree(version_dir)
    with _version_lock(model_dir):
        number = 1 + max([_highest_recorded_version(model_dir), *taken_versions(model_dir)])
        if number > MAX_VERSION:
            raise ExportError(
                f"{model_dir} has version {number - 1}, the highest that TF Serving supports. Nothing was published.\n"
                "  Choose another folder: --out FOLDER."
            )
        target = model_dir / str(number)
        write_record(model_dir / _HIGHEST_VERSION_FILE, {"highest": number})
        with translate_os_errors(target):
            os.rename(version_dir, target)
            fsync_dir(model_dir)
    return target


def taken_versions(model_dir: Path) -> list[int]:
    """Return the version numbers in `model_dir`, ascending; also of files, which would block the rename."""
    names = [path.name for path in model_dir.iterdir()] if model_dir.is_dir() else []
    return sorted(version for version in map(parse_version, names) if version is not None)


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
        return int(read_record(path, may_be_edited=True)["highest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path} is damaged: {error}. It holds the highest version ever published here. Nothing was published.\n"
            '  Replace its content by {"highest": N}.'
        ) from error


def _make_readable(folder):
    """Apply `chmod a+rX`: the server runs as another user."""
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
