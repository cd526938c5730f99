"""Where does CIFAR come from: class folders, an .npz file, or Keras' download?"""

import dataclasses
import os
import re
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_committee.data import validation
from keras_committee.data.dataset import Data, Found
from keras_committee.data.image_folder import ClassFolders
from keras_committee.data.images import Pixels
from keras_committee.data.preprocessing import resized
from keras_committee.data.splits import Split
from keras_committee.errors import DataError, refuse
from keras_committee.files import file_hash

SHAPE = (32, 32, 3)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
FORMS = (
    "a folder with train/<class>/*.jpg|png and test/<class>/*.jpg|png, "
    "or an .npz file with the arrays x_train, y_train, x_test, y_test"
)
CLASS_NAMES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "cifar100": """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
        lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
        pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
        shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """,
}


def cifar10(batch_size: int, *, directory=None, validation: float = 5_000, augment=None) -> Data:
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32x3, ten classes.

    3.25 % of its test images (10 % in CIFAR-100) are near duplicates of training images: Barz and Denzler 2020.

    Args:
        batch_size: Examples of one training step over all devices.
        directory: A folder with `train/<class>/*.jpg|png` and `test/<class>/*`, or an `.npz` file with the arrays
            x_train, y_train, x_test, y_test. None lets Keras download the data once.
        validation: Examples held out from training, a count or a fraction; the same ones for every seed.
        augment: Augmentation of the training images, or None.

    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
    """
    return _data("cifar10", batch_size, directory, validation, augment)


def cifar100(batch_size: int, *, directory=None, validation: float = 5_000, augment=None) -> Data:
    """CIFAR-100 with its hundred fine classes; the arguments and the sizes are those of `cifar10`."""
    return _data("cifar100", batch_size, directory, validation, augment)


def _data(name, batch_size, directory, validation, augment):
    classes = tuple(CLASS_NAMES[name].split())
    return Data(
        name=name,
        batch_size=batch_size,
        reader=_reader(name, classes, directory),
        validation=validation,
        augment=augment,
    )


def _reader(name, classes, directory):
    if directory is None:
        return Download(name=name, classes=classes)
    if os.fspath(directory).endswith(".npz"):
        return ArrayFile(name=name, classes=classes, path=Path(directory))
    return ClassFolders(directory=Path(directory), framing=resized(SHAPE[:2]), exact=True, classes=len(classes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """Reads what Keras downloads and keeps under its own home."""

    name: str
    classes: tuple[str, ...]
    mend: str = "Delete Keras' copy under ~/.keras/datasets, or change the recipe's sizes, then run the command again."

    def find(self) -> Found:
        module = getattr(keras.datasets, self.name)
        try:
            with (
                warnings.catch_warnings()
            ):  # a member of the archive that lies outside of it is an error, not a warning
                warnings.filterwarnings("error", message="Skipping invalid path")
                (x_train, y_train), (x_test, y_test) = module.load_data()
        except Exception as error:  # Keras raises a plain Exception where the server does not answer
            if (
                expected := re.search("file hash does not match the provided value of ([0-9a-f]+)", str(error))
            ) is not None:
                raise DataError(_discarded(self.name, expected[1])) from error
            raise DataError(
                f"{self.name}: Keras could not download the data ({error}).\n"
                f"Name a local copy with `directory` (the recipes' knob data_dir): {FORMS}."
            ) from error
        return _found(dict(zip(ARRAYS, (x_train, y_train, x_test, y_test), strict=True)), self.classes)


def _discarded(name: str, expected: str) -> str:
    """What became of a download whose checksum is wrong: it is deleted, so that nothing uses it."""
    datasets = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"
    told = [f"{name}: the download is not what Keras expects: SHA-256 {expected}. It was deleted."]
    for archive in datasets.glob(f"{name.replace('cifar', 'cifar-')}-*_archive"):
        told.append(f"  {archive} had SHA-256 {file_hash(archive)}")
        archive.unlink()
    return "\n".join([*told, "The same command downloads it again; or name a local copy with the knob data_dir."])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayFile:
    """Reads an .npz file; pickled arrays are refused, since loading one can run any code."""

    name: str
    classes: tuple[str, ...]
    path: Path
    mend: str = "Mend the arrays named above (or change the recipe's sizes), then run the command again."

    def find(self) -> Found:
        try:
            with open(self.path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                missing = [name for name in ARRAYS if name not in file]
                arrays = {name: file[name] for name in ARRAYS if name in file}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.name}: cannot read {self.path} ({error}).\nGive {FORMS}.") from error
        refuse(str(self.path), [f"{name}: there is no such array" for name in missing], f"Give {FORMS}.")
        return _found(arrays, self.classes)


def _found(arrays, classes):
    """The examples of four arrays, and what is wrong with them."""
    problems, splits = [], {}
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        labels = labels[:, 0] if labels.shape[1:] == (1,) else labels  # Keras gives (examples, 1)
        wrong = validation.check_images(images, SHAPE, f"x_{part}")
        wrong += validation.check_labels(labels, len(classes), f"y_{part}")
        if len(images) != len(labels):
            wrong.append(f"x_{part} has {len(images)} images, y_{part} has {len(labels)} labels")
        wrong = wrong or validation.check_classes(labels, classes, f"y_{part}")
        problems += wrong
        splits[part] = _nothing() if wrong else Split(images=Pixels(images), labels=labels.astype(np.int32))
    return Found(classes=classes, problems=problems, **splits)


def _nothing():
    """A split without examples, in place of arrays that cannot be used."""
    return Split(images=Pixels(np.zeros((0, *SHAPE), np.uint8)), labels=np.zeros(0, np.int32))
