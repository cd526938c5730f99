"""Which images lie in a folder that has one folder for each class?"""

import dataclasses
import os
from pathlib import Path

from keras_committee.errors import refuse

SUFFIXES = (".jpg", ".jpeg", ".png")
IGNORED = ("Thumbs.db", "desktop.ini")  # what file managers leave behind, besides hidden files
MEND = (
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
        kind = "is not a folder" if directory.exists() else "there is no such folder"
        refuse(str(directory), [kind], "Name the folder that holds the images.")
    places = _places(directory, classes)
    listed = {part: _folders(directory / place) for part, place in places.items()}
    names = tuple(sorted(set().union(*listed.values())))
    problems = _folder_problems(directory, places, listed, names, classes)
    splits = {}
    for part, place in places.items():
        inside = {name: "/".join(filter(None, (place, name))) for name in names if name in listed[part]}
        found = {name: _images(directory, path) for name, path in inside.items()}
        splits[part] = {name: images for name, (images, _) in found.items()}
        problems += [problem for _, wrong in found.values() for problem in wrong]
    return Listing(classes=names, splits=splits, problems=problems)


def _places(directory, classes):
    """The folder, relative to the root, of each split there is."""
    there = [name for name in ("train", "val", "validation", "test") if (directory / name).is_dir()]
    if not there and classes is None:
        return {"train": ""}
    held = [name for name in ("val", "validation") if name in there][:1]
    if "test" in there or not held:
        places = {"train": "train", "test": "test"}
        return {**places, "validation": held[0]} if held else places
    return {"train": "train", "test": held[0]}


def _folder_problems(directory, places, listed, names, classes):
    missing = [place for place in places.values() if not (directory / place).is_dir()]
    problems = [f"{place}/: there is no such folder in {directory}" for place in missing]
    for part, place in places.items():
        absent = [] if place in missing else [name for name in names if name not in listed[part]]
        problems += [f"{place}/{name}: there is no such folder, but another split has the class" for name in absent]
    if classes not in (None, len(names)) and not missing:
        problems.append(f"{len(names)} class folders, expected {classes}")
    if not names and not missing:
        problems.append(f"there are no class folders in {directory}")
    return problems


def _visible(folder):
    """Entries of a folder, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in IGNORED]
    return sorted(kept, key=lambda entry: entry.name)


def _folders(folder):
    """Names of the class folders."""
    return [entry.name for entry in _visible(folder) if entry.is_dir()] if folder.is_dir() else []


def _images(root, inside):
    """Image files of one class folder, relative to `root`, and what else lies there."""
    images, problems = [], []
    for entry in _visible(root / inside):
        name = f"{inside}/{entry.name}"
        if entry.is_dir():
            problems.append(f"{name}/: a folder inside a class folder, its images would not be read")
        elif entry.name.lower().endswith(SUFFIXES):
            images.append(name)
        else:
            problems.append(f"{name}: not supported, images end in {', '.join(SUFFIXES)}")
    if not images:
        problems.append(f"{inside}/: the class has no images")
    return images, problems
