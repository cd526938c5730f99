"""Checks of a `.keras` file as an archive, before Keras reads it; nothing in it is run."""

import json
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

SAVE_AGAIN = (
    "  Load it with the library that wrote it and save it again: with Keras 3, model.save('name.keras'); with Keras 2\n"
    "  (tf_keras), model.export('folder'). `keras-committee import` and models.from_saved_model read that SavedModel."
)
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error)  # of a damaged archive, besides the usual ones
_FORMATS_BY_START = {
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file (.h5), not a .keras archive.\n{SAVE_AGAIN}",
    b"version https://git-lfs": "a pointer of Git LFS, not the model.\n  Run `git lfs pull` to download the model.",
}
_MAX_COMPRESSION_RATIO = 100  # unpacked bytes per byte of the archive; Keras does not compress
_MIN_RATIO_BYTES = 64 * 2**20  # archives that unpack to less may have any ratio


def other_format(file: Path) -> str:
    """Return what a file is that Keras 3 did not write, and the remedy, as a predicate; else an empty string."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(32)
        for magic, name in _FORMATS_BY_START.items():
            if start.startswith(magic):
                return name
        with zipfile.ZipFile(file) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, *ARCHIVE_ERRORS):
        return ""  # missing or damaged, which loading it reports
    is_keras_2 = str(version).startswith("2.")
    return f"a model of Keras {version} (tf_keras), which Keras 3 cannot read.\n{SAVE_AGAIN}" if is_keras_2 else ""


def read_architecture(file: Path) -> tuple[dict, str]:
    """Read the serialized model in a `.keras` file, after the checks of the archive.

    Returns:
        The model as in `keras.Model.to_json`, and an empty string; or an empty dictionary, and why the archive must not
        be unpacked, as a predicate for the message.

    Raises:
        ValueError: If it is not a `.keras` file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if problems := _archive_problems(archive, file.stat().st_size):
                return {}, f"is an unsafe archive: {'; '.join(problems)}"
            if damaged := archive.testzip():  # Keras and h5py seek in the file, which turns the check of zipfile off
                raise ValueError(f"{damaged} fails its checksum")
            return json.loads(archive.read("config.json")), ""
    except (OSError, KeyError, RuntimeError, ValueError, *ARCHIVE_ERRORS) as error:
        raise ValueError(f"it is not a complete .keras archive ({error})") from error


def _archive_problems(archive: zipfile.ZipFile, size: int) -> list[str]:
    members = archive.infolist()
    problems = [
        f"member {member.filename!r}, which {reason}" for member in members if (reason := _path_problem(member))
    ]
    names = [member.filename for member in members]
    problems += [f"member {name!r}, which is there twice" for name in sorted({*names}) if names.count(name) > 1]
    unpacked_bytes = sum(member.file_size for member in members)
    if unpacked_bytes > max(_MIN_RATIO_BYTES, _MAX_COMPRESSION_RATIO * size):
        problems.append(f"{unpacked_bytes:,} bytes in an archive of {size:,}")
    return problems


def _path_problem(member: zipfile.ZipInfo) -> str:
    """Return why unpacking a member could write or read outside of the target folder, or an empty string."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the archive"
    return "is a link" if stat.S_ISLNK(member.external_attr >> 16) else ""
