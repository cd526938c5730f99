"""Data sets prepared by TensorFlow Datasets."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from keras_committee.class_folders import split_named
from keras_committee.data.augment import Augmentation
from keras_committee.data.dataset import DataConfig
from keras_committee.data.preprocessing import ImageTransform, resolve_transform
from keras_committee.data.record_index import Fields
from keras_committee.data.tfrecords import ShardReader, named_splits_and_counts
from keras_committee.errors import DataError, RecipeError
from keras_committee.files import expand_home


def tfds(
    name: str,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    transform: ImageTransform | None = None,
    data_dir: str | os.PathLike | None = None,
    train: str = "train",
    validation: float | str = 0.1,
    test: float | str = "test",
    augment: Augmentation | None = None,
    skip_bad: int = 0,
) -> DataConfig:
    """Images of a data set that TensorFlow Datasets has prepared; requires the extra `datasets`.

    Nothing is downloaded: `tfds build NAME` prepares a data set. Its files are TFRecords, read as by
    `imagenet_records`; the class names are those of the data set.

    Args:
        name: Name of the data set, such as `"imagenet2012"`, `"mnist:3.0.1"` or `"cars/small"`.
        batch_size: Examples per training step, over all devices.
        size: Height and width, in pixels, to resize every image to; or
        transform: Image transform, such as `center_crop(224)`.
        data_dir: Folder of the prepared data sets; None uses TensorFlow Datasets' own, `~/tensorflow_datasets`.
        train: Name of the split to train on.
        validation: Name of the validation split; or examples held out from training, a count or a fraction.
        test: Name of the test split, or examples held out. ImageNet's own has no labels; use `test="validation"`.
        augment: Augmentation of the training images, or None.
        skip_bad: Largest number of unreadable images to skip with a warning; with more, all are listed in an error.
    """
    splits, counts = named_splits_and_counts(validation=validation, test=test)
    reader = TfdsReader(
        name=name,
        data_dir=None if data_dir is None else expand_home(data_dir),
        splits={"train": train, **splits},
        transform=resolve_transform("tfds", size, transform),
    )
    return DataConfig(
        name=f"tfds({name!r})",
        batch_size=batch_size,
        reader=reader,
        validation=counts["validation"],
        test=counts["test"],
        augment=augment,
        skip_bad=skip_bad,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsReader(ShardReader):
    """Reader of TensorFlow Datasets' folder, without the code that prepared the data set.

    Args:
        name: Name of the data set, optionally with its configuration and version.
        data_dir: Folder of the prepared data sets, or None.
        splits: Name of the data set's split for `"train"`, `"validation"` and `"test"`.
    """

    name: str
    data_dir: Path | None
    splits: dict[str, str]
    first_label: int = 0

    def shards(self) -> dict[str, list[Path]]:
        info = self._info()
        for split in self.splits.values():
            if split not in info.splits:
                raise DataError(f"{self.name} has no split {split!r}. Its splits are: {', '.join(info.splits)}.")
        return {
            split_name: [Path(path) for path in info.splits[split].filepaths]
            for split_name, split in self.splits.items()
        }

    def roles(self, split_names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        unused = [name for name in self._info().splits if name not in self.splits.values() and split_named(name)]
        return super().roles(split_names)[0], [
            f"the data set's split {name!r} is not used; to use it, set {split_named(name)}={name!r}" for name in unused
        ]

    def expected_counts(self) -> dict[str, int]:
        info = self._info()
        return {split_name: info.splits[split].num_examples for split_name, split in self.splits.items()}

    def class_names(self) -> Sequence[str]:
        info = self._info()
        return info.features[_image_and_label_keys(info)[1]].names

    def field_names(self) -> Fields:
        image, label = _image_and_label_keys(self._info())
        return Fields(image=image, label=label, text="", synset="")

    def _info(self) -> Any:
        return _load_builder(self.name, self.data_dir).info


def _load_builder(name, data_dir):
    """Return the builder of a prepared data set of encoded images and labels in TFRecords."""
    try:
        from tensorflow_datasets.core import read_only_builder
        from tensorflow_datasets.core.registered import DatasetNotFoundError
    except ImportError as error:
        raise RecipeError(f'tfds({name!r}) requires pip install "keras-committee[datasets]": {error}') from error
    options = {} if data_dir is None else {"data_dir": str(data_dir)}
    try:
        builder = read_only_builder.builder_from_files(name, **options)
    except DatasetNotFoundError as error:
        data_dir_option = f" --data_dir={data_dir}" if data_dir else ""
        raise DataError(
            f"{name} is not prepared in {data_dir or '~/tensorflow_datasets'}; nothing is downloaded automatically.\n"
            f"  To prepare it, run: tfds build {name}{data_dir_option}"
        ) from error
    _check_format(name, builder.info)
    return builder


def _check_format(name, info):
    file_format = info.file_format.value if info.file_format else "tfrecord"
    if file_format != "tfrecord":
        raise DataError(
            f"{name} is prepared as {file_format}; only tfrecord is supported. Prepare it with --file_format=tfrecord."
        )
    features = {key: type(info.features[key]).__name__ for key in info.features}
    image, label = _image_and_label_keys(info)
    if features.get(image) != "Image" or features.get(label) != "ClassLabel":
        feature_list = ", ".join(f"{key}: {kind}" for key, kind in features.items())
        raise DataError(
            f"{name} is not an image classification data set, with an Image and a ClassLabel. "
            f"Its features: {feature_list}"
        )


def _image_and_label_keys(info):
    """Return the names of the features with image and label."""
    return info.supervised_keys if info.supervised_keys and len(info.supervised_keys) == 2 else ("image", "label")
