"""Recognition of the folders of a project, for messages that name the folder that was meant."""

import enum
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".avif")
# The file of a version that its runtime loads, by the format of the export.
MODEL_FILES = {"saved-model": "saved_model.pb", "onnx": "model.onnx", "litert": "model.tflite", "openvino": "model.xml"}
MODEL_CARD_FILE = "README.md"  # as on the Hugging Face hub
SPLIT_SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}

_MAX_ENTRIES, _MAX_FOLDERS = 1_000, 50  # looked at in a folder: a message must not take longer for more
_MAX_SUGGESTIONS = 5
_MAX_LEVELS = 5  # runs/NAME/members/00/state/a
_SHARD_NAME = re.compile(r".+-\d{5}-of-\d{5}(\.tfrecords?)?")


class FolderKind(enum.Enum):
    """What a folder contains. The value is a noun phrase for messages."""

    RUN = "a run folder"
    RUNS = "a folder of runs"
    VERSION = "one version of an exported model"
    MODEL = "an exported model"
    MODELS = "a folder of exported models"
    CONVERTED = "a model for another runtime than TF Serving"
    SHARDS = "a folder of TFRecord files"
    CLASS = "a folder of images without class folders"
    IMAGES = "a folder of images"


_MODELS = (FolderKind.VERSION, FolderKind.MODEL, FolderKind.MODELS, FolderKind.CONVERTED)


def folder_kind(folder: Path) -> FolderKind | None:
    """Return what `folder` contains, from the names of files; None if it is something else or cannot be read."""
    kinds = {
        FolderKind.RUN: _is_run,
        FolderKind.VERSION: _is_version,
        FolderKind.MODEL: _is_model,
        FolderKind.CONVERTED: lambda folder: _converted_format(folder) is not None,
        FolderKind.RUNS: lambda folder: any(map(_is_run, _folders(folder))),
        FolderKind.MODELS: lambda folder: any(map(_is_model, _folders(folder))),
        FolderKind.SHARDS: _has_shards,
        FolderKind.CLASS: _has_images,
        FolderKind.IMAGES: _has_class_folders,
    }
    return next((kind for kind, is_kind in kinds.items() if is_kind(folder)), None)


def version_format(folder: Path) -> str | None:
    """Return the format of the version in `folder`, a key of `MODEL_FILES`, from the names of files; None if none."""
    return next((name for name, file in MODEL_FILES.items() if (folder / file).is_file()), None)


def find_images(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def explain_wrong_folder(folder: Path, *wanted: FolderKind) -> str:
    """Return what `folder` is in place of what is wanted, and which folder or command was meant.

    Args:
        folder: The folder that was given.
        *wanted: What it should have been: RUN, MODEL or IMAGES; nothing for a recipe.

    Returns:
        Sentences such as `"it is a run folder. Did you mean 'saved_models/a'?"`, or the empty string if the folder is
        of a wanted kind or not recognized.
    """
    kind = folder_kind(folder)
    if kind in wanted:
        return ""
    found = {path for target in wanted for path in _suggestions(folder, kind, target)}
    suggestions = " or ".join(repr(str(path)) for path in sorted(found)[:_MAX_SUGGESTIONS])
    if kind is None and not found:
        return ""
    description = f"it is {kind.value}" if kind else "it is inside another folder"
    next_step = f"Did you mean {suggestions}?" if found else _next_step(folder, kind, wanted)
    return f"{description if folder.exists() else 'there is no such folder'}. {next_step}".rstrip()


def _suggestions(folder: Path, kind: FolderKind | None, wanted: FolderKind) -> Iterator[Path]:
    """Yield existing folders of the wanted kind that belong to `folder`."""
    if wanted is FolderKind.IMAGES:
        yield from filter(_has_class_folders, [folder.parent] if kind is FolderKind.CLASS else [])
        return
    is_wanted, home = (_is_run, "runs") if wanted is FolderKind.RUN else (_is_model, "saved_models")
    if kind in (FolderKind.RUNS, FolderKind.MODELS):
        yield from filter(is_wanted, _folders(folder))
    elif owner := _owner(folder):
        yield from filter(is_wanted, [owner, owner.parent.parent / home / owner.name, Path(home, owner.name)])
    elif not folder.exists():
        yield from filter(is_wanted, [Path(home, folder)])


def _owner(folder: Path) -> Path | None:
    """Return the run or exported model that `folder` is or belongs to."""
    candidates = [folder, *folder.parents][:_MAX_LEVELS]
    return next((path for path in candidates if _is_run(path) or _is_model(path) or _is_converted_model(path)), None)


def _next_step(folder: Path, kind: FolderKind | None, wanted: tuple[FolderKind, ...]) -> str:
    """Return the command that makes what is wanted from a folder of this kind."""
    if kind is FolderKind.CLASS and _has_class_folders(folder.parent):
        folder, kind = folder.parent, FolderKind.IMAGES
    path = shlex.quote(str(folder))
    if kind in (FolderKind.IMAGES, FolderKind.SHARDS) and FolderKind.IMAGES not in wanted:
        source = "image-folder" if kind is FolderKind.IMAGES else "tfrecords"
        recipe = shlex.quote(f"recipes/{folder.absolute().name}.py")
        return f"To write a recipe, run: keras-committee init {recipe} --from {source} {path}"
    if kind is FolderKind.SHARDS:
        return "Read it with data.imagenet_records; `init` takes it with --from tfrecords."
    if kind is FolderKind.CLASS:
        return "Put the images of each class into a folder of its own, and name the folder that contains these folders."
    if kind is FolderKind.RUN and FolderKind.MODEL in wanted:
        return f"To export it, run: keras-committee export {path}"
    if kind is FolderKind.CONVERTED and FolderKind.MODEL in wanted:
        name = _converted_format(folder)
        return (
            f"It was exported with --format {name}; only that runtime, and `keras-committee predict {path} IMAGE`, can "
            "load it. For TF Serving, export the run without --format."
        )
    if kind is FolderKind.RUN and not wanted:
        return _resume_command(folder)
    return "Name the run that it was exported from." if kind in _MODELS and FolderKind.RUN in wanted else ""


def _resume_command(run: Path) -> str:
    try:
        command = json.loads((run / "environment.json").read_bytes())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return "To resume it, run the command that started it again."
    return f"To resume it, run: {command}"


def _is_run(folder: Path) -> bool:
    return (folder / "parameters.json").is_file() and (folder / "recipe.py").is_file()


def _is_version(folder: Path) -> bool:
    return (folder / "saved_model.pb").is_file()


def _is_model(folder: Path) -> bool:
    return any(re.fullmatch(r"[0-9]+", path.name) and _is_version(path) for path in _folders(folder))


def _converted_format(folder: Path) -> str | None:
    """Return the format of a version, or of a model with numbered versions, if it is another than the SavedModel."""
    versions = [folder, *(path for path in _folders(folder) if re.fullmatch(r"[0-9]+", path.name))]
    return next((name for name in map(version_format, versions) if name not in (None, "saved-model")), None)


def _is_converted_model(folder: Path) -> bool:
    return version_format(folder) is None and _converted_format(folder) is not None


def _has_shards(folder: Path) -> bool:
    return any(_SHARD_NAME.fullmatch(name) for name in _names(folder)[1])


def _has_images(folder: Path) -> bool:
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in _names(folder)[1])


def _has_class_folders(folder: Path) -> bool:
    """Return whether a folder has two class folders, or a split folder with one, and no images itself."""
    folders = _folders(folder)
    classes = [inner for inner in folders if _has_images(inner)]
    splits = [inner for inner in folders if inner.name.lower() in itertools.chain(*SPLIT_SPELLINGS.values())]
    return not _has_images(folder) and (
        len(classes) > 1 or any(_has_images(inner) for split in splits for inner in _folders(split))
    )


def _folders(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder)[0][:_MAX_FOLDERS]]


def _names(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of visible folders and of visible files; none if the folder cannot be read."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, _MAX_ENTRIES):
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError:
        return [], []
    return sorted(folders), sorted(files)
