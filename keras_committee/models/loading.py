"""Files of trained members: atomic writes, and reads that never run code of an untrusted file."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_committee.errors import VerificationError
from keras_committee.files import fsync_dir, translate_os_errors
from keras_committee.keras_archive import ARCHIVE_ERRORS, other_format, read_architecture
from keras_committee.member_dir import DataInfo, damaged_model_error

# What Keras raises for files that are truncated, corrupted or manipulated.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, UserWarning)
_TRUSTED_PACKAGES = ("keras", "keras_committee", "keras_cv", "keras_hub", "keras_nlp", "builtins", None)


def load_member(file: Path) -> keras.Model:
    """Load the trained member in `file` for inference. No code in the file is run.

    Raises:
        RunError: If the file cannot be read as a Keras model.
        VerificationError: If it contains code, is an unsafe archive, or has another format under the name `.keras`.
    """
    if other := other_format(file):
        raise VerificationError(f"{file} is {other}")
    try:
        problem = _find_problem(file)
        if not problem:
            with warnings.catch_warnings():  # Keras would leave weights that are missing in the file at random values
                warnings.filterwarnings("error", message="Skipping nested container")
                return keras.saving.load_model(file, compile=False, safe_mode=True)
    except (*_LOAD_ERRORS, *ARCHIVE_ERRORS) as error:
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


def _find_problem(file: Path) -> str:
    """Return why a `.keras` file must not be loaded, as a predicate for the message, or an empty string.

    Raises:
        ValueError: If it is not a `.keras` file, or a damaged one.
    """
    config, problem = read_architecture(file)
    code = find_code(config)
    return f"contains code, in {', '.join(code)}" if code else problem


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
