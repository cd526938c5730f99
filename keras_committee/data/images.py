"""Where do a split's pixels lie: in memory, or still in their files?

Both kinds answer the same questions: how many, of which shape, `take(indices)`, `gatherer()` for a pipeline and
`digest()`.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_committee.data.decode import decode_image, resize_image

TAIL_BYTES = 1024


class Pixels:
    """Images held in memory as one uint8 tensor `(examples, height, width, channels)` on the CPU.

    The tensor is captured once by each pipeline; numpy would be copied anew for every pipeline.
    """

    parallel_calls = 2  # a gathered batch of 128 CIFAR images takes about 0.3 ms: more threads would only wait

    def __init__(self, array):
        self._array_shape: tuple[int, ...] = array.shape
        with tf.device("CPU:0"):  # a GPU's memory is for the members
            self._tensor = tf.constant(array, dtype=tf.uint8)

    def __len__(self) -> int:
        return self._array_shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return self._array_shape[1:]

    def take(self, indices: np.ndarray) -> "Pixels":
        return Pixels(self._tensor.numpy()[indices])

    def gatherer(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to uint8 images `(batch, height, width, channels)`."""
        tensor = self._tensor
        return lambda indices: tf.gather(tensor, indices)

    def digest(self) -> bytes:
        """SHA-256 of the shape and every pixel."""
        array = np.ascontiguousarray(self._tensor.numpy())
        return hashlib.sha256(repr(array.shape).encode() + array.data).digest()

    def digests(self, places: Sequence[int], most: int | None = None) -> Iterator[bytes]:
        """SHA-256 of the image at each of `places`, or of its first `most` bytes."""
        array = self._tensor.numpy()
        return (hashlib.sha256(array[place].tobytes()[:most]).digest() for place in places)

    def name(self, place: int) -> str:
        return str(place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Images that stay in their files and are decoded each time they are asked for.

    Args:
        root: The folder that the names start from; it does not enter the digest, so data may be moved.
        names: Tuple of paths relative to `root`, with forward slashes.
        size: Height and width of the decoded images.
        exact: Whether the files must have that size already; they are resized otherwise.
    """

    root: Path
    names: tuple[str, ...]
    size: tuple[int, int]
    exact: bool = False

    @property
    def parallel_calls(self) -> int:
        return min(8, os.cpu_count() or 1)  # a batch decodes on one core; more than 8 would hold much memory ahead

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return (*self.size, 3)

    def take(self, indices: np.ndarray) -> "Files":
        return dataclasses.replace(self, names=tuple(self.names[i] for i in indices))

    def gatherer(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to uint8 images `(batch, height, width, channels)`."""
        with tf.device("CPU:0"):
            paths = tf.constant([str(self.root / name) for name in self.names], dtype=tf.string)
        return lambda indices: self.decode(tf.map_fn(tf.io.read_file, tf.gather(paths, indices)))

    def decode(self, contents):
        """Images, uint8 `(batch, height, width, channels)`, of file contents, string `(batch,)`; for graphs.

        Raises:
            tf.errors.InvalidArgumentError: When run, if a file is damaged or has another size where that matters.
        """

        def image(content):
            pixels = decode_image(content)
            return tf.ensure_shape(pixels if self.exact else resize_image(pixels, self.size), self.shape)

        return tf.map_fn(image, contents, fn_output_signature=tf.TensorSpec(self.shape, tf.uint8))

    def digest(self) -> bytes:
        """SHA-256 of every name, size in bytes and last kilobyte.

        Not of the whole content: a data set that does not fit into memory takes minutes to read. Times are left out,
        since a copy changes them.
        """
        digest = hashlib.sha256()
        for name in self.names:
            with open(self.root / name, "rb") as file:
                length = file.seek(0, os.SEEK_END)
                file.seek(max(0, length - TAIL_BYTES))
                digest.update(f"{name}\0{length}\0".encode() + file.read())
        return digest.digest()

    def digests(self, places: Sequence[int], most: int | None = None) -> Iterator[bytes]:
        """SHA-256 of the content of the file at each of `places`, or of its first `most` bytes."""
        for place in places:
            with open(self.root / self.names[place], "rb") as file:
                yield hashlib.sha256(file.read(-1 if most is None else most)).digest()

    def name(self, place: int) -> str:
        return self.names[place]
