"""Reading of single JPEG and PNG files and unlabeled folders, with the pixels of training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_committee.data.dataset import stratified_indices
from keras_committee.data.lazy_tensorflow import tf
from keras_committee.data.preprocessing import ImageTransform, decode_image
from keras_committee.errors import DataError, raise_if_problems
from keras_committee.image_header import find_image_files, read_image_bytes


def read_image(path: str | Path, transform: ImageTransform) -> np.ndarray:
    """Read, decode and transform one JPEG or PNG file, as in evaluation.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        DataError: If the file is not an image, damaged, or too large.
    """
    return read_image_with_transforms(path, [transform])[0]


def read_image_with_transforms(path: str | Path, transforms: Sequence[ImageTransform]) -> list[np.ndarray]:
    """Apply several transforms to one file, which is decoded once; see `read_image`."""
    content = read_image_bytes(path)
    try:
        return decode_with_transforms(content, transforms)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def decode_with_transforms(content: bytes, transforms: Sequence[ImageTransform]) -> list[np.ndarray]:
    """Apply several transforms to the contents of a JPEG or PNG file, which is decoded once.

    Returns:
        For each transform uint8 `(height, width, 3)`.

    Raises:
        DataError: If the file is damaged.
    """
    try:
        with tf.device("CPU:0"):
            pixels = decode_image(content)
            return [transform.apply(pixels).numpy() for transform in transforms]
    except tf.errors.InvalidArgumentError as error:
        raise DataError("damaged or cut off, it cannot be decoded") from error


def read_image_folder(folder: Path, max_images: int, transform: ImageTransform) -> np.ndarray:
    """Read the JPEG and PNG images of a folder and its subfolders.

    Args:
        folder: The folder.
        max_images: Largest number of images, evenly spread over the sorted names.
        transform: The transform of each image.

    Returns:
        uint8 `(examples, height, width, 3)`.

    Raises:
        DataError: If there are no images, or some cannot be read; lists each.
    """
    hint = "Name a folder of JPEG or PNG images, and remove the files listed above."
    files = find_image_files(folder)
    images, problems = [], []
    for index in stratified_indices(np.zeros(len(files), np.int32), max_images):
        try:
            images.append(read_image(files[index], transform))
        except DataError as error:
            problems.append(str(error))
    raise_if_problems(str(folder), problems, hint)
    return np.stack(images)
