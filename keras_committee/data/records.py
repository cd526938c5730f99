"""How is any record of a split read without those before it?

The index knows where each encoded image lies, so a batch is as many reads at known places, in whatever order training
asks for them: the stream stays a pure function of seed and step, and a host that needs a part of a batch reads the
bytes of that part only. No shard is assigned to a host.
"""

import dataclasses
import functools
import hashlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import tensorflow as tf

from keras_committee.data.framing import Framing
from keras_committee.data.images import Encoded
from keras_committee.data.record_index import RecordIndex
from keras_committee.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Records(Encoded):
    """Images in TFRecord shards.

    Args:
        index: Where every record of the shards lies.
        rows: Which of them are the examples, and in which order: int64 `(examples,)`.
        framing: How they become images of one size.
        exact: Whether they must have that size already; they are framed otherwise.
    """

    index: RecordIndex
    rows: np.ndarray
    framing: Framing
    exact: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> Self:
        return dataclasses.replace(self, rows=self.rows[indices])

    def contents(self) -> Callable:
        """A graph function from int64 indices `(batch,)` to the encoded images, string `(batch,)`.

        One call of Python for a batch: from the page cache it read 30,000 to 54,000 images a second of 10 kB;
        `FixedLengthRecordDataset`, which stays in C++ but opens a file for each record, read 900 to 1,500, and
        `TFRecordDataset`, in the order of the file, 16,000 to 90,000 (two cores, shared with other work).
        """

        def read(indices):
            contents = tf.numpy_function(self.read_all, [indices], tf.string, stateful=False)
            return tf.ensure_shape(contents, indices.shape)

        return read

    def read_all(self, indices: np.ndarray) -> np.ndarray:
        """The encoded images at `indices`, bytes `(batch,)` of dtype object.

        Raises:
            DataError: If a shard is gone, or is not the one that was indexed.
        """
        rows = self.rows[indices]
        places = self.index.rows[rows]
        shards = [self._shard(number) for number in self.index.shard_of(rows)]
        wanted = list(zip(shards, places["offset"].tolist(), places["length"].tolist(), strict=True))
        for shard, offset, length in wanted:  # the kernel fetches all of them while the first is waited for
            os.posix_fadvise(shard.descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        contents = np.empty(len(wanted), object)
        contents[:] = [os.pread(shard.descriptor, length, offset) for shard, offset, length in wanted]
        return contents

    def name(self, index: int) -> str:
        return self.index.name(int(self.rows[index]))

    def read(self, index: int) -> bytes:
        return self.read_all(np.array([index]))[0]

    def ends(self, index: int) -> tuple[bytes, bytes]:
        place = self.index.rows[self.rows[index]]
        offset, length = int(place["offset"]), int(place["length"])
        shard = self._shard(self.index.shard_of(self.rows[[index]])[0])  # held: two threads may each open their own
        size = min(16, length)
        return os.pread(shard.descriptor, size, offset), os.pread(shard.descriptor, size, offset + length - size)

    def origin(self) -> bytes:
        """SHA-256 of each record's checksum and length, in order: it changes with any byte, and not with the shards.

        Nothing is read for it.
        """
        rows = self.index.rows[self.rows]
        return hashlib.sha256(rows["checksum"].tobytes() + rows["length"].tobytes()).digest()

    def _shard(self, number):
        return _descriptors()(self.index.shards[number], self.index.stamps[number])


class _Shard:
    """An open shard. It is closed when nobody holds it: it may fall out of the cache while a thread reads it.

    Nor does the cache hold both where two threads open the same one at once.
    """

    descriptor = -1

    def __init__(self, path: Path, stamp: tuple[int, int]):
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}. Put it back and run the same command."
            ) from error
        stat = os.fstat(self.descriptor)
        if (stat.st_size, stat.st_mtime_ns) != stamp:
            raise DataError(f"{path} has changed since it was indexed. Run the same command again.")

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.cache
def _descriptors():
    """`_Shard` by path and stamp; at most a quarter of the files that this process may open stay open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return functools.lru_cache(max(8, limit // 4) if limit != resource.RLIM_INFINITY else 4096)(_Shard)
