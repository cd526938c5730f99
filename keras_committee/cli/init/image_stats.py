"""Statistics of the images in class folders and tables, from file headers only."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from keras_committee.class_folders import UNREADABLE_HINT, Listing, class_count_problems, list_images
from keras_committee.errors import DataError, raise_if_problems
from keras_committee.image_tables import TableColumns, list_table

_MAX_IMAGES_OPENED = 2_000  # headers, evenly spread over the files: enough for a median


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageStats:
    """Statistics that the choices of a new recipe depend on.

    Args:
        class_counts: Number of images per class, over all splits.
        training_counts: Number of training images per class, before a validation or test split is held out.
        held_out: Which of `"validation"` and `"test"` have folders or files of their own.
        median_side: Median of the images' shorter side, in pixels.
        first_label: Label of the first class in TFRecords; None for class folders.
        split_folders: Folder of each split, to be stated in the recipe; None if the names of the folders state it.
        source: Format of the images, as `--from` names it.
        notes: One sentence for each decision between two plausible layouts, and one about skipped files.
    """

    class_counts: dict[str, int]
    training_counts: dict[str, int]
    held_out: tuple[str, ...]
    median_side: int
    first_label: int | None = None
    split_folders: Mapping[str, str] | None = None
    source: str = "image-folder"
    notes: Sequence[str] = ()

    @property
    def num_images(self) -> int:
        return sum(self.class_counts.values())

    @property
    def imbalance(self) -> float:
        """Number of training images of the largest class divided by that of the smallest."""
        return max(self.training_counts.values()) / min(self.training_counts.values())


def collect_image_stats(directory: Path, split_folders: Mapping[str, str] | None = None) -> ImageStats:
    """List the images of class folders and read the headers of some.

    Args:
        directory: The root folder.
        split_folders: As in `list_images`.

    Raises:
        DataError: If folders are invalid or headers unreadable. Lists every problem, as training does.
    """
    listing = list_images(directory, split_folders=split_folders)
    if split_folders is None and listing.notes:
        split_folders = listing.split_folders
    stats = _stats_of_listing(listing, directory, f"image_folder({str(directory)!r})")
    return dataclasses.replace(stats, split_folders=split_folders)


def collect_table_stats(path: Path) -> ImageStats:
    """List the images of a CSV or Parquet file, as `data.table` does, and read the headers of some.

    Raises:
        DataError: If the table is invalid or headers unreadable. Lists every problem, as training does.
        RecipeError: If a package that reads Parquet is missing.
    """
    listing = list_table(path, path.parent, TableColumns())
    return dataclasses.replace(_stats_of_listing(listing, path.parent, f"table({str(path)!r})"), source="table")


def _stats_of_listing(listing: Listing, root: Path, name: str) -> ImageStats:
    names = [image for split in listing.splits.values() for images in split.values() for image in images]
    sides, unreadable = shorter_sides({image: root / image for image in subsample(names)})
    class_problems = [] if listing.problems else class_count_problems(listing.classes)
    problems = [*listing.problems, *class_problems, *unreadable]
    raise_if_problems(name, problems, UNREADABLE_HINT if unreadable else listing.hint)
    return ImageStats(
        class_counts={name: sum(len(split[name]) for split in listing.splits.values()) for name in listing.classes},
        training_counts={name: len(images) for name, images in listing.splits["train"].items()},
        held_out=tuple(split for split in ("validation", "test") if split in listing.splits),
        median_side=round(statistics.median(sides)),
        notes=[*listing.notes, *listing.warnings],
    )


def subsample(rows: Sequence) -> Sequence:
    """Return every k-th row: all of them, or between `_MAX_IMAGES_OPENED` and twice as many."""
    return rows[:: max(1, len(rows) // _MAX_IMAGES_OPENED)]


def shorter_sides(images: Mapping[str, Path | BinaryIO]) -> tuple[list[int], list[str]]:
    """Return the shorter sides of the readable images, in pixels, and a problem for each of the others."""
    found = {name: _shorter_side(image) for name, image in images.items()}
    problems = [f"{name}: {problem}" for name, (_, problem) in found.items() if problem]
    return [side for side, problem in found.values() if not problem], problems


def _shorter_side(file: Path | BinaryIO) -> tuple[int, str]:
    from keras_committee.image_header import image_size

    if isinstance(file, Path) and file.is_file() and not file.stat().st_size:
        return 0, "the file is empty"
    try:
        return min(image_size(file)), ""
    except DataError as error:
        return 0, str(error)
