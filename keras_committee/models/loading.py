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
from keras_committee.files import flush_folder, writing

# What Keras raises for files that are cut, flipped or written to mislead it.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, UserWarning)
_BROKEN = (zipfile.BadZipFile, zlib.error)


def load_member(file: Path) -> keras.Model:
    """The trained member in `file`, ready for inference; nothing in it runs as code.

    Raises:
        RunError: If the file cannot be read as a Keras model.
        VerificationError: If it holds code, or an archive that is meant to do harm.
    """
    try:
        harm = find_harm(file)
        if not harm:
            with warnings.catch_warnings():  # Keras would leave weights that are not in the file at random
                warnings.filterwarnings("error", message="Skipping nested container")
                return keras.saving.load_model(file, compile=False, safe_mode=True)
    except (*_DAMAGE, *_BROKEN) as error:
        raise RunError(
            f"{file} cannot be loaded: {error}\n"
            "  Delete it and run `keras-committee train` again to train this member anew."
        ) from error
    raise VerificationError(
        f"{file} {harm}. Nothing of it was run.\n"
        "  A member may have layers of Keras, keras_committee and its own recipe only. Delete a file that is not yours."
    )


def save_member(model: keras.Model, file: Path) -> None:
    """Writes the member to `file`, a `.keras` file, which is there whole or not at all. Raises ResourceError."""
    part = file.with_name(".part-" + file.name)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        model.save(part)
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, file)
        flush_folder(file.parent)


TRUSTED = ("keras", "keras_committee", "keras_cv", "keras_hub", "keras_nlp", "builtins", None)
RATIO = 100  # of the bytes of the members to those of the archive; Keras does not compress
SMALL = 64 * 2**20  # bytes; below, the ratio does not matter


def find_harm(file: Path) -> str:
    """What a `.keras` file would do to whoever loads it, as the end of a sentence; nothing where it may be loaded.

    Raises:
        ValueError: If it is no `.keras` file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if wrong := _members(archive, file.stat().st_size):
                return f"is an archive made to do harm: {'; '.join(wrong)}"
            code = sorted(set(_code(json.loads(archive.read("config.json")), "the model")))
            return f"holds code of whoever wrote it, in {', '.join(code)}" if code else ""
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it is no whole .keras archive ({error})") from error


def _members(archive: zipfile.ZipFile, size: int) -> list[str]:
    members = archive.infolist()
    wrong = [f"member {each.filename!r}, which {why}" for each in members if (why := _reaches_out(each))]
    names = [each.filename for each in members]
    wrong += [f"member {name!r}, which stands there twice" for name in sorted({*names}) if names.count(name) > 1]
    if (unpacked := sum(each.file_size for each in members)) > max(SMALL, RATIO * size):
        wrong.append(f"{unpacked:,} bytes in an archive of {size:,}")
    return wrong


def _reaches_out(member: zipfile.ZipInfo) -> str:
    """Why a member could write or read outside of the folder it is unpacked in, or nothing."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the archive"
    return "is a link" if stat.S_ISLNK(member.external_attr >> 16) else ""


def _code(part: Any, layer: str) -> Iterator[str]:
    """`layer 'name' (Class)` for each part that is code: a lambda, a saved graph, or of an unknown module."""
    if isinstance(part, list):
        for each in part:
            yield from _code(each, layer)
    if not isinstance(part, dict):
        return
    name, kind = part.get("config"), part.get("class_name")
    if kind and isinstance(name, dict) and isinstance(name.get("name"), str):
        layer = f"layer {name['name']!r} ({kind})"
    if kind and not _known(part, kind):
        yield layer
        return
    for each in part.values():
        yield from _code(each, layer)


def _known(part: dict[str, Any], kind: str) -> bool:
    if kind == "Lambda":
        config = part.get("config")
        function = config.get("function") if isinstance(config, dict) else None
        return isinstance(function, dict) and _registered(function)
    if kind in ("TFSMLayer", "__lambda__"):
        return False
    module = part.get("module")
    return _registered(part) or (module.split(".")[0] if isinstance(module, str) else module) in TRUSTED


def _registered(part: dict[str, Any]) -> bool:
    names = (part.get("registered_name"), part.get("config"))
    return any(isinstance(name, str) and keras.saving.get_registered_object(name) is not None for name in names)
