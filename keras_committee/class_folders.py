"""Lists of the images in class folders: one folder per class, with or without split folders above them."""

import dataclasses
import os
from pathlib import Path

from keras_committee.errors import raise_if_problems

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
HINT = (
    "Fix or remove the files listed above (or change the sizes in the recipe; skip_bad=N skips up to N unreadable "
    "images), then run the command again."
)

_IGNORED_FILES = ("Thumbs.db", "desktop.ini")  # file managers write them, like hidden files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of class folders.

    Args:
        classes: Sorted names of the classes of all splits.
        splits: For `"train"`, and for `"validation"` and `"test"` if they have folders, the images of each class:
            paths relative to the root folder, sorted by name.
        problems: One sentence for each missing folder, empty class or unsupported file.
    """

    classes: tuple[str, ...]
    splits: dict[str, dict[str, list[str]]]
    problems: list[str]


def list_images(directory: Path, classes: int | None = None) -> Listing:
    """List the images in `directory/<class>/`, or in `directory/<split>/<class>/` for `train`, `test` and `val`.

    Args:
        directory: The root folder.
        classes: Expected number of classes, or None. If given, `train` and `test` must exist.

    Raises:
        DataError: If `directory` is not a folder.
    """
    if not directory.is_dir():
        reason = "is not a folder" if directory.exists() else "there is no such folder"
        raise_if_problems(str(directory), [reason], "Name the folder that holds the images.")
    split_dirs = _find_split_dirs(directory, classes)
    class_dirs = {split: _class_dir_names(directory / split_dir) for split, split_dir in split_dirs.items()}
    class_names = tuple(sorted(set().union(*class_dirs.values())))
    problems = _folder_problems(directory, split_dirs, class_dirs, class_names, classes)
    splits = {}
    for split, split_dir in split_dirs.items():
        splits[split] = {}
        for name in (name for name in class_names if name in class_dirs[split]):
            images, class_problems = _list_class_images(directory, f"{split_dir}/{name}" if split_dir else name)
            splits[split][name] = images
            problems += class_problems
    return Listing(classes=class_names, splits=splits, problems=problems)


def _find_split_dirs(directory: Path, classes: int | None) -> dict[str, str]:
    """Return the folder of each split, relative to the root. Without `test`, ImageNet's `val` is the test split."""
    existing = [name for name in ("train", "val", "validation", "test") if (directory / name).is_dir()]
    if not existing and classes is None:
        return {"train": ""}
    validation_dirs = [name for name in ("val", "validation") if name in existing][:1]
    if "test" in existing or not validation_dirs:
        split_dirs = {"train": "train", "test": "test"}
        return {**split_dirs, "validation": validation_dirs[0]} if validation_dirs else split_dirs
    return {"train": "train", "test": validation_dirs[0]}


def _folder_problems(
    directory: Path,
    split_dirs: dict[str, str],
    class_dirs: dict[str, list[str]],
    class_names: tuple[str, ...],
    classes: int | None,
) -> list[str]:
    missing = [split_dir for split_dir in split_dirs.values() if not (directory / split_dir).is_dir()]
    problems = [f"{split_dir}/: there is no such folder in {directory}" for split_dir in missing]
    for split, split_dir in split_dirs.items():
        if split_dir not in missing:
            problems += [
                f"{split_dir}/{name}: there is no such folder, but another split has the class"
                for name in class_names
                if name not in class_dirs[split]
            ]
    if classes not in (None, len(class_names)) and not missing:
        problems.append(f"{len(class_names)} class folders, expected {classes}")
    if not class_names and not missing:
        problems.append(f"there are no class folders in {directory}")
    return problems


def _visible_entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _IGNORED_FILES]
    return sorted(visible, key=lambda entry: entry.name)


def _class_dir_names(folder: Path) -> list[str]:
    return [entry.name for entry in _visible_entries(folder) if entry.is_dir()] if folder.is_dir() else []


def _list_class_images(root: Path, class_dir: str) -> tuple[list[str], list[str]]:
    """Return the images of one class folder, relative to `root`, and the problems found there."""
    images, problems = [], []
    for entry in _visible_entries(root / class_dir):
        name = f"{class_dir}/{entry.name}"
        if entry.is_dir():
            problems.append(f"{name}/: folders inside a class folder are not supported")
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            images.append(name)
        else:
            problems.append(f"{name}: not supported, images end in {', '.join(IMAGE_SUFFIXES)}")
    if not images:
        problems.append(f"{class_dir}/: the class has no images")
    return images, problems
