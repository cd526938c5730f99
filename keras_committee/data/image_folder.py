"""How does a folder with one folder for each class become examples?"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from keras_committee.data import preflight
from keras_committee.data.dataset import Data, Found
from keras_committee.data.framing import Framing, chosen_framing
from keras_committee.data.images import Files
from keras_committee.data.splits import Split

SUFFIXES = (".jpg", ".jpeg", ".png")
IGNORED = ("Thumbs.db", "desktop.ini")  # what file managers leave behind, besides hidden files


def image_folder(
    directory: str | os.PathLike,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    framing: Framing | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    augment=None,
    skip_bad: int = 0,
) -> Data:
    """JPEG and PNG images in one folder for each class; the sorted folder names are the classes.

    Two forms are read: `directory/<class>/...`, from which a test split is held out, and `directory/train/<class>/...`
    beside `directory/test/<class>/...`. A folder `val` (or `validation`) beside both is the validation split; without
    `test` it is the test split. Held-out examples are the same for every seed, and every class has its share.

    Args:
        directory: The folder.
        batch_size: Examples of one training step over all devices.
        size: Height and width, in pixels, that every image is resized to; or
        framing: which part of every image is seen and at which size, such as `centre_crop(224)`. It holds for
            evaluation, for serving and, unless `augment` begins with a `random_resized_crop`, for training.
        validation: Examples held out from training, a count or a fraction of what is not test.
        test: Examples held out for the test, a count or a fraction.
        augment: Augmentation of the training images, or None.
        skip_bad: So many unreadable images are left out and named in a warning; one more is an error that names all.
    """
    reader = ClassFolders(directory=Path(directory), framing=chosen_framing("image_folder", size, framing))
    return Data(
        name=f"image_folder({os.fspath(directory)!r})",
        batch_size=batch_size,
        reader=reader,
        validation=validation,
        test=test,
        augment=augment,
        skip_bad=skip_bad,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """Reads class folders.

    Args:
        directory: The folder.
        framing: How the files become images of one size.
        exact: Whether the files must have that size already.
        classes: Number of classes there must be, or None. Where it is given, so must `train` and `test` be.
    """

    directory: Path
    framing: Framing
    exact: bool = False
    classes: int | None = None
    mend: str = (
        "Mend or remove what is named above (or change the recipe's sizes; its skip_bad=N leaves out up to N "
        "unreadable images), then run the command again."
    )

    def find(self) -> Found:
        if not self.directory.is_dir():
            kind = "is not a folder" if self.directory.exists() else "there is no such folder"
            preflight.refuse(str(self.directory), [kind], "Name the folder that holds the images.")
        places = self._places()
        listed = {part: _folders(self.directory / place) for part, place in places.items()}
        names = tuple(sorted(set().union(*listed.values())))
        problems = self._folder_problems(places, listed, names)
        splits = {}
        for part, place in places.items():
            splits[part], wrong = self._split(place, listed[part], names)
            problems += wrong
        return Found(classes=names, problems=problems, **splits)

    def _places(self):
        """The folder, relative to the root, of each split there is."""
        there = [name for name in ("train", "val", "validation", "test") if (self.directory / name).is_dir()]
        if not there and self.classes is None:
            return {"train": ""}
        held = [name for name in ("val", "validation") if name in there][:1]
        if "test" in there or not held:
            places = {"train": "train", "test": "test"}
            return {**places, "validation": held[0]} if held else places
        return {"train": "train", "test": held[0]}

    def _folder_problems(self, places, listed, names):
        missing = [place for place in places.values() if not (self.directory / place).is_dir()]
        problems = [f"{place}/: there is no such folder in {self.directory}" for place in missing]
        for part, place in places.items():
            absent = [] if place in missing else [name for name in names if name not in listed[part]]
            problems += [f"{place}/{name}: there is no such folder, but another split has the class" for name in absent]
        if self.classes not in (None, len(names)) and not missing:
            problems.append(f"{len(names)} class folders, expected {self.classes}")
        if not names and not missing:
            problems.append(f"there are no class folders in {self.directory}")
        return problems

    def _split(self, place, folders, classes):
        """The images of one split, by class and name, and what is wrong with the listing."""
        names, labels, problems = [], [], []
        for label, folder in enumerate(classes):
            if folder not in folders:
                continue
            inside = "/".join(filter(None, (place, folder)))
            images, wrong = _images(self.directory, inside)
            names += images
            labels += [label] * len(images)
            problems += wrong
        files = Files(root=self.directory, names=tuple(names), framing=self.framing, exact=self.exact)
        return Split(images=files, labels=np.array(labels, np.int32)), problems


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
