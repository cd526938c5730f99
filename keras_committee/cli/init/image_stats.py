"""What images does a user have: how many of each class, and how large? Only the headers of the files are read."""

import dataclasses
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from keras_committee.class_folders import HINT, list_images
from keras_committee.errors import raise_if_problems

MAX_IMAGES_OPENED = 2_000  # headers, evenly spread over the files: enough for a median


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageStats:
    """What recipes depend on.

    Args:
        class_counts: Images of each class, of all splits.
        training_counts: Images of each class that are for training, before anything is held out.
        held_out: Which of `"validation"` and `"test"` have folders of their own.
        median_side: Median over the images of their shorter side, in pixels.
        first_label: The label of the first class where they lie in TFRecords; None for folders.
    """

    class_counts: dict[str, int]
    training_counts: dict[str, int]
    held_out: tuple[str, ...]
    median_side: int
    first_label: int | None = None

    @property
    def num_images(self) -> int:
        return sum(self.class_counts.values())

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has for training as the smallest."""
        return max(self.training_counts.values()) / min(self.training_counts.values())


def collect_image_stats(directory: Path) -> ImageStats:
    """Looks at class folders.

    Raises:
        DataError: Names all that is wrong with the folders, and the headers that cannot be read; as training does.
    """
    listing = list_images(directory)
    names = [name for split in listing.splits.values() for images in split.values() for name in images]
    sides, unreadable = shorter_sides({name: directory / name for name in subsample(names)})
    class_problems = [] if listing.problems else class_count_problems(listing.classes)
    raise_if_problems(f"image_folder({str(directory)!r})", [*listing.problems, *class_problems, *unreadable], HINT)
    training = {name: len(images) for name, images in listing.splits["train"].items()}
    counts = {name: sum(len(split[name]) for split in listing.splits.values()) for name in listing.classes}
    held_out = tuple(split for split in ("validation", "test") if split in listing.splits)
    return ImageStats(
        class_counts=counts, training_counts=training, held_out=held_out, median_side=round(statistics.median(sides))
    )


def subsample(rows: Sequence) -> Sequence:
    """Every so-manieth of them: MOST_OPENED, or up to twice as many."""
    return rows[:: max(1, len(rows) // MAX_IMAGES_OPENED)]


def class_count_problems(classes: Sequence[str]) -> list[str]:
    """What is wrong with the number of classes."""
    return [] if len(classes) > 1 else ["there is only one class; a classifier needs two"]


def shorter_sides(images: Mapping[str, Path | BinaryIO]) -> tuple[list[int], list[str]]:
    """The shorter sides of the images, and what is wrong with those that have none, by their names."""
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
        return 0, "the file is empty" if empty else "neither a JPEG nor a PNG, whatever its name says"
    except Image.DecompressionBombError:
        return 0, "too large"
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's words for a damaged header
        return 0, f"cannot be read ({getattr(error, 'strerror', None) or error})"
