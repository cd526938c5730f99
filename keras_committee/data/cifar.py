"""CIFAR-10 and CIFAR-100 from class folders, an .npz file, or Keras' download."""

import dataclasses
import os
import re
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_committee.data import validation as checks
from keras_committee.data.arrays import read_npz
from keras_committee.data.augment import Augmentation
from keras_committee.data.dataset import DataConfig, ReadResult
from keras_committee.data.image_folder import ClassFolders
from keras_committee.data.images import InMemoryImages
from keras_committee.data.preprocessing import resize
from keras_committee.data.splits import Split
from keras_committee.errors import DataError, raise_if_problems
from keras_committee.files import expand_home, file_hash

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
_IMAGE_SHAPE = (32, 32, 3)
_ARRAY_NAMES = ("x_train", "y_train", "x_test", "y_test")
_ACCEPTED_FORMATS = (
    "a folder with train/<class>/*.jpg|png and test/<class>/*.jpg|png, "
    "or an .npz file with the arrays x_train, y_train, x_test, y_test"
)


def cifar10(
    batch_size: int,
    *,
    directory: str | os.PathLike | None = None,
    validation: float = 5_000,
    augment: Augmentation | None = None,
) -> DataConfig:
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32x3, ten classes.

    3.25 % of its test images (10 % in CIFAR-100) are near duplicates of training images: Barz & Denzler 2020.

    Args:
        batch_size: Examples per training step, over all devices.
        directory: A folder with `train/<class>/*.jpg|png` and `test/<class>/*`, or an `.npz` file with the arrays
            x_train, y_train, x_test, y_test. None downloads the data once, through Keras.
        validation: Examples held out from training, a count or a fraction; the same for every seed.
        augment: Augmentation of the training images, or None.

    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
    """
    return _cifar_config("cifar10", batch_size, directory, validation, augment)


def cifar100(
    batch_size: int,
    *,
    directory: str | os.PathLike | None = None,
    validation: float = 5_000,
    augment: Augmentation | None = None,
) -> DataConfig:
    """CIFAR-100 with its hundred fine classes; arguments and sizes are those of `cifar10`."""
    return _cifar_config("cifar100", batch_size, directory, validation, augment)


def _cifar_config(name, batch_size, directory, validation, augment):
    classes = tuple(CLASS_NAMES[name].split())
    return DataConfig(
        name=name,
        batch_size=batch_size,
        reader=_make_reader(name, classes, directory),
        validation=validation,
        augment=augment,
    )


def _make_reader(name, classes, directory):
    if directory is None:
        return CifarDownload(name=name, classes=classes)
    if os.fspath(directory).endswith(".npz"):
        return CifarArrayFile(name=name, classes=classes, path=expand_home(directory))
    return ClassFolders(
        directory=expand_home(directory),
        transform=resize(_IMAGE_SHAPE[:2]),
        require_exact_size=True,
        classes=len(classes),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CifarDownload:
    """Reader of the copy that Keras downloads into its own home folder.

    Args:
        name: `"cifar10"` or `"cifar100"`.
        classes: Class names, in label order.
    """

    name: str
    classes: tuple[str, ...]
    hint: str = "Delete Keras' copy under ~/.keras/datasets, or change the sizes in the recipe, then run it again."

    def find(self) -> ReadResult:
        module = getattr(keras.datasets, self.name)
        try:
            with warnings.catch_warnings():
                # Keras only warns of an archive member that lies outside of the archive's folder.
                warnings.filterwarnings("error", message="Skipping invalid path")
                (x_train, y_train), (x_test, y_test) = module.load_data()
        except Exception as error:  # Keras raises a plain Exception if the server does not respond
            expected = re.search("file hash does not match the provided value of ([0-9a-f]+)", str(error))
            if expected is not None:
                raise DataError(_delete_bad_download(self.name, expected[1])) from error
            raise DataError(
                f"{self.name}: Keras could not download the data ({error}).\n"
                f"Name a local copy with `directory` (in the recipes: --set data_dir=PATH): {_ACCEPTED_FORMATS}."
            ) from error
        arrays = dict(zip(_ARRAY_NAMES, (x_train, y_train, x_test, y_test), strict=True))
        return _check_and_split(arrays, self.classes)


def _delete_bad_download(name, expected_hash):
    """Delete a download with a wrong checksum, so that nothing uses it, and return the error message."""
    datasets = expand_home(os.environ.get("KERAS_HOME", "~/.keras")) / "datasets"
    lines = [f"{name}: the download is not the file that Keras expects, SHA-256 {expected_hash}. It was deleted."]
    for archive in datasets.glob(f"{name.replace('cifar', 'cifar-')}-*_archive"):
        lines.append(f"  {archive} had SHA-256 {file_hash(archive)}")
        archive.unlink()
    lines.append("Run the same command to download it again, or name a local copy with --set data_dir=PATH.")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CifarArrayFile:
    """Reader of an .npz file.

    Args:
        name: `"cifar10"` or `"cifar100"`.
        classes: Class names, in label order.
        path: The file.
    """

    name: str
    classes: tuple[str, ...]
    path: Path
    hint: str = "Fix the arrays listed above (or change the sizes in the recipe), then run the command again."

    def find(self) -> ReadResult:
        named = read_npz(self.path, f"Use {_ACCEPTED_FORMATS}.")
        missing = [name for name in _ARRAY_NAMES if name not in named]
        arrays = {name: named[name] for name in _ARRAY_NAMES if name in named}
        raise_if_problems(
            str(self.path), [f"{name}: the array is missing" for name in missing], f"Use {_ACCEPTED_FORMATS}."
        )
        return _check_and_split(arrays, self.classes)


def _check_and_split(arrays, classes):
    """Return the examples of the four arrays and their problems."""
    problems, splits = [], {}
    for split_name in ("train", "test"):
        images, labels = arrays[f"x_{split_name}"], arrays[f"y_{split_name}"]
        labels = labels[:, 0] if labels.shape[1:] == (1,) else labels  # Keras returns (examples, 1)
        split_problems = checks.check_images(images, _IMAGE_SHAPE, f"x_{split_name}")
        split_problems += checks.check_labels(labels, len(classes), f"y_{split_name}")
        if len(images) != len(labels):
            split_problems.append(f"x_{split_name} has {len(images)} images, y_{split_name} has {len(labels)} labels")
        split_problems = split_problems or checks.check_classes(labels, classes, f"y_{split_name}")
        problems += split_problems
        splits[split_name] = (
            _empty_split() if split_problems else Split(images=InMemoryImages(images), labels=labels.astype(np.int32))
        )
    return ReadResult(classes=classes, problems=problems, **splits)


def _empty_split():
    """A split without examples, in place of invalid arrays."""
    return Split(images=InMemoryImages(np.zeros((0, *_IMAGE_SHAPE), np.uint8)), labels=np.zeros(0, np.int32))
