"""What images does a user have: how many of each class, and how large? Only the headers of the files are read."""

import dataclasses
import statistics
import warnings
from pathlib import Path

from keras_committee.class_folders import MEND, Listing, list_images
from keras_committee.errors import refuse

MOST_OPENED = 2_000  # headers, evenly spread over the files: enough for a median


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What recipes depend on.

    Args:
        counts: Images of each class, of all splits.
        training: Images of each class that are for training, before anything is held out.
        held_out: Which of `"validation"` and `"test"` have folders of their own.
        side: Median over the images of their shorter side, in pixels.
    """

    counts: dict[str, int]
    training: dict[str, int]
    held_out: tuple[str, ...]
    side: int

    @property
    def images(self) -> int:
        return sum(self.counts.values())

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has for training as the smallest."""
        return max(self.training.values()) / min(self.training.values())


def survey(directory: Path) -> Survey:
    """Looks at class folders.

    Raises:
        DataError: Names all that is wrong with the folders, and the headers that cannot be read; as training does.
    """
    listing = list_images(directory)
    sides, unreadable = _sides(directory, listing)
    few = [] if len(listing.classes) > 1 or listing.problems else ["there is only one class; a classifier needs two"]
    refuse(f"image_folder({str(directory)!r})", [*listing.problems, *few, *unreadable], MEND)
    training = {name: len(images) for name, images in listing.splits["train"].items()}
    counts = {name: sum(len(split[name]) for split in listing.splits.values()) for name in listing.classes}
    held_out = tuple(part for part in ("validation", "test") if part in listing.splits)
    return Survey(counts=counts, training=training, held_out=held_out, side=round(statistics.median(sides)))


def _sides(directory: Path, listing: Listing) -> tuple[list[int], list[str]]:
    """The shorter sides of at most MOST_OPENED images, and what is wrong with those that have none."""
    names = [name for split in listing.splits.values() for images in split.values() for name in images]
    sides, problems = [], []
    for name in names[:: max(1, len(names) // MOST_OPENED)]:
        side, problem = _side(directory / name)
        sides += [side] if side else []
        problems += [f"{name}: {problem}"] if problem else []
    return sides, problems


def _side(path: Path) -> tuple[int, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=("JPEG", "PNG")) as image:
            return min(image.size), ""
    except UnidentifiedImageError:
        empty = not path.stat().st_size
        return 0, "the file is empty" if empty else "neither a JPEG nor a PNG, whatever its name says"
    except Image.DecompressionBombError:
        return 0, "too large"
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's words for a damaged header
        return 0, f"cannot be read ({getattr(error, 'strerror', None) or error})"
