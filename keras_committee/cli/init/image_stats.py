"""Statistics of the images in class folders, from file headers only."""

import dataclasses
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from keras_committee.class_folders import UNREADABLE_HINT, class_count_problems, list_images
from keras_committee.errors import raise_if_problems

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
        notes: One sentence for each decision between two plausible layouts, and one about skipped files.
    """

    class_counts: dict[str, int]
    training_counts: dict[str, int]
    held_out: tuple[str, ...]
    median_side: int
    first_label: int | None = None
    split_folders: Mapping[str, str] | None = None
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
    names = [name for split in listing.splits.values() for images in split.values() for name in images]
    sides, unreadable = shorter_sides({name: directory / name for name in subsample(names)})
    class_problems = [] if listing.problems else class_count_problems(listing.classes)
    problems = [*listing.problems, *class_problems, *unreadable]
    raise_if_problems(f"image_folder({str(directory)!r})", problems, UNREADABLE_HINT if unreadable else listing.hint)
    return ImageStats(
        class_counts={name: sum(len(split[name]) for split in listing.splits.values()) for name in listing.classes},
        training_counts={name: len(images) for name, images in listing.splits["train"].items()},
        held_out=tuple(split for split in ("validation", "test") if split in listing.splits),
        median_side=round(statistics.median(sides)),
        split_folders=split_folders if split_folders is not None or not listing.notes else listing.split_folders,
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
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=("JPEG", "PNG")) as image:
            return min(image.size), ""
    except UnidentifiedImageError:
        empty = isinstance(file, Path) and not file.stat().st_size
        return 0, "the file is empty" if empty else "neither a JPEG nor a PNG file"
    except Image.DecompressionBombError:
        return 0, "too large"
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged headers
        return 0, f"cannot be read ({getattr(error, 'strerror', None) or error})"
