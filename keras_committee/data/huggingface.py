"""Images of Hugging Face `datasets` that were saved on disk."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.class_folders import SPLIT_SPELLINGS, assign_splits, split_named
from keras_committee.data import validation as checks
from keras_committee.data.augment import Augmentation
from keras_committee.data.dataset import DataConfig, ReadResult
from keras_committee.data.images import BatchedImages, user_cache_paths
from keras_committee.data.preprocessing import ImageTransform, resolve_transform
from keras_committee.data.splits import Split
from keras_committee.errors import DataError, RecipeError, raise_if_problems
from keras_committee.files import expand_home
from keras_committee.image_header import to_jpeg_or_png

_TAIL_BYTES = 1024
_SAVE_HINT = 'Save it with `load_dataset("NAME").save_to_disk("PATH")`.'


def hf(
    path: str | os.PathLike,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    transform: ImageTransform | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    splits: Mapping[str, str] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    augment: Augmentation | None = None,
    skip_bad: int = 0,
) -> DataConfig:
    """Images of a Hugging Face data set that `save_to_disk` wrote; requires the extra `hf`.

    Nothing is downloaded, and no code of the data set is executed. The examples keep their order; they are read from
    the memory-mapped files when they are needed. The classes are those of the column of type `ClassLabel`.

    A `DatasetDict` has a split `train`, and `test`, `validation` or both, in any spelling that `image_folder`
    recognizes; `validation` without `test` is the test split. A single `Dataset` is the training split.

    Args:
        path: The folder.
        batch_size: Examples per training step, over all devices.
        size: Height and width, in pixels, to resize every image to; or
        transform: Image transform, such as `center_crop(224)`.
        image_column: Name of the column of type `Image`; None takes the only one.
        label_column: Name of the column of type `ClassLabel`; None takes the only one.
        splits: Name of the split in the folder for `"train"`, `"validation"` and `"test"`; one without a name is held
            out. None recognizes them by their names.
        validation: Examples held out for validation if there is no such split, a count or a fraction.
        test: Examples held out for test if there is no such split, a count or a fraction.
        augment: Augmentation of the training images, or None.
        skip_bad: Largest number of unreadable images to skip with a warning; with more, all are listed in an error.

    Raises:
        RecipeError: If `splits` has unknown splits, or no training split.
    """
    if splits is not None and ("train" not in splits or set(splits) - set(SPLIT_SPELLINGS)):
        raise RecipeError(
            'hf: splits must name the split of "train", and may name those of "validation" and "test". '
            f"Received: splits={dict(splits)}"
        )
    reader = SavedDataset(
        path=expand_home(path),
        transform=resolve_transform("hf", size, transform),
        image_column=image_column,
        label_column=label_column,
        splits=splits,
    )
    return DataConfig(
        name=f"hf({os.fspath(path)!r})",
        batch_size=batch_size,
        reader=reader,
        validation=validation,
        test=test,
        augment=augment,
        skip_bad=skip_bad,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedDataset:
    """Reader of a folder that `save_to_disk` wrote.

    Args:
        path: The folder.
        transform: The transform from an image to one of the split's.
        image_column: Name of the column of images, or None.
        label_column: Name of the column of labels, or None.
        splits: Names of the splits in the folder, or None.
    """

    path: Path
    transform: ImageTransform
    image_column: str | None = None
    label_column: str | None = None
    splits: Mapping[str, str] | None = None
    hint: str = (
        "Save the data set without what is listed above (in the recipe, skip_bad=N skips up to N unreadable images), "
        "then run the command again."
    )

    def find(self) -> ReadResult:
        datasets, loaded = _import_datasets(self.path), _load_from_disk(self.path)
        parts = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
        names, notes = self._assign(parts)
        first = parts[names["train"]]
        image = _only_column(self.path, first.features, datasets.Image, "image", self.image_column)
        label = _only_column(self.path, first.features, datasets.ClassLabel, "label", self.label_column)
        classes = tuple(first.features[label].names)
        problems, splits = [], {}
        for split, name in names.items():
            part = parts[name]
            if {image, label} - set(part.features) or tuple(part.features[label].names) != classes:
                raise DataError(
                    f"{self.path}: the split {name!r} has other columns or classes than {names['train']!r}."
                )
            values = part.with_format(None)[label][:]
            labels = np.array([-1 if value is None else value for value in values], np.int64)
            problems += checks.check_labels(labels, len(classes), f"{name}: {label}")
            images = ArrowImages(
                dataset=part.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None),
                column=image,
                fingerprint=part._fingerprint,
                split=name,
                folder=self.path,
                rows=np.arange(len(part)),
                transform=self.transform,
            )
            splits[split] = Split(images=images, labels=labels.astype(np.int32))
        raise_if_problems(str(self.path), problems, "Label -1 is an example without a label: leave out its split.")
        return ReadResult(classes=classes, notes=notes, **splits)

    def _assign(self, parts: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
        """Return the name in the folder of each split, and one sentence per decision."""
        hint = 'Name them in the recipe, such as splits={"train": "NAME", "test": "NAME"}.'
        if self.splits:
            absent = [f"there is no split {name!r}" for name in self.splits.values() if name not in parts]
            raise_if_problems(str(self.path), absent, f"Its splits are: {', '.join(parts)}.")
            return dict(self.splits), []
        names, problems, notes = assign_splits(filter(split_named, parts))
        if "train" not in names:
            problems.append(f"there is no split train; the splits are {', '.join(parts)}")
        raise_if_problems(str(self.path), problems, hint)
        notes += [f"the split {name!r} is not used; to use it, set splits" for name in parts if not split_named(name)]
        return names, notes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ArrowImages(BatchedImages):
    """Encoded images in a column of a memory-mapped data set.

    Args:
        dataset: The data set, with the column as bytes and paths.
        column: Name of the column.
        fingerprint: Changes with the content of the data set.
        split: Name of the split, for messages.
        folder: Folder of the data set.
        rows: Rows of the data set, in the order of the examples: int64 `(examples,)`.
        transform: The transform from an image to one of the split's.
        require_exact_size: Whether the images must have the size of the transform; otherwise they are transformed.
    """

    dataset: Any
    column: str
    fingerprint: str
    split: str
    folder: Path
    rows: np.ndarray
    transform: ImageTransform
    require_exact_size: bool = False

    def read_batch(self, indices: np.ndarray) -> np.ndarray:
        """Read the images at `indices`: bytes `(batch,)` of dtype object. Raises OSError or DataError."""
        contents = np.empty(len(indices), object)
        contents[:] = [self.read(index) for index in indices]
        return contents

    def name(self, index: int) -> str:
        row = int(self.rows[index])
        path = self._value(index)["path"]
        return f"{self.split}, row {row}{f' ({os.path.basename(path)})' if path else ''}"

    def read(self, index: int) -> bytes:
        """Read a JPEG or PNG as it is, another format as a PNG of its pixels. Raises OSError or DataError."""
        return to_jpeg_or_png(self._encoded(index))

    def head_and_tail(self, index: int) -> tuple[bytes, bytes]:
        content = self._encoded(index)
        return content[:16], content[-16:]

    def source_id(self) -> bytes:
        """Return the SHA-256 of every size in bytes and last kilobyte, as of image files."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            content = self._encoded(index)
            digest.update(f"{len(content)}\0".encode() + content[-_TAIL_BYTES:])
        return digest.digest()

    def content_keys(self) -> np.ndarray:
        """Return keys of the rows and of the fingerprint that `datasets` gives to the content of a data set."""
        keys = [hashlib.sha256(f"{self.fingerprint}\0{row}".encode()).digest()[:8] for row in self.rows]
        return np.array([int.from_bytes(key, "little") for key in keys], np.uint64)

    def cache_paths(self) -> list[Path]:
        return user_cache_paths(self.folder, "decoded.npy")

    def _value(self, index: int) -> dict[str, Any]:
        return self.dataset[int(self.rows[index])][self.column] or {"bytes": None, "path": None}

    def _encoded(self, index: int) -> bytes:
        value = self._value(index)
        if value["bytes"] is not None:
            return value["bytes"]
        return Path(value["path"]).read_bytes() if value["path"] else b""


def _import_datasets(path: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RecipeError(f'hf({str(path)!r}) requires pip install "keras-committee[hf]": {error}') from error
    return datasets


def _load_from_disk(path: Path) -> Any:
    """Return the `Dataset`, or the splits of a `DatasetDict`; raise DataError unless there is one."""
    import datasets

    if not path.is_dir():
        reason = "is not a folder" if path.exists() else "there is no such folder"
        raise_if_problems(str(path), [reason], _SAVE_HINT)
    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise_if_problems(str(path), ["it is not a data set that `save_to_disk` wrote"], _SAVE_HINT)
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # of `datasets`, Arrow or JSON, for whatever is damaged or missing
        raise DataError(f"{path}: the data set cannot be read ({error}). Save it again.") from error


def _only_column(path: Path, features: Mapping[str, Any], kind: type, role: str, name: str | None) -> str:
    """Return the name of the column of a type; raise DataError if there are none or several."""
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if name in found or (name is None and len(found) == 1):
        return name or found[0]
    listed: Sequence[str] = [f"{column}: {type(feature).__name__}" for column, feature in features.items()]
    what = f"no column {name!r} of type {kind.__name__}" if name else f"{len(found)} columns of type {kind.__name__}"
    raise DataError(
        f"{path}: there {'is' if name or len(found) == 1 else 'are'} {what}; expected one, for the {role}. "
        f"Its columns: {', '.join(listed)}.\n"
        f"  Name it with {role}_column, or cast the column and save the data set again."
    )
