"""How does a data set that TensorFlow Datasets has prepared become examples?"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_committee.data.dataset import DataConfig
from keras_committee.data.preprocessing import ImageTransform, resolve_transform
from keras_committee.data.record_index import Fields
from keras_committee.data.tfrecords import ShardReader, named_splits_and_counts
from keras_committee.errors import DataError, RecipeError


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
    augment=None,
) -> DataConfig:
    """Images of a data set that TensorFlow Datasets has prepared; the extra is `datasets`.

    Nothing is downloaded: `tfds build NAME` prepares a data set. Its files are TFRecords, which are read as
    `imagenet_records` reads them; the class names are the data set's.

    Args:
        name: The data set's, such as `"imagenet2012"`, `"mnist:3.0.1"` or `"cars/small"`.
        batch_size: Examples of one training step over all devices.
        size: Height and width, in pixels, that every image is resized to; or
        transform: which part of every image is seen and at which size, such as `center_crop(224)`.
        data_dir: The folder of the prepared data sets; None is TensorFlow Datasets' own, `~/tensorflow_datasets`.
        train: Its split to train on.
        validation: Its split; or what is held out from training, a count or a fraction.
        test: The same for the test split. ImageNet's own has no labels: take `test="validation"`.
        augment: Augmentation of the training images, or None.
    """
    splits, counts = named_splits_and_counts(validation=validation, test=test)
    reader = TfdsReader(
        name=name,
        data_dir=None if data_dir is None else Path(data_dir),
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
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsReader(ShardReader):
    """Reads what lies in TensorFlow Datasets' folder, without the code that prepared it.

    Args:
        name: The data set's, perhaps with its configuration and version.
        data_dir: The folder of the prepared data sets, or None.
        splits: Train, validation and test -> the data set's split.
    """

    name: str
    data_dir: Path | None
    splits: dict[str, str]
    first_label: int = 0

    def shards(self) -> dict[str, list[Path]]:
        info = self._info()
        for split in self.splits.values():
            if split not in info.splits:
                raise DataError(f"{self.name} has no split {split!r}, but {', '.join(info.splits)}. Name one of them.")
        return {
            split_name: [Path(path) for path in info.splits[split].filepaths]
            for split_name, split in self.splits.items()
        }

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
        return _builder(self.name, self.data_dir).info


def _builder(name, data_dir):
    """The builder of a prepared data set of encoded images and labels in TFRecords."""
    try:
        from tensorflow_datasets.core import read_only_builder
        from tensorflow_datasets.core.registered import DatasetNotFoundError
    except ImportError as error:
        raise RecipeError(f'tfds({name!r}) needs pip install "keras-committee[datasets]": {error}') from error
    options = {} if data_dir is None else {"data_dir": str(data_dir)}
    try:
        builder = read_only_builder.builder_from_files(name, **options)
    except DatasetNotFoundError as error:
        data_dir_option = f" --data_dir={data_dir}" if data_dir else ""
        raise DataError(
            f"{name} is not prepared in {data_dir or '~/tensorflow_datasets'}, and nothing is downloaded here.\n"
            f"  Prepare it: tfds build {name}{data_dir_option}"
        ) from error
    _check_features(name, builder.info)
    return builder


def _check_features(name, info):
    file_format = info.file_format.value if info.file_format else "tfrecord"
    if file_format != "tfrecord":
        raise DataError(
            f"{name} is prepared as {file_format}. Prepare it with --file_format=tfrecord, which is read here."
        )
    features = {key: type(info.features[key]).__name__ for key in info.features}
    image, label = _image_and_label_keys(info)
    if features.get(image) != "Image" or features.get(label) != "ClassLabel":
        feature_list = ", ".join(f"{key}: {kind}" for key, kind in features.items())
        raise DataError(
            f"{name} is no image classification, which has an Image and a ClassLabel. Its features: {feature_list}"
        )


def _image_and_label_keys(info):
    """The features that hold image and label."""
    return info.supervised_keys if info.supervised_keys and len(info.supervised_keys) == 2 else ("image", "label")
