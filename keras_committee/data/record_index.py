"""Index of the records in TFRecord shards, for random access.

The index is built by reading every shard once, which verifies every record. It is stored as `.npz` next to the shards,
or in `~/.cache/keras-committee` if their folder is not writable, with the name, size and modification time of each
shard. A shard that has changed is read again.
"""

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from keras_committee.data.images import user_cache_paths
from keras_committee.data.lazy_tensorflow import tf
from keras_committee.errors import ResourceError
from keras_committee.files import file_lock, write_file

_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # around each payload
_ROW_DTYPE = np.dtype([("offset", "<i8"), ("length", "<i8"), ("label", "<i8"), ("checksum", "<u4")])
_INDEX_VERSION = 1
_DAMAGED_INDEX = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # what `np.load` raises


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """Feature names of an example. The defaults are those of Model Garden's `classification_input`.

    Args:
        image: The encoded image, bytes.
        label: The class, one integer.
        text: Name of the class, bytes; optional in an example.
        synset: WordNet synset of the class, bytes; optional in an example.
    """

    image: str = "image/encoded"
    label: str = "image/class/label"
    text: str = "image/class/text"
    synset: str = "image/class/synset"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RecordIndex:
    """All records of a split, in the order of its shards.

    Args:
        shards: Paths of the shards.
        sizes_and_mtimes: Size in bytes and modification time in nanoseconds of each shard when it was read.
        row_offsets: First row of each shard, and the number of rows: int64 `(shards + 1,)`.
        rows: One row per record, `(records,)`: `offset` and `length` of the encoded image in its shard, in bytes, its
            `label`, and the `checksum` of the record.
        class_names: Text and synset of each label that occurs, `""` where an example has none.
    """

    shards: tuple[Path, ...]
    sizes_and_mtimes: tuple[tuple[int, int], ...]
    row_offsets: np.ndarray
    rows: np.ndarray
    class_names: dict[int, tuple[str, str]]

    def shard_numbers(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of the shard that contains each row."""
        return np.searchsorted(self.row_offsets, rows, side="right") - 1

    def name(self, row: int) -> str:
        """Return the name of a record for messages; records are counted from 0 in each shard."""
        shard = int(self.shard_numbers(np.array([row]))[0])
        return f"{self.shards[shard].name}, record {row - self.row_offsets[shard]}"


def load_or_build_index(shards: Sequence[Path], fields: Fields) -> tuple[RecordIndex, list[str]]:
    """Return the index of `shards`, from the cache if it is current, and one sentence per problem."""
    keys = [_shard_key(path) for path in shards]
    cache_paths = _cache_paths(shards, fields)
    for cache_path in cache_paths:
        if len(cached := _load(cache_path)) and all(key in cached for key in keys):
            return _build_index(shards, keys, [cached[key] for key in keys])
    for cache_path in cache_paths:
        try:
            with file_lock(cache_path.with_suffix(".lock"), f"the index {cache_path}", timeout=float("inf")):
                return _build_index(shards, keys, _update_cache(cache_path, shards, keys, fields))
        except ResourceError:  # a read-only folder, or a file system without locks
            continue
    return _build_index(shards, keys, _scan_shards(shards, fields))


def _shard_key(path):
    stat = path.stat()
    return path.name, stat.st_size, stat.st_mtime_ns


def _cache_paths(shards, fields):
    """Return the possible paths of the index: next to the shards, and in the user's cache."""
    parts = [path.name for path in shards] + list(dataclasses.astuple(fields))
    name = f".{shards[0].name.split('-')[0]}-{_short_hash(parts)}.index.npz"
    return [shards[0].parent / name, *user_cache_paths(shards[0].parent, name.lstrip("."))]


def _short_hash(parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _update_cache(cache_path, shards, keys, fields):
    """Return the scans of all shards; read those missing in the cache, and store those without problems there."""
    cached = _load(cache_path)
    stale = [path for path, key in zip(shards, keys, strict=True) if key not in cached]
    if not stale:
        return [cached[key] for key in keys]
    new_scans = dict(zip(stale, _scan_shards(stale, fields), strict=True))
    scans = [new_scans.get(path) or cached[key] for path, key in zip(shards, keys, strict=True)]
    _save(cache_path, {key: scan for key, scan in zip(keys, scans, strict=True) if not scan.problems})
    return scans


def _scan_shards(shards, fields):
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda path: scan_shard(path, fields), shards))


def _build_index(shards, keys, scans):
    names = {label: class_name for scan in reversed(scans) for label, class_name in scan.class_names.items()}
    index = RecordIndex(
        shards=tuple(shards),
        sizes_and_mtimes=tuple(key[1:] for key in keys),
        row_offsets=np.cumsum([0, *(len(scan.rows) for scan in scans)]),
        rows=np.concatenate([scan.rows for scan in scans]),
        class_names=names,
    )
    return index, [problem for scan in scans for problem in scan.problems]


def _save(cache_path, scans):
    keys = list(scans)
    buffer = io.BytesIO()
    arrays = {
        "format": np.array(_INDEX_VERSION),
        "keys": np.array([json.dumps(key) for key in keys], np.str_),
        "names": np.array([json.dumps(list(scans[key].class_names.items())) for key in keys], np.str_),
        "counts": np.array([len(scans[key].rows) for key in keys], np.int64),
    }
    rows = np.concatenate([np.zeros(0, _ROW_DTYPE), *(scans[key].rows for key in keys)])
    np.savez(buffer, **arrays, rows=rows)
    write_file(cache_path, buffer.getvalue())


def _load(cache_path):
    """Return the scan of each shard by its key (name, size, time); empty if there is no readable index."""
    try:
        with np.load(io.BytesIO(cache_path.read_bytes()), allow_pickle=False) as file:
            if file["format"] != _INDEX_VERSION:
                return {}
            keys = [tuple(json.loads(str(key))) for key in file["keys"]]
            names = [
                {label: tuple(class_name) for label, class_name in json.loads(str(text))} for text in file["names"]
            ]
            rows_by_shard = np.split(file["rows"].astype(_ROW_DTYPE), np.cumsum(file["counts"])[:-1])
    except _DAMAGED_INDEX:
        return {}
    shards = zip(keys, rows_by_shard, names, strict=True)
    return {key: ShardScan(rows=rows, class_names=class_names, problems=[]) for key, rows, class_names in shards}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardScan:
    """The records of one shard.

    Args:
        rows: One row per valid record, in order, as in `RecordIndex`.
        class_names: Text and synset of each label that occurs.
        problems: One sentence per invalid record.
    """

    rows: np.ndarray
    class_names: dict[int, tuple[str, str]]
    problems: list[str]


def scan_shard(path: Path, fields: Fields) -> ShardScan:
    """Read a shard from start to end and verify its records."""
    try:
        return _scan_records(path, fields)
    except OSError as error:
        problem = f"{path.name}: the shard cannot be read ({error.strerror})"
        return ShardScan(rows=np.zeros(0, _ROW_DTYPE), class_names={}, problems=[problem])


def _scan_records(path, fields):
    rows, class_names, problems = [], {}, []
    with open(path, "rb", buffering=0) as file:
        for number, (offset, payload) in enumerate(_iter_payloads(path)):
            try:
                if isinstance(payload, ValueError):
                    raise payload
                start, length, label, class_name = _parse_example(payload, fields)
            except ValueError as error:
                problems.append(f"{path.name}, record {number}: {error}")
                continue
            checksum = os.pread(file.fileno(), _FOOTER_BYTES, offset + _HEADER_BYTES + len(payload))
            rows.append((offset + _HEADER_BYTES + start, length, label, int.from_bytes(checksum, "little")))
            class_names.setdefault(label, class_name)
    if not rows and not problems:
        problems.append(f"{path.name}: the shard is empty")
    return ShardScan(rows=np.array(rows, _ROW_DTYPE), class_names=class_names, problems=problems)


def _iter_payloads(path: Path) -> Iterator[tuple[int, bytes | ValueError]]:
    """Yield the offset of each record, and its payload or a `ValueError` with its problem."""
    # A `tf.data` pipeline cannot continue after a damaged record.
    from tensorflow.python.lib.io import tf_record  # pyright: ignore[reportMissingImports]

    reader, offset = tf_record.tf_record_random_reader(str(path)), 0
    try:
        while True:
            try:
                payload, next_offset = reader.read(offset)
            except tf.errors.DataLossError as error:
                next_offset = _offset_after_damage(path, offset, error.message)
                payload = ValueError(_damage_reason(error.message, next_offset))
            yield offset, payload
            if next_offset is None:
                return
            offset = next_offset
    except IndexError:  # the end of the file, or less than a header before it
        if offset < path.stat().st_size:
            yield offset, ValueError(_damage_reason("truncated", None))
    finally:
        reader.close()


def _offset_after_damage(path, offset, message):
    """Return the offset of the next record, or None if the length of the damaged one is damaged or unknown."""
    if f"corrupted record at {offset + _HEADER_BYTES}" not in message:
        return None
    with open(path, "rb") as file:
        file.seek(offset)
        return offset + _HEADER_BYTES + int.from_bytes(file.read(8), "little") + _FOOTER_BYTES


def _damage_reason(message, next_offset):
    if next_offset is not None:
        return "damaged: its checksum is wrong"
    if "truncated" in message:
        return "cut off: the shard ends before the record does"
    return "not a TFRecord (a compressed file?), or damaged: this record and those after it cannot be read"


def _parse_example(payload, fields):
    """Return offset and length of the encoded image in the payload, the label, and the name of the class."""
    try:
        features = tf.train.Example.FromString(payload).features.feature
    except DecodeError:
        raise ValueError("not a tf.train.Example") from None
    for name in (fields.image, fields.label):
        if name not in features:
            raise ValueError(f"field {name!r} is missing; the fields are {', '.join(sorted(features)) or 'none'}")
    images, labels = features[fields.image].bytes_list.value, features[fields.label].int64_list.value
    for name, kind, values in ((fields.image, "string", images), (fields.label, "integer", labels)):
        if len(values) != 1:
            raise ValueError(f"field {name!r} must be one {kind}. Received: {len(values)}")
    class_name = tuple(_text_feature(features, name) for name in (fields.text, fields.synset))
    return payload.find(images[0]), len(images[0]), labels[0], class_name


def _text_feature(features, name):
    values = features[name].bytes_list.value if name in features else ()
    return values[0].decode(errors="replace") if values else ""
