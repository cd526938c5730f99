"""How does a picture that belongs to no split become pixels, as those of training do?"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from keras_committee.class_folders import IMAGE_SUFFIXES
from keras_committee.data.dataset import stratified_indices
from keras_committee.data.preprocessing import ImageTransform, decode_image
from keras_committee.errors import DataError, raise_if_problems

MAX_PIXELS = 25_000_000  # told by the header: a PNG of 240 kB may hold 240 MB of pixels


def read_image_bytes(path: str | Path) -> bytes:
    """The bytes of a JPEG or PNG file, whose header says that it is one and not too large.

    Raises:
        DataError: If it cannot be read, is in another format, or has more than MOST_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=("JPEG", "PNG")) as opened:
            width, height = opened.size
        content = Path(path).read_bytes()
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: neither a JPEG nor a PNG, whatever its name says") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large; at most {MAX_PIXELS:,} pixels are read") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's words for a damaged header
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} pixels are too large; at most {MAX_PIXELS:,} are read")
    return content


def read_image(path: str | Path, transform: ImageTransform) -> np.ndarray:
    """The pixels of one JPEG or PNG file, uint8 `(height, width, 3)`, decoded and framed as in evaluation.

    Raises:
        DataError: If it is none, damaged, or too large.
    """
    return read_image_with_transforms(path, [transform])[0]


def read_image_with_transforms(path: str | Path, transforms: Sequence[ImageTransform]) -> list[np.ndarray]:
    """The same under several framings; the file is decoded once."""
    try:
        with tf.device("CPU:0"):
            pixels = decode_image(read_image_bytes(path))
            return [transform.apply(pixels).numpy() for transform in transforms]
    except tf.errors.InvalidArgumentError as error:
        raise DataError(f"{path}: damaged or cut off, it cannot be decoded") from error


def read_image_folder(folder: Path, max_images: int, transform: ImageTransform) -> np.ndarray:
    """The JPEG and PNG images in a folder and in those inside it: uint8 `(examples, height, width, 3)`.

    Args:
        folder: The folder.
        max_images: At most so many, evenly spread over the sorted names.
        transform: Which part of each is seen, and at which size.

    Raises:
        DataError: If there are none, or names each that cannot be read.
    """
    hint = "Name a folder of JPEG or PNG images, and remove what is named above."
    files = sorted(path for path in folder.rglob("*") if _is_image_file(path))
    if not files:
        raise_if_problems(str(folder), ["it holds no JPEG or PNG image" if folder.is_dir() else "no such folder"], hint)
    images, problems = [], []
    for index in stratified_indices(np.zeros(len(files), np.int32), max_images):
        try:
            images.append(read_image(files[index], transform))
        except DataError as error:
            problems.append(str(error))
    raise_if_problems(str(folder), problems, hint)
    return np.stack(images)


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
