"""Image files: formats, headers, and the conversion of what TensorFlow does not decode. Nothing here needs TensorFlow.

TensorFlow decodes JPEG and PNG, in training, evaluation and the exported graph alike. Any other format is decoded by
Pillow, once it is read, to a PNG of the same pixels: so they are the same for every command.
"""

import functools
import importlib.util
import io
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from keras_committee.errors import DataError, raise_if_problems
from keras_committee.folder_kinds import find_images

PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # first bytes of the files
MAX_PIXELS = 25_000_000  # from the header, before decoding: a PNG of 240 kB may contain 240 MB of pixels
_DAMAGED_TEXT = "damaged or cut off, it cannot be decoded"
NO_IMAGE = "not a JPEG, PNG, WebP, BMP, GIF or AVIF file"
_DAMAGED = (OSError, ValueError, SyntaxError)  # what Pillow raises for a damaged file


def read_image_bytes(path: str | Path) -> bytes:
    """Read an image file after checking its header: a JPEG or PNG as it is, another format as a PNG of its pixels.

    Raises as `check_image_header`, and DataError if the file of another format is damaged.
    """
    check_image_header(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return to_jpeg_or_png(content, compress_level=1)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def to_jpeg_or_png(content: bytes, compress_level: int = 0) -> bytes:
    """Return the content of a JPEG or PNG as it is, that of another format as a PNG of its pixels.

    Of several frames the first counts. Grayscale and palettes become RGB, transparency is dropped, and no rotation is
    applied, as for JPEG and PNG.

    Args:
        content: Content of the file.
        compress_level: 0, fastest, to 9, smallest.

    Raises:
        DataError: If it is in no supported format, damaged, or has more than `MAX_PIXELS` pixels.
    """
    if content.startswith((JPEG_MAGIC, PNG_MAGIC)):
        return content
    if not content:
        raise DataError("the file is empty")
    _checked_size(io.BytesIO(content))
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=_formats()) as image:
            pixels = image.convert("RGB")
    except _DAMAGED as error:
        raise DataError(_DAMAGED_TEXT) from error
    png = io.BytesIO()
    pixels.save(png, "PNG", compress_level=compress_level)
    return png.getvalue()


def find_image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders; raise DataError if there are none."""
    files = find_images(folder)
    if not files:
        problem = "the folder contains no images" if folder.is_dir() else "there is no such folder"
        raise_if_problems(str(folder), [problem], "Name a folder of images, such as JPEG or PNG files.")
    return files


def check_image_header(path: str | Path) -> None:
    """Check the header of an image file.

    Raises:
        DataError: If the file cannot be read, is in no supported format, or has more than `MAX_PIXELS` pixels.
    """
    try:
        _checked_size(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def image_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """Return width and height in pixels, from the header.

    Raises:
        DataError: If the file cannot be read, or is in no supported format.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=_formats()) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise DataError(_DAMAGED_TEXT if _is_other_format(file) else NO_IMAGE) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"the image exceeds {MAX_PIXELS:,} pixels") from error
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None)
        raise DataError(f"cannot be read ({reason})" if reason else _DAMAGED_TEXT) from error


def _checked_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """Return `image_size`; raise DataError if there are more than `MAX_PIXELS` pixels."""
    width, height = image_size(file)
    if width * height > MAX_PIXELS:
        raise DataError(f"the image exceeds {MAX_PIXELS:,} pixels. Received: {width}x{height}")
    return width, height


def _is_other_format(file: str | Path | BinaryIO) -> bool:
    """Return whether a file that Pillow does not identify starts like a BMP, GIF, WebP or AVIF."""
    if isinstance(file, str | Path):
        with open(file, "rb") as opened:
            head = opened.read(12)
    else:
        file.seek(0)
        head = file.read(12)
    return head.startswith((b"GIF8", b"BM")) or head[8:] in (b"WEBP", b"avif", b"avis")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are read, as Pillow names them; AVIF since Pillow 11.3."""
    avif = ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()
    return ("JPEG", "PNG", "WEBP", "BMP", "GIF", *avif)
