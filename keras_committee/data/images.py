"""The images of a split, decoded in memory or encoded in files.

Both kinds share one interface: `len`, `shape`, `transform`, `subset(indices)`, `make_gather_fn()` and `make_crop_fn()`
for pipelines, `digest()` of the pixels and `source_id()` of the data they were made from.
"""

import abc
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from keras_committee.data.lazy_tensorflow import tf
from keras_committee.data.preprocessing import ImageTransform, decode_image, has_magic
from keras_committee.data.random_crop import RandomResizedCrop
from keras_committee.image_header import JPEG_MAGIC, PNG_MAGIC, to_jpeg_or_png

_TAIL_BYTES = 1024


class InMemoryImages:
    """Decoded images, one uint8 tensor `(examples, height, width, channels)` in the memory of the CPU.

    Each pipeline captures the tensor once; a NumPy array would be copied for every pipeline.

    Args:
        array: uint8 `(examples, height, width, channels)`.
        encoded: The encoded images that were decoded to `array`, or None.
    """

    parallel_calls = 2  # gathering a batch of 128 CIFAR images takes about 0.3 ms; more threads would only wait

    def __init__(self, array, encoded: "EncodedImages | None" = None):
        self._encoded = encoded
        self._array = np.asarray(array, np.uint8)
        self._tensor = None

    def __len__(self) -> int:
        return len(self._array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return self._array.shape[1:]

    @property
    def transform(self) -> ImageTransform:
        """The transform from any image to one of the split's."""
        return ImageTransform((self.shape[0], self.shape[1])) if self._encoded is None else self._encoded.transform

    def subset(self, indices: np.ndarray) -> "InMemoryImages":
        return InMemoryImages(self._array[indices], self._encoded and self._encoded.subset(indices))

    def numpy(self) -> np.ndarray:
        """Return the images, uint8 `(examples, height, width, channels)`, not copied."""
        return self._array

    def make_gather_fn(self) -> Callable:
        """Return a graph function from int64 indices `(batch,)` to uint8 images `(batch, height, width, channels)`."""
        tensor = self._as_tensor()
        return lambda indices: tf.gather(tensor, indices)

    def make_crop_fn(self, crop: RandomResizedCrop) -> Callable:
        """Return a graph function from indices and the crop's draws `(batch, k)` to cropped images."""
        gather = self.make_gather_fn()
        return lambda indices, draws: crop.apply(gather(indices), draws)

    def digest(self) -> bytes:
        """Return the SHA-256 of the shape and every pixel."""
        array = np.ascontiguousarray(self._array)
        return hashlib.sha256(repr(array.shape).encode() + array.data).digest()

    def source_id(self) -> bytes:
        """Return the SHA-256 of the data the pixels were made from, independent of the transform."""
        return self.digest() if self._encoded is None else self._encoded.source_id()

    def hashes(self, indices: Sequence[int], *, ends_only: bool = False) -> Iterator[bytes]:
        """Return the SHA-256 of the pixels of each image at `indices`; `ends_only` has no effect."""
        return (hashlib.sha256(self._array[index].tobytes()).digest() for index in indices)

    def name(self, index: int) -> str:
        """Return the name of an image for messages: that of its file, or its index."""
        return str(index) if self._encoded is None else self._encoded.name(index)

    def _as_tensor(self):
        if self._tensor is None:
            with tf.device("CPU:0"):  # the memory of a GPU is for the members
                self._tensor = tf.constant(self._array)
            self._array = self._tensor.numpy()  # a view: the images are in memory once
        return self._tensor


class EncodedImages(abc.ABC):
    """Encoded images, decoded each time they are read. A subclass defines where they are stored.

    Attributes:
        transform: The transform from any image to one of the split's.
        require_exact_size: Whether the images must have the size of the transform; otherwise they are transformed.
    """

    transform: ImageTransform
    require_exact_size: bool

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def subset(self, indices: np.ndarray) -> Self: ...

    @abc.abstractmethod
    def make_read_fn(self) -> Callable:
        """Return a graph function from int64 indices `(batch,)` to the encoded images, string `(batch,)`."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image for messages."""

    @abc.abstractmethod
    def read(self, index: int) -> bytes:
        """Read one image, encoded as JPEG or PNG. Raises OSError, or DataError if it is in no supported format."""

    @abc.abstractmethod
    def head_and_tail(self, index: int) -> tuple[bytes, bytes]:
        """Read the first and the last 16 bytes of an encoded image, fewer if it is shorter. Raises OSError."""

    @abc.abstractmethod
    def source_id(self) -> bytes:
        """Return the SHA-256 of the encoded images in order, independent of the transform."""

    @abc.abstractmethod
    def content_keys(self) -> np.ndarray:
        """Return a number for each image that changes with its content, uint64 `(examples,)`; 0 where unknown."""

    @abc.abstractmethod
    def cache_paths(self) -> list[Path]:
        """Return the files that may hold the content keys of images that were decoded before, best first."""

    @property
    def parallel_calls(self) -> int:
        return min(8, os.cpu_count() or 1)  # a batch is decoded on one core; more than 8 would hold much memory ahead

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return (*self.transform.size, 3)

    def make_gather_fn(self) -> Callable:
        """Return a graph function from int64 indices `(batch,)` to uint8 images `(batch, height, width, channels)`."""
        read_fn = self.make_read_fn()
        return lambda indices: _decode(read_fn(indices), self.transform, self.require_exact_size)

    def make_crop_fn(self, crop: RandomResizedCrop) -> Callable:
        """Return a graph function from indices and the crop's draws `(batch, k)` to images; decodes windows only."""
        read_fn, spec = self.make_read_fn(), tf.TensorSpec(self.shape, tf.uint8)

        def decode_crop(example):
            contents, row = example
            return crop.decode(contents, row, self.transform)

        return lambda indices, draws: tf.map_fn(decode_crop, (read_fn(indices), draws), fn_output_signature=spec)

    def decode(self, contents: Sequence[bytes]) -> np.ndarray:
        """Decode encoded images to uint8 `(batch, height, width, channels)`.

        Raises:
            tf.errors.InvalidArgumentError: If an image is damaged, or of another size where `require_exact_size` is
                set.
        """
        with tf.device("CPU:0"):
            batch = tf.constant(contents, tf.string, shape=[len(contents)])
            return _decode_function(self.transform, self.require_exact_size)(batch).numpy()

    def digest(self) -> bytes:
        """Return a SHA-256 that changes with the encoded images and their transform."""
        # A plain resize adds nothing: runs and predictions from before other transforms keep their fingerprints.
        source_id = self.source_id()
        if self.transform.is_plain_resize:
            return source_id
        return hashlib.sha256(source_id + repr(self.transform).encode()).digest()

    def hashes(self, indices: Sequence[int], *, ends_only: bool = False) -> Iterator[bytes]:
        """Return the SHA-256 of each encoded image at `indices`; with `ends_only` of its first and last bytes only."""
        for index in indices:
            contents = b"".join(self.head_and_tail(index)) if ends_only else self.read(index)
            yield hashlib.sha256(contents).digest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFiles(EncodedImages):
    """Encoded images, one per file.

    Args:
        root: The folder that `names` are relative to; not part of the digest, so that data may be moved.
        names: Paths relative to `root`, with forward slashes.
        transform: The transform from a file's image to one of the split's.
        require_exact_size: Whether the files must have the size of the transform; otherwise they are transformed.
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
        """Return a graph function from int64 indices `(batch,)` to JPEGs and PNGs, string `(batch,)`; see `read`."""
        with tf.device("CPU:0"):
            paths = tf.constant([str(self.root / name) for name in self.names], dtype=tf.string)

        def read_one(path):
            content = tf.io.read_file(path)
            return tf.cond(
                has_magic(content, JPEG_MAGIC) | has_magic(content, PNG_MAGIC),
                lambda: content,
                lambda: tf.ensure_shape(tf.numpy_function(to_jpeg_or_png, [content], tf.string, stateful=False), ()),
            )

        return lambda indices: tf.map_fn(read_one, tf.gather(paths, indices))

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> bytes:
        """Read a JPEG or PNG as it is, another format as a PNG of its pixels. Raises OSError, or DataError."""
        return to_jpeg_or_png((self.root / self.names[index]).read_bytes())

    def head_and_tail(self, index: int) -> tuple[bytes, bytes]:
        with open(self.root / self.names[index], "rb") as file:
            head = file.read(16)
            file.seek(-min(16, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return head, file.read()

    def source_id(self) -> bytes:
        """Return the SHA-256 of every name, size in bytes and last kilobyte.

        Reading whole files would take minutes for data that does not fit into memory. Modification times are left out,
        since a copy changes them.
        """
        digest = hashlib.sha256()
        for name in self.names:
            with open(self.root / name, "rb") as file:
                length = file.seek(0, os.SEEK_END)
                file.seek(max(0, length - _TAIL_BYTES))
                digest.update(f"{name}\0{length}\0".encode() + file.read())
        return digest.digest()

    def content_keys(self) -> np.ndarray:
        return np.array([self._content_key(name) for name in self.names], np.uint64)

    def cache_paths(self) -> list[Path]:
        return user_cache_paths(self.root, "decoded.npy")

    def _content_key(self, name):
        try:
            stat = os.stat(self.root / name)
        except OSError:
            return 0
        text = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@functools.lru_cache(maxsize=8)
def _decode_function(transform: ImageTransform, require_exact_size: bool) -> Callable:
    """Return a traced function from encoded to decoded images; a trace takes as long as decoding 50 photographs."""
    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda contents: _decode(contents, transform, require_exact_size), input_signature=signature)


def _decode(contents, transform: ImageTransform, require_exact_size: bool):
    """Decode string `(batch,)` to uint8 images `(batch, height, width, channels)`, in graphs; see `decode`."""
    shape = (*transform.size, 3)

    def decode_one(content):
        pixels = decode_image(content)
        return tf.ensure_shape(pixels if require_exact_size else transform.apply(pixels), shape)

    return tf.map_fn(decode_one, contents, fn_output_signature=tf.TensorSpec(shape, tf.uint8))


def user_cache_paths(folder: Path, name: str) -> list[Path]:
    """Return the path of a file about a folder of data in the user's cache; no path if the user has no home folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):
        return []
    return [Path(cache, "keras-committee", hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12], name)]


class BatchedImages(EncodedImages):
    """Encoded images in the rows of a store, of which Python reads a batch at a time. A subclass is a dataclass.

    For TFRecords that read 30,000 to 54,000 images of 10 kB per second from the page cache.
    `FixedLengthRecordDataset`, which stays in C++ but opens a file for each record, read 900 to 1,500, and
    `TFRecordDataset`, in the order of the file, 16,000 to 90,000 (two cores, shared with other work).

    Attributes:
        rows: Rows of the store, in the order of the examples: int64 `(examples,)`.
    """

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: np.ndarray) -> Self:
        return dataclasses.replace(self, rows=self.rows[indices])  # pyright: ignore[reportArgumentType]

    @abc.abstractmethod
    def read_batch(self, indices: np.ndarray) -> np.ndarray:
        """Read the images at `indices`: bytes `(batch,)` of dtype object."""

    def make_read_fn(self) -> Callable:
        def read(indices):
            contents = tf.numpy_function(self.read_batch, [indices], tf.string, stateful=False)
            return tf.ensure_shape(contents, indices.shape)

        return read
