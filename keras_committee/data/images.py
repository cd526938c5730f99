"""Where do a split's pixels lie: in memory, or still encoded in their files?

Both kinds answer the same questions: how many, of which shape, `take(indices)`, `gatherer()` and `cropper()` for a
pipeline, `framing`, `digest()` of the pixels and `origin()` of what they were made from.
"""

import abc
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import tensorflow as tf

from keras_committee.data.preprocessing import ImageTransform, decode_image

if TYPE_CHECKING:
    from keras_committee.data.random_crop import RandomResizedCrop

TAIL_BYTES = 1024


class InMemoryImages:
    """Images held in memory as one uint8 tensor `(examples, height, width, channels)` on the CPU.

    The tensor is captured once by each pipeline; numpy would be copied anew for every pipeline.

    Args:
        array: uint8 `(examples, height, width, channels)`.
        encoded: The images that were decoded to it; None where it never was encoded.
    """

    parallel_calls = 2  # a gathered batch of 128 CIFAR images takes about 0.3 ms: more threads would only wait

    def __init__(self, array, encoded: "EncodedImages | None" = None):
        self._encoded = encoded
        self._array_shape: tuple[int, ...] = array.shape
        with tf.device("CPU:0"):  # a GPU's memory is for the members
            self._tensor = tf.constant(array, dtype=tf.uint8)

    def __len__(self) -> int:
        return self._array_shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return self._array_shape[1:]

    @property
    def transform(self) -> ImageTransform:
        """How another image becomes one of these."""
        return ImageTransform((self.shape[0], self.shape[1])) if self._encoded is None else self._encoded.transform

    def subset(self, indices: np.ndarray) -> "InMemoryImages":
        return InMemoryImages(self._tensor.numpy()[indices], self._encoded and self._encoded.subset(indices))

    def make_gather_fn(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to uint8 images `(batch, height, width, channels)`."""
        tensor = self._tensor
        return lambda indices: tf.gather(tensor, indices)

    def make_crop_fn(self, crop: "RandomResizedCrop") -> Callable:
        """The same from indices and the crop's draws `(batch, k)`: windows of the pixels in memory."""
        gather = self.make_gather_fn()
        return lambda indices, draws: crop.apply(gather(indices), draws)

    def digest(self) -> bytes:
        """SHA-256 of the shape and every pixel."""
        array = np.ascontiguousarray(self._tensor.numpy())
        return hashlib.sha256(repr(array.shape).encode() + array.data).digest()

    def source_id(self) -> bytes:
        """SHA-256 of what the pixels were made from, whatever their framing."""
        return self.digest() if self._encoded is None else self._encoded.source_id()

    def hashes(self, indices: Sequence[int], *, ends_only: bool = False) -> Iterator[bytes]:
        """SHA-256 of the pixels of the image at each of `indices`."""
        array = self._tensor.numpy()
        return (hashlib.sha256(array[index].tobytes()).digest() for index in indices)

    def name(self, index: int) -> str:
        return str(index)


class EncodedImages(abc.ABC):
    """Images that stay encoded and are decoded each time they are asked for. Where they lie is for a subclass to say.

    Attributes:
        transform: How an image of any size becomes one of the split's.
        require_exact_size: Whether the images must have the framing's size already; they are framed otherwise.
    """

    transform: ImageTransform
    require_exact_size: bool

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def subset(self, indices: np.ndarray) -> Self: ...

    @abc.abstractmethod
    def make_read_fn(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to the encoded images, string `(batch,)`."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """What messages call an image."""

    @abc.abstractmethod
    def read(self, index: int) -> bytes:
        """One encoded image. Raises OSError."""

    @abc.abstractmethod
    def head_and_tail(self, index: int) -> tuple[bytes, bytes]:
        """The first and the last 16 bytes of an encoded image, fewer where it is shorter. Raises OSError."""

    @abc.abstractmethod
    def source_id(self) -> bytes:
        """SHA-256 of what is encoded, in its order, whatever the framing."""

    @property
    def parallel_calls(self) -> int:
        return min(8, os.cpu_count() or 1)  # a batch decodes on one core; more than 8 would hold much memory ahead

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return (*self.transform.size, 3)

    def make_gather_fn(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to uint8 images `(batch, height, width, channels)`."""
        read_fn = self.make_read_fn()
        return lambda indices: self.decode(read_fn(indices))

    def make_crop_fn(self, crop: "RandomResizedCrop") -> Callable:
        """The same from indices and the crop's draws `(batch, k)`: only the windows are decoded."""
        read_fn, spec = self.make_read_fn(), tf.TensorSpec(self.shape, tf.uint8)

        def decode_crop(pair):
            content, row = pair
            return crop.decode(content, row, self.transform)

        return lambda indices, draws: tf.map_fn(decode_crop, (read_fn(indices), draws), fn_output_signature=spec)

    def decode(self, contents):
        """Images, uint8 `(batch, height, width, channels)`, of encoded ones, string `(batch,)`; for graphs.

        Raises:
            tf.errors.InvalidArgumentError: When run, if one is damaged or has another size where that matters.
        """

        def decode_one(content):
            pixels = decode_image(content)
            return tf.ensure_shape(pixels if self.require_exact_size else self.transform.apply(pixels), self.shape)

        return tf.map_fn(decode_one, contents, fn_output_signature=tf.TensorSpec(self.shape, tf.uint8))

    def digest(self) -> bytes:
        """SHA-256 that changes with the encoded images and how they are framed."""
        # The plain framing adds nothing: votes and runs from before there was another keep their fingerprints.
        source_id = self.source_id()
        return (
            source_id
            if self.transform.is_plain_resize
            else hashlib.sha256(source_id + repr(self.transform).encode()).digest()
        )

    def hashes(self, indices: Sequence[int], *, ends_only: bool = False) -> Iterator[bytes]:
        """SHA-256 of the encoded image at each of `indices`; with `ends_only` of its first and last bytes only."""
        for index in indices:
            content = b"".join(self.head_and_tail(index)) if ends_only else self.read(index)
            yield hashlib.sha256(content).digest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFiles(EncodedImages):
    """Images in files, one each.

    Args:
        root: The folder that the names start from; it does not enter the digest, so data may be moved.
        names: Tuple of paths relative to `root`, with forward slashes.
        transform: How they become images of one size.
        require_exact_size: Whether the files must have that size already; they are framed otherwise.
    """

    root: Path
    names: tuple[str, ...]
    transform: ImageTransform
    require_exact_size: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: np.ndarray) -> Self:
        return dataclasses.replace(self, names=tuple(self.names[i] for i in indices))

    def make_read_fn(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to the files' contents, string `(batch,)`."""
        with tf.device("CPU:0"):
            paths = tf.constant([str(self.root / name) for name in self.names], dtype=tf.string)
        return lambda indices: tf.map_fn(tf.io.read_file, tf.gather(paths, indices))

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()

    def head_and_tail(self, index: int) -> tuple[bytes, bytes]:
        with open(self.root / self.names[index], "rb") as file:
            head = file.read(16)
            file.seek(-min(16, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return head, file.read()

    def source_id(self) -> bytes:
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
