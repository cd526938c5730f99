"""Images in NumPy arrays, in memory or in an .npz file."""

import dataclasses
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.class_folders import assign_splits, split_named
from keras_committee.data import validation as checks
from keras_committee.data.augment import Augmentation
from keras_committee.data.dataset import DataConfig, ReadResult
from keras_committee.data.images import InMemoryImages
from keras_committee.data.preprocessing import resize_image
from keras_committee.data.splits import Split
from keras_committee.errors import DataError, RecipeError, raise_if_problems
from keras_committee.files import expand_home

_RESIZED_AT_ONCE = 256  # images
_MAX_EMPTY_CLASSES = 1_000  # a larger label is an identifier, not the number of a class
_IMAGE_WORDS, _LABEL_WORDS, _CLASS_NAMES = (
    ("x", "image", "images"),
    ("y", "label", "labels"),
    ("classes", "class_names"),
)
_ACCEPTED_NAMES = (
    "x_train and y_train, or train_images and train_labels, also for validation and test; or x and y, of which splits "
    "are held out; class names in `classes`"
)


def arrays(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    *,
    validation: float | tuple[np.ndarray, np.ndarray] = 0.1,
    test: float | tuple[np.ndarray, np.ndarray] = 0.2,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    augment: Augmentation | None = None,
) -> DataConfig:
    """Images and labels in NumPy arrays.

    A run records the SHA-256 of pixels and labels, and a resumed run checks it. For a recipe file `npz` is the better
    choice: it reads the arrays only when they are needed.

    Args:
        x: Images `(examples, height, width, channels)`, or `(examples, height, width)`. Integers are 0 to 255. Floats
            are 0 to 255, too, or 0 to 1, which are multiplied by 255; they are rounded to integers. A single channel is
            repeated over three.
        y: Labels `(examples,)` or `(examples, 1)`: integers from 0, or class names.
        batch_size: Examples per training step, over all devices.
        validation: Images and labels of the validation split; or examples held out from training, a count or a
            fraction of those that are not test.
        test: Images and labels of the test split; or examples held out, a count or a fraction.
        size: Height and width, in pixels, to resize every image to; None keeps the size of the arrays.
        classes: Class names in label order. None uses the sorted names in `y`, or the integers.
        augment: Augmentation of the training images, or None.

    Raises:
        RecipeError: If `validation` or `test` is neither a number nor a pair of arrays.
    """
    pairs, counts = {"train": (x, y)}, {}
    for split_name, value in {"validation": validation, "test": test}.items():
        if isinstance(value, int | float):
            counts[split_name] = value
            continue
        if not (isinstance(value, tuple | list) and len(value) == 2):
            raise RecipeError(
                f"arrays: {split_name} must be images and labels, (x, y), or a count or fraction to hold out. "
                f"Received: {type(value).__name__}"
            )
        pairs[split_name], counts[split_name] = (value[0], value[1]), 0
    reader = MemoryArrays(
        pairs={name: (np.asarray(images), np.asarray(labels)) for name, (images, labels) in pairs.items()},
        size=None if size is None else (size[0], size[1]),
        classes=None if classes is None else tuple(classes),
    )
    return DataConfig(
        name="arrays",
        batch_size=batch_size,
        reader=reader,
        validation=counts["validation"],
        test=counts["test"],
        augment=augment,
    )


def npz(
    path: str | os.PathLike,
    batch_size: int,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    augment: Augmentation | None = None,
) -> DataConfig:
    """Images and labels in an `.npz` file, as of `arrays`, which is read when a run needs it.

    The file has the arrays `x_train` and `y_train` or, as MedMNIST's, `train_images` and `train_labels`; likewise for
    `test` and `validation` (also spelled `val`, `valid` or `dev`), which without `test` is the test split. A file with
    `x` and `y`, or `images` and `labels`, has no splits. An array `classes` has the class names. Pickled arrays are
    rejected, since loading one can run any code.

    Args:
        path: The file.
        batch_size: Examples per training step, over all devices.
        validation: Examples held out for validation if the file has no such split, a count or a fraction.
        test: Examples held out for test if the file has no such split, a count or a fraction.
        size: Height and width, in pixels, to resize every image to; None keeps the size of the arrays.
        classes: Class names in label order; None uses those of the file, or the sorted labels.
        augment: Augmentation of the training images, or None.
    """
    reader = ArrayFile(
        path=expand_home(path),
        size=None if size is None else (size[0], size[1]),
        classes=None if classes is None else tuple(classes),
    )
    return DataConfig(
        name=f"npz({os.fspath(path)!r})",
        batch_size=batch_size,
        reader=reader,
        validation=validation,
        test=test,
        augment=augment,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MemoryArrays:
    """Reader of arrays in memory.

    Args:
        pairs: Images and labels of `"train"`, and of `"validation"` and `"test"` where they are given.
        size: Height and width to resize to, or None.
        classes: Class names in label order, or None.
    """

    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]
    size: tuple[int, int] | None
    classes: tuple[str, ...] | None
    hint: str = (
        "Fix the arrays listed above (y.argmax(axis=1) turns one-hot labels into integers), then run the command again."
    )

    def find(self) -> ReadResult:
        return _read_arrays(self.pairs, self.size, self.classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayFile:
    """Reader of an `.npz` file.

    Args:
        path: The file.
        size: Height and width to resize to, or None.
        classes: Class names in label order, or None.
    """

    path: Path
    size: tuple[int, int] | None
    classes: tuple[str, ...] | None
    hint: str = "Fix the arrays listed above (or change the sizes in the recipe), then run the command again."

    def find(self) -> ReadResult:
        named = read_npz(self.path, f"Use an .npz file with {_ACCEPTED_NAMES}.")
        pairs, notes = _pair_arrays(self.path, named)
        stored = next((tuple(map(str, named[name].ravel())) for name in _CLASS_NAMES if name in named), None)
        found = _read_arrays(pairs, self.size, self.classes or stored)
        return dataclasses.replace(found, notes=[*notes, *found.notes])


def read_npz(path: Path, hint: str) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` file. Pickled ones are rejected, since loading one can run any code.

    Args:
        path: The file.
        hint: What to do otherwise; the last line of the error message.

    Raises:
        DataError: If there is no such file, it is damaged, or it contains pickled objects.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        AttributeError,
    ) as error:  # AttributeError: a single .npy
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"cannot read {path} ({reason}).\n  {hint}") from error


def _pair_arrays(path: Path, named: Mapping[str, Any]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Return the images and labels of each split, and one sentence per decision."""
    images, labels = _names_by_split(named, _IMAGE_WORDS), _names_by_split(named, _LABEL_WORDS)
    problems = [f"{images[split]}: there are no labels for it" for split in images if split not in labels]
    problems += [f"{labels[split]}: there are no images for it" for split in labels if split not in images]
    by_split, assignment_problems, notes = assign_splits(split for split in images if split_named(split))
    if "" in images and "train" in by_split:
        problems.append(f"{images['']}: the array belongs to no split; there is {images[by_split['train']]}")
    elif "" in images:  # `x` and `y`
        by_split = {"train": "", **by_split}
    elif "train" not in by_split:
        listed = ", ".join(named) or "nothing"
        problems.append(f"there are no training images and labels; the file contains {listed}")
    raise_if_problems(str(path), problems + assignment_problems, f"Use {_ACCEPTED_NAMES}.")
    return {split: (named[images[name]], named[labels[name]]) for split, name in by_split.items()}, notes


def _names_by_split(names: Iterable[str], words: Sequence[str]) -> dict[str, str]:
    """Return the names that contain one of `words`, by their split as it is spelled."""
    found = {_split_of(name, words): name for name in names}
    return {split: name for split, name in found.items() if split is not None}


def _split_of(name: str, words: Sequence[str]) -> str | None:
    """Return the split in the name of an array, as it is spelled: `"val"` of `"val_images"`, `""` of `"images"`.

    None if the name does not contain one of `words`.
    """
    parts = name.lower().split("_")
    others = [part for part in parts if part not in words]
    if len(others) + 1 != len(parts) or len(others) > 1:
        return None
    return "".join(others) if not others or split_named(others[0]) else None


def _read_arrays(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], size: tuple[int, int] | None, classes: Sequence[str] | None
) -> ReadResult:
    """Return the examples of each split and their problems."""
    names = {split: (f"x_{split}", f"y_{split}") if len(pairs) > 1 else ("x", "y") for split in pairs}
    labels = {split: y[:, 0] if y.shape[1:] == (1,) else y for split, (_, y) in pairs.items()}
    class_names = _class_names(list(labels.values())) if classes is None else tuple(classes)
    scale, notes = _float_scale([x for x, _ in pairs.values()])
    problems, splits = [], {}
    for split, (x, _) in pairs.items():
        x_name, y_name = names[split]
        codes, label_problems = _encode_labels(labels[split], class_names, y_name)
        images, image_problems = _to_uint8(x, scale, x_name)
        found = [*image_problems, *label_problems]
        if len(x) != len(labels[split]):
            found.append(f"{x_name} has {len(x)} images, {y_name} has {len(labels[split])} labels")
        if not found and split == "train":
            found = checks.check_classes(codes, class_names, y_name)
        problems += found
        splits[split] = _empty_split() if found else Split(images=InMemoryImages(_resize(images, size)), labels=codes)
    shapes = {splits[split].image_shape for split in splits}
    if not problems and len(shapes) > 1:
        listed = ", ".join(f"{names[split][0]} {splits[split].image_shape}" for split in splits)
        problems.append(f"the splits have images of different shapes: {listed}")
    return ReadResult(classes=class_names, problems=problems, notes=notes, **splits)


def _class_names(labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Return the sorted names in the labels; for integers those up to the largest one."""
    if all(y.dtype.kind in "iu" and y.size for y in labels):
        largest = max(int(y.max()) for y in labels)
        return tuple(map(str, range(min(largest, _MAX_EMPTY_CLASSES + sum(y.size for y in labels)) + 1)))
    return tuple(sorted({str(name) for y in labels if y.dtype.kind in "USO" for name in y.ravel()}))


def _encode_labels(labels: np.ndarray, classes: Sequence[str], name: str) -> tuple[np.ndarray, list[str]]:
    """Return integers, int32 `(examples,)`, and the problems of the labels."""
    if labels.dtype.kind in "USO" and labels.ndim == 1:
        codes = {class_name: code for code, class_name in enumerate(classes)}
        texts = list(map(str, labels))
        unknown = [
            f"{name}: label {text!r} at row {row} is no class" for row, text in enumerate(texts) if text not in codes
        ]
        return np.array([codes.get(text, 0) for text in texts], np.int32), unknown
    problems = checks.check_labels(labels, len(classes), name)
    return (np.zeros(0, np.int32) if problems else labels.astype(np.int32)), problems


def _float_scale(images: Sequence[np.ndarray]) -> tuple[float, list[str]]:
    """Return the factor that maps floats to 0 to 255, and a sentence that states it."""
    floats = [x for x in images if x.dtype.kind == "f" and x.size]
    if not floats or any(float(x.max()) > 1 for x in floats):
        return 1.0, []
    return 255.0, ["the images are floats from 0 to 1; they were multiplied by 255 and rounded"]


def _to_uint8(images: np.ndarray, scale: float, name: str) -> tuple[np.ndarray, list[str]]:
    """Return uint8 `(examples, height, width, 3)` and the problems of the images."""
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype.kind not in "uif" or images.ndim != 4 or images.shape[3] not in (1, 3):
        expected = "numbers of shape (examples, height, width, channels) with 1 or 3 channels"
        return images, [f"{name}: {images.dtype} of shape {images.shape}, expected {expected}"]
    if images.dtype.kind == "f":
        low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
        if not (low >= 0 and high * scale <= 255):  # negated, so that NaN is a problem
            return images, [f"{name}: floats from {low:g} to {high:g}, expected 0 to 1 or 0 to 255, not standardized"]
        images = np.rint(images * scale)
    elif images.size and (images.min() < 0 or images.max() > 255):
        return images, [f"{name}: integers from {images.min()} to {images.max()}, expected 0 to 255"]
    images = images.astype(np.uint8, copy=False)
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images, []


def _resize(images: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or images.shape[1:3] == size:
        return images
    starts = range(0, len(images), _RESIZED_AT_ONCE)
    parts = [resize_image(images[start : start + _RESIZED_AT_ONCE], size).numpy() for start in starts]
    return np.concatenate(parts) if parts else np.zeros((0, *size, 3), np.uint8)


def _empty_split() -> Split:
    """A split without examples, in place of invalid arrays."""
    return Split(images=InMemoryImages(np.zeros((0, 1, 1, 3), np.uint8)), labels=np.zeros(0, np.int32))
