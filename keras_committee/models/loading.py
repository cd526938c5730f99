"""How does a trained member reach its file, and come back?"""

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

from keras_committee.errors import RunError, VerificationError
from keras_committee.files import fsync_dir, translate_os_errors

# What Keras raises for files that are cut, flipped or written to mislead it.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, UserWarning)
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error)


def load_member(file: Path) -> keras.Model:
    """The trained member in `file`, ready for inference; nothing in it runs as code.

    Raises:
        RunError: If the file cannot be read as a Keras model.
        VerificationError: If it holds code, or an archive that is meant to do harm.
    """
    try:
        problem = scan_for_code(file)
        if not problem:
            with warnings.catch_warnings():  # Keras would leave weights that are not in the file at random
                warnings.filterwarnings("error", message="Skipping nested container")
                return keras.saving.load_model(file, compile=False, safe_mode=True)
    except (*_LOAD_ERRORS, *_ARCHIVE_ERRORS) as error:
        raise RunError(
            f"{file} cannot be loaded: {error}\n"
            "  Delete it and run `keras-committee train` again to train this member anew."
        ) from error
    raise VerificationError(
        f"{file} {problem}. Nothing of it was run.\n"
        "  A member may have layers of Keras, keras_committee and its own recipe only. Delete a file that is not yours."
    )


def save_member(model: keras.Model, file: Path) -> None:
    """Writes the member to `file`, a `.keras` file, which is there whole or not at all. Raises ResourceError."""
    partial_file = file.with_name(".part-" + file.name)
    with translate_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        model.save(partial_file)
        with open(partial_file, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial_file, file)
        fsync_dir(file.parent)


TRUSTED_MODULES = ("keras", "keras_committee", "keras_cv", "keras_hub", "keras_nlp", "builtins", None)
MAX_COMPRESSION_RATIO = 100  # of the bytes of the members to those of the archive; Keras does not compress
RATIO_CHECK_MIN_BYTES = 64 * 2**20  # bytes; below, the ratio does not matter


def scan_for_code(file: Path) -> str:
    """What a `.keras` file would do to whoever loads it, as the end of a sentence; nothing where it may be loaded.

    Raises:
        ValueError: If it is no `.keras` file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if problems := _archive_problems(archive, file.stat().st_size):
                return f"is an archive made to do harm: {'; '.join(problems)}"
            code = sorted(set(_find_code(json.loads(archive.read("config.json")), "the model")))
            return f"holds code of whoever wrote it, in {', '.join(code)}" if code else ""
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it is no whole .keras archive ({error})") from error


def _archive_problems(archive: zipfile.ZipFile, size: int) -> list[str]:
    members = archive.infolist()
    problems = [
        f"member {member.filename!r}, which {reason}" for member in members if (reason := _path_problem(member))
    ]
    names = [each.filename for each in members]
    problems += [f"member {name!r}, which stands there twice" for name in sorted({*names}) if names.count(name) > 1]
    if (unpacked_bytes := sum(each.file_size for each in members)) > max(
        RATIO_CHECK_MIN_BYTES, MAX_COMPRESSION_RATIO * size
    ):
        problems.append(f"{unpacked_bytes:,} bytes in an archive of {size:,}")
    return problems


def _path_problem(member: zipfile.ZipInfo) -> str:
    """Why a member could write or read outside of the folder it is unpacked in, or nothing."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the archive"
    return "is a link" if stat.S_ISLNK(member.external_attr >> 16) else ""


def _find_code(node: Any, layer: str) -> Iterator[str]:
    """`layer 'name' (Class)` for each part that is code: a lambda, a saved graph, or of an unknown module."""
    if isinstance(node, list):
        for child in node:
            yield from _find_code(child, layer)
    if not isinstance(node, dict):
        return
    name, class_name = node.get("config"), node.get("class_name")
    if class_name and isinstance(name, dict) and isinstance(name.get("name"), str):
        layer = f"layer {name['name']!r} ({class_name})"
    if class_name and not _is_trusted(node, class_name):
        yield layer
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
    return _is_registered(node) or (module.split(".")[0] if isinstance(module, str) else module) in TRUSTED_MODULES


def _is_registered(node: dict[str, Any]) -> bool:
    names = (node.get("registered_name"), node.get("config"))
    return any(isinstance(name, str) and keras.saving.get_registered_object(name) is not None for name in names)
