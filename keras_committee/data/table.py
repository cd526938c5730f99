"""Images that a CSV or Parquet file lists, with their labels."""

import dataclasses
import os
from pathlib import Path

from keras_committee.data.augment import Augmentation
from keras_committee.data.dataset import DataConfig, ReadResult
from keras_committee.data.image_folder import read_listing
from keras_committee.data.preprocessing import ImageTransform, resolve_transform
from keras_committee.files import expand_home
from keras_committee.image_tables import TableColumns, list_table


def table(
    path: str | os.PathLike,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    transform: ImageTransform | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = "split",
    root: str | os.PathLike | None = None,
    suffix: str = "",
    validation: float = 0.1,
    test: float = 0.2,
    augment: Augmentation | None = None,
    skip_bad: int = 0,
) -> DataConfig:
    """Image files that a CSV or Parquet file lists, with their labels.

    A CSV file is UTF-8 text with the names of the columns in its first line; the separator is a comma, semicolon, tab
    or bar. Parquet requires the extra `parquet`. The classes are the sorted labels, ordered by value if all of them are
    integers. The examples are ordered by class and path, whatever the order of the rows, so a table of the files of an
    `image_folder` has its splits.

    The column of splits, if there is one, has `train` and `test`, `validation` or both, in any spelling that
    `image_folder` recognizes; `validation` without `test` is the test split. A row that repeats another one is left
    out; an image with two labels, or in two splits, is an error.

    Args:
        path: The table.
        batch_size: Examples per training step, over all devices.
        size: Height and width, in pixels, to resize every image to; or
        transform: Image transform, such as `center_crop(224)`.
        image_column: Name of the column of paths; None recognizes names such as `image`, `path` and `filename`.
        label_column: Name of the column of labels; None recognizes names such as `label`, `class` and `category`.
        split_column: Name of the column of splits; there may be none called `"split"`. None ignores it.
        root: The folder that relative paths start from; None is the folder of the table.
        suffix: Text appended to each path, such as `".jpg"` where the table has names without it.
        validation: Examples held out for validation if the table has no such split, a count or a fraction.
        test: Examples held out for test if the table has no such split, a count or a fraction.
        augment: Augmentation of the training images, or None.
        skip_bad: Largest number of missing or unreadable images to skip with a warning; with more, all are listed in an
            error.
    """
    file = expand_home(path)
    reader = ImageTable(
        path=file,
        root=file.parent if root is None else expand_home(root),
        transform=resolve_transform("table", size, transform),
        columns=TableColumns(image=image_column, label=label_column, split=split_column, suffix=suffix),
    )
    return DataConfig(
        name=f"table({os.fspath(path)!r})",
        batch_size=batch_size,
        reader=reader,
        validation=validation,
        test=test,
        augment=augment,
        skip_bad=skip_bad,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTable:
    """Reader of a table of image files.

    Args:
        path: The table.
        root: The folder that relative paths start from.
        transform: The transform from a file's image to one of the split's.
        columns: Its columns.
    """

    path: Path
    root: Path
    transform: ImageTransform
    columns: TableColumns

    @property
    def hint(self) -> str:
        """What to do about missing and unreadable images."""
        return (
            f"Fix or remove what is listed above; relative paths start from {self.root}, which `root` changes. In the "
            "recipe, skip_bad=N skips up to N images. Then run the command again."
        )

    def find(self) -> ReadResult:
        return read_listing(list_table(self.path, self.root, self.columns), self.root, self.transform)
