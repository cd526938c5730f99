"""Files of trained members: atomic writes, and reads that never run code of an untrusted file."""

import json
import os
import stat
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import keras

from keras_committee.errors import VerificationError
from keras_committee.files import fsync_dir, translate_os_errors
from keras_committee.member_dir import DataInfo, damaged_model_error

# What Keras raises for files that are truncated, corrupted or manipulated.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, UserWarning)
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error)

SAVE_AGAIN = (
    "  Load it with the library that wrote it and save it again: with Keras 3, model.save('name.keras'); with Keras 2\n"
    "  (tf_keras), model.export('folder'). `keras-committee import` and models.from_saved_model read that SavedModel."
)
_FORMATS_BY_START = {
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file (.h5), not a .keras archive.\n{SAVE_AGAIN}",
    b"version https://git-lfs": "a pointer of Git LFS, not the model.\n  Run `git lfs pull` to download the model.",
}

_TRUSTED_PACKAGES = ("keras", "keras_committee", "keras_cv", "keras_hub", "keras_nlp", "builtins", None)
_MAX_COMPRESSION_RATIO = 100  # unpacked bytes per byte of the archive; Keras does not compress
_MIN_RATIO_BYTES = 64 * 2**20  # archives that unpack to less may have any ratio


def load_member(file: Path) -> keras.Model:
    """Load the trained member in `file` for inference. No code in the file is run.

    Raises:
        RunError: If the file cannot be read as a Keras model.
        VerificationError: If it contains code, is an unsafe archive, or has another format under the name `.keras`.
    """
    if other_format := _other_format(file):
        raise VerificationError(f"{file} is {other_format}")
    try:
        problem = _find_problem(file)
        if not problem:
            with warnings.catch_warnings():  # Keras would leave weights that are missing in the file at random values
                warnings.filterwarnings("error", message="Skipping nested container")
                return keras.saving.load_model(file, compile=False, safe_mode=True)
    except (*_LOAD_ERRORS, *_ARCHIVE_ERRORS) as error:
        raise damaged_model_error(file, error) from error
    raise VerificationError(
        f"{file} {problem}. No code in it was run.\n"
        "  A member may have layers of Keras, keras_committee and its own recipe only. Delete a file that is not yours."
    )


def save_member(model: keras.Model, file: Path, data_info: DataInfo | None = None) -> None:
    """Write the member to `file`, a `.keras` file, atomically.

    Args:
        model: The member.
        file: Path of the file.
        data_info: Description of its data, which later commands read from the file; None for a file outside of a run.

    Raises:
        ResourceError: If the file cannot be written.
    """
    partial_file = file.with_name(".part-" + file.name)
    with translate_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        model.save(partial_file)
        if data_info is not None:
            data_info.add_to(partial_file)
        with open(partial_file, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial_file, file)
        fsync_dir(file.parent)


def find_code(config: dict[str, Any]) -> list[str]:
    """Return the parts of a serialized model that are lambdas, saved graphs or from an unknown module.

    Args:
        config: The model as in `keras.Model.to_json`.

    Returns:
        Names such as `"layer 'scale' (Lambda)"` and `"layer 'dense' (Dense): my_activation"`.
    """
    return sorted(set(_find_code(config, "the model")))


def _other_format(file: Path) -> str:
    """Return what a file is that Keras 3 did not write, and the remedy, as a predicate; else an empty string."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(32)
        for magic, name in _FORMATS_BY_START.items():
            if start.startswith(magic):
                return name
        with zipfile.ZipFile(file) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, *_ARCHIVE_ERRORS):
        return ""  # missing or damaged, which loading it reports
    is_keras_2 = str(version).startswith("2.")
    return f"a model of Keras {version} (tf_keras), which Keras 3 cannot read.\n{SAVE_AGAIN}" if is_keras_2 else ""


def _find_problem(file: Path) -> str:
    """Return why a `.keras` file must not be loaded, as a predicate for the message, or an empty string.

    Raises:
        ValueError: If it is not a `.keras` file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if problems := _archive_problems(archive, file.stat().st_size):
                return f"is an unsafe archive: {'; '.join(problems)}"
            if damaged := archive.testzip():  # Keras and h5py seek in the file, which turns the check of zipfile off
                raise ValueError(f"{damaged} fails its checksum")
            code = find_code(json.loads(archive.read("config.json")))
            return f"contains code, in {', '.join(code)}" if code else ""
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
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


def _find_code(node: Any, layer: str) -> Iterator[str]:
    """Yield the parts of `find_code` in a part of the layer called `layer`."""
    if isinstance(node, list):
        for child in node:
            yield from _find_code(child, layer)
    if not isinstance(node, dict):
        return
    config, class_name = node.get("config"), node.get("class_name")
    name = config.get("name") if isinstance(config, dict) else None
    is_layer = class_name and isinstance(name, str)
    if is_layer:
        layer = f"layer {name!r} ({class_name})"
    if class_name and not _is_trusted(node, class_name):
        yield layer if is_layer else f"{layer}: {config if class_name == 'function' else class_name}"
        return
    for child in node.values():
        yield from _find_code(child, layer)


def _is_trusted(node: dict[str, Any], class_name: str) -> bool:
    if class_name == "Lambda":
        config = node.get("config")
        function = config.get("function") if isinstance(config, dict) else None
        return isinstance(function, dict) and _is_registered(function)
    if class_name in ("TFSMLayer", "__lambda__"):
        return False
    module = node.get("module")
    package = module.split(".")[0] if isinstance(module, str) else module
    return _is_registered(node) or package in _TRUSTED_PACKAGES


def _is_registered(node: dict[str, Any]) -> bool:
    names = (node.get("registered_name"), node.get("config"))
    return any(isinstance(name, str) and keras.saving.get_registered_object(name) is not None for name in names)
