"""Folders in the layout of the Hugging Face hub."""

import hashlib
import importlib.resources
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from keras_committee.errors import ExportError, RecipeError, RunError
from keras_committee.files import fsync_dir, read_problem, read_record, translate_os_errors, write_record
from keras_committee.folder_kinds import MODEL_CARD_FILE, FolderKind, explain_wrong_folder, version_format
from keras_committee.run import Run
from keras_committee.tfserving.versions import MANIFEST_FILE, find_versions

_RECORD_FILE = ".keras_committee_push.json"  # marks a folder that `push` wrote, and has the SHA-256 of its card
_LIBRARIES = {"saved-model": "keras", "onnx": "onnx", "litert": "tflite", "openvino": "openvino"}
_SCORES = ("accuracy", "nll", "ece", "brier")
_PATH_FIELDS = {"run", "source", "parameters"}  # of the manifest: they may name folders of this machine
# As the hub writes them into a new repository; the last pattern is that of a SavedModel's weights.
_LFS_PATTERNS = (
    "*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gz", "*.h5", "*.joblib", "*.lfs.*", "*.mlmodel",
    "*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt",
    "*.pth", "*.rar", "*.safetensors", "saved_model/**/*", "*.tar.*", "*.tar", "*.tflite", "*.tgz", "*.wasm", "*.xz",
    "*.zip", "*.zst", "*tfevents*", "variables/variables.data-*",
)  # fmt: skip
_LOADING = """
## Load it

```python
import keras_committee
from huggingface_hub import snapshot_download

model = keras_committee.load_export(snapshot_download("USER/NAME"))
print(model.predict("cat.jpg"))
```
"""
_LOADING_WITH_TENSORFLOW = """
With TensorFlow alone, for float32 pixels `(images, {height}, {width}, {channels})` from 0 to 255:

```python
import tensorflow as tf
from huggingface_hub import snapshot_download

model = tf.saved_model.load(snapshot_download("USER/NAME"))
outputs = model.signatures["serving_default"](image=pixels)  # probabilities, class_id, label, ...
```
"""


def find_version(source: Path) -> tuple[Path, Path | None]:
    """Return the exported version that a source names, and its model card, if it has one.

    Args:
        source: A run folder, whose newest export is meant; a model folder, whose newest version is meant; or a version.

    Raises:
        RunError: If the source is no run and no export.
        ExportError: If the run has no export, or the export was not made by keras-committee.
    """
    version, card = source, None
    if (source / "parameters.json").is_file():
        run, card = Run.open(source), source / "report" / MODEL_CARD_FILE
        exports = run.exports()
        if not exports:
            raise ExportError(f"{source} has no export. To export it, run: keras-committee export {source}")
        version = exports[-1]
    elif version_format(source) is None:
        versions = list(find_versions(source).values()) if source.is_dir() else []
        if not versions:
            reason = explain_wrong_folder(source, FolderKind.RUN, FolderKind.MODEL) or "there is no such folder."
            raise RunError(f"{source} is no run and no exported model: {reason}")
        version = versions[-1]
    if not (version / MANIFEST_FILE).is_file():
        raise ExportError(f"{version} has no {MANIFEST_FILE}: keras-committee did not export it. Nothing was written.")
    return version, card if card and card.is_file() else None


def push(version: Path, folder: Path, card: Path | None = None) -> bool:
    """Write an export to a folder in the layout of the Hugging Face hub.

    The folder appears complete; an earlier one is moved aside for it. It has the files of the version; `README.md`, the
    model card; and `.gitattributes`. In its manifest the runs and the recipe parameters that are absolute paths keep
    their last component only, as the folders of a machine are not to be published.

    Args:
        version: Folder of the exported version.
        folder: Target: a new or empty folder, or one that this function wrote.
        card: Model card; None writes one from the manifest of the export.

    Returns:
        Whether an earlier model card in the folder was kept, as somebody has edited it.

    Raises:
        RecipeError: If the folder holds something else.
        ExportError: If the manifest of the export is damaged.
        ResourceError: If the folder cannot be written.
    """
    earlier = _read_earlier(folder)
    try:
        manifest = read_record(version / MANIFEST_FILE)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{version / MANIFEST_FILE} is damaged: {read_problem(error)}. Nothing was written."
        ) from error
    written = _card(version, manifest, card)
    text = written
    if earlier is not None and (folder / MODEL_CARD_FILE).is_file():
        current = (folder / MODEL_CARD_FILE).read_text()
        text = current if _sha256(current) != earlier.get("card") else written
    with translate_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        try:
            shutil.copytree(version, staging)
            write_record(staging / MANIFEST_FILE, _without_folders(manifest))
            (staging / MODEL_CARD_FILE).write_text(text)
            attributes = [f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS]
            (staging / ".gitattributes").write_text("".join(attributes))
            write_record(staging / _RECORD_FILE, {"card": _sha256(written)})
            _replace(folder, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return text != written


def _read_earlier(folder: Path) -> dict[str, Any] | None:
    """Return the record of the push that wrote the folder; None if it is new or empty."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        return read_record(folder / _RECORD_FILE)
    except (OSError, ValueError):
        raise RecipeError(
            f"{folder} exists and was not written by `keras-committee push`. No file was changed. Name another folder, "
            "or remove it."
        ) from None


def _replace(folder: Path, staging: Path) -> None:
    """Rename `staging` to `folder`; an earlier folder is moved aside first and then deleted."""
    old = staging.with_name(f"{staging.name}.old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(staging, folder)
    fsync_dir(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _without_folders(value: Any, is_path: bool = False) -> Any:
    """Return a manifest in which the absolute paths of `_PATH_FIELDS` are names. Other texts, as labels, are kept."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item, is_path or key in _PATH_FIELDS) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item, is_path) for item in value]
    return Path(value).name if is_path and isinstance(value, str) and os.path.isabs(value) else value


def _card(version: Path, manifest: Mapping[str, Any], card: Path | None) -> str:
    model_format = manifest.get("model_format", "saved-model")
    if card is not None:
        text = card.read_text()
    else:
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
        environment.filters["yaml"] = json.dumps  # a JSON string is a YAML string
        template = importlib.resources.files(__package__ or "").joinpath("hub_card.md.j2").read_text("utf-8")
        text = environment.from_string(template).render(
            title=", ".join(dict.fromkeys(recipe["recipe"] for recipe in manifest["recipes"])) or version.parent.name,
            library=_LIBRARIES[model_format],
            manifest=manifest,
            results=_results(manifest),
        )
    loading = _LOADING + (_LOADING_WITH_TENSORFLOW.format(**manifest["image"]) if model_format == "saved-model" else "")
    return text.rstrip("\n") + "\n" + loading


def _results(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return split, number of examples and scores of the selection, else of the evaluation; None without both."""
    if report := manifest.get("report"):
        split = "test" if report.get("test") else "validation"
        scores = {name: report[split][name]["value"] for name in _SCORES if name in report[split]}
        return {"split": split, "examples": report["examples"][split], "scores": scores}
    evaluation = next(iter(manifest.get("metrics") or []), None)
    if evaluation is None or len(manifest["metrics"]) > 1:
        return None
    committee = evaluation["committees"][-1]
    if committee["size"] != len(manifest["members"]):
        return None
    scores = {name: committee[name]["mean"] for name in _SCORES if name in committee}
    return {"split": evaluation["split"], "examples": evaluation["examples"], "scores": scores}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
