"""Which images lie in a folder that has one folder for each class?"""

import dataclasses
import os
from pathlib import Path

from keras_committee.errors import raise_if_problems

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
IGNORED_FILES = ("Thumbs.db", "desktop.ini")  # what file managers leave behind, besides hidden files
HINT = (
    "Mend or remove what is named above (or change the recipe's sizes; its skip_bad=N leaves out up to N unreadable "
    "images), then run the command again."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of class folders.

    Args:
        classes: The sorted names of the classes of all splits.
        splits: For `"train"`, and `"validation"` and `"test"` where they have folders: the images of each class,
            relative to the folder, sorted by name.
        problems: A sentence for each thing that is wrong.
    """

    classes: tuple[str, ...]
    splits: dict[str, dict[str, list[str]]]
    problems: list[str]


def list_images(directory: Path, classes: int | None = None) -> Listing:
    """The images in `directory/<class>/`, or in `directory/train/<class>/` beside `test` or `val`.

    Args:
        directory: The folder.
        classes: Number of classes there must be, or None. Where it is given, so must `train` and `test` be.

    Raises:
        DataError: If there is no such folder.
    """
    if not directory.is_dir():
        reason = "is not a folder" if directory.exists() else "there is no such folder"
        raise_if_problems(str(directory), [reason], "Name the folder that holds the images.")
    split_dirs = _find_split_dirs(directory, classes)
    class_dirs = {split: _class_dir_names(directory / split_dir) for split, split_dir in split_dirs.items()}
    class_names = tuple(sorted(set().union(*class_dirs.values())))
    problems = _folder_problems(directory, split_dirs, class_dirs, class_names, classes)
    splits = {}
    for part, place in split_dirs.items():
        class_paths = {name: "/".join(filter(None, (place, name))) for name in class_names if name in class_dirs[part]}
        found = {name: _list_class_images(directory, path) for name, path in class_paths.items()}
        splits[part] = {name: images for name, (images, _) in found.items()}
        problems += [problem for _, class_problems in found.values() for problem in class_problems]
    return Listing(classes=class_names, splits=splits, problems=problems)


def _find_split_dirs(directory, classes):
    """The folder, relative to the root, of each split there is."""
    existing = [name for name in ("train", "val", "validation", "test") if (directory / name).is_dir()]
    if not existing and classes is None:
        return {"train": ""}
    validation_dirs = [name for name in ("val", "validation") if name in existing][:1]
    if "test" in existing or not validation_dirs:
        split_dirs = {"train": "train", "test": "test"}
        return {**split_dirs, "validation": validation_dirs[0]} if validation_dirs else split_dirs
    return {"train": "train", "test": validation_dirs[0]}


def _folder_problems(directory, split_dirs, class_dirs, class_names, classes):
    missing = [split_dir for split_dir in split_dirs.values() if not (directory / split_dir).is_dir()]
    problems = [f"{place}/: there is no such folder in {directory}" for place in missing]
    for split, place in split_dirs.items():
        missing_classes = [] if place in missing else [name for name in class_names if name not in class_dirs[split]]
        problems += [
            f"{place}/{name}: there is no such folder, but another split has the class" for name in missing_classes
        ]
    if classes not in (None, len(class_names)) and not missing:
        problems.append(f"{len(class_names)} class folders, expected {classes}")
    if not class_names and not missing:
        problems.append(f"there are no class folders in {directory}")
    return problems


def _visible_entries(folder):
    """Entries of a folder, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in IGNORED_FILES]
    return sorted(kept, key=lambda entry: entry.name)


def _class_dir_names(folder):
    """Names of the class folders."""
    return [entry.name for entry in _visible_entries(folder) if entry.is_dir()] if folder.is_dir() else []


def _list_class_images(root, class_dir):
    """Image files of one class folder, relative to `root`, and what else lies there."""
    images, problems = [], []
    for entry in _visible_entries(root / class_dir):
        name = f"{class_dir}/{entry.name}"
        if entry.is_dir():
            problems.append(f"{name}/: a folder inside a class folder, its images would not be read")
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            images.append(name)
        else:
            problems.append(f"{name}: not supported, images end in {', '.join(IMAGE_SUFFIXES)}")
    if not images:
        problems.append(f"{class_dir}/: the class has no images")
    return images, problems
