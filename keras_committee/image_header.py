"""Encoded images, read after a check of their headers: neither decoded nor in need of TensorFlow."""

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from keras_committee.errors import DataError, raise_if_problems
from keras_committee.folder_kinds import find_images

MAX_PIXELS = 25_000_000  # from the header, before decoding: a PNG of 240 kB may contain 240 MB of pixels


def read_image_bytes(path: str | Path) -> bytes:
    """Read a JPEG or PNG file after checking its header. Raises as `check_image_header`."""
    check_image_header(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def find_image_files(folder: Path) -> list[Path]:
    """Return the JPEG and PNG files of a folder and its subfolders; raise DataError if there are none."""
    files = find_images(folder)
    if not files:
        problem = "the folder contains no JPEG or PNG images" if folder.is_dir() else "there is no such folder"
        raise_if_problems(str(folder), [problem], "Name a folder of JPEG or PNG images.")
    return files


def check_image_header(path: str | Path) -> None:
    """Check the header of a JPEG or PNG file.

    Raises:
        DataError: If the file cannot be read, is in another format, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=("JPEG", "PNG")) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: neither a JPEG nor a PNG file") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: the image exceeds {MAX_PIXELS:,} pixels") from error
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for a damaged header
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: the image exceeds {MAX_PIXELS:,} pixels. Received: {width}x{height}")
