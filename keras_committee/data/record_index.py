"""Where does each record of a split lie, so that any one can be read without those before it?

The index is made by reading every shard once, which checks every record, and kept beside the shards as `.npz`, or in
`~/.cache/keras-committee` where that folder cannot be written. It carries name, size and time of change of each shard;
a shard that has changed is read again.
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
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.lib.io import tf_record  # a `tf.data` pipeline cannot go on after a damaged record

from keras_committee.errors import ResourceError
from keras_committee.files import owned, write_file

HEADER, FOOTER = 12, 4  # bytes before and after a payload
ROW = np.dtype([("offset", "<i8"), ("length", "<i8"), ("label", "<i8"), ("checksum", "<u4")])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of the fields of an example. The defaults are those of Model Garden's `classification_input`.

    Args:
        image: The encoded image, bytes.
        label: The class, one integer.
        text, synset: What the class is called, bytes; an example may lack them.
    """

    image: str = "image/encoded"
    label: str = "image/class/label"
    text: str = "image/class/text"
    synset: str = "image/class/synset"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What was found in one shard.

    Args:
        rows: One for each sound record, in order, of type `ROW`: where in the file the encoded image lies, offset and
            length in bytes, its label, and the record's checksum.
        names: Label -> text and synset, "" where there is none, of the labels that occur.
        problems: One sentence for each record that is not sound.
    """

    rows: np.ndarray
    names: dict[int, tuple[str, str]]
    problems: list[str]


def scan_shard(path: Path, fields: Fields) -> Scan:
    """Reads a shard from end to end."""
    try:
        return _scan(path, fields)
    except OSError as error:
        problem = f"{path.name}: the shard cannot be read ({error.strerror})"
        return Scan(rows=np.zeros(0, ROW), names={}, problems=[problem])


def _scan(path, fields):
    rows, names, problems = [], {}, []
    with open(path, "rb", buffering=0) as file:
        for number, (offset, payload) in enumerate(_payloads(path)):
            try:
                if isinstance(payload, ValueError):
                    raise payload
                begin, length, label, called = _example(payload, fields)
            except ValueError as error:
                problems.append(f"{path.name}, record {number}: {error}")
                continue
            checksum = os.pread(file.fileno(), FOOTER, offset + HEADER + len(payload))
            rows.append((offset + HEADER + begin, length, label, int.from_bytes(checksum, "little")))
            names.setdefault(label, called)
    if not rows and not problems:
        problems.append(f"{path.name}: the shard is empty")
    return Scan(rows=np.array(rows, ROW), names=names, problems=problems)


def _payloads(path: Path) -> Iterator[tuple[int, bytes | ValueError]]:
    """Where each record begins, and its payload or what is wrong with it."""
    reader, offset = tf_record.tf_record_random_reader(str(path)), 0
    try:
        while True:
            try:
                payload, following = reader.read(offset)
            except tf.errors.DataLossError as error:
                following = _after_damage(path, offset, error.message)
                payload = ValueError(_loss(error.message, following))
            yield offset, payload
            if following is None:
                return
            offset = following
    except IndexError:  # the end, or less than a header before it
        if offset < path.stat().st_size:
            yield offset, ValueError(_loss("truncated", None))
    finally:
        reader.close()


def _after_damage(path, offset, message):
    """Where the record after a damaged one begins, or None where its length is not known for sure."""
    if f"corrupted record at {offset + HEADER}" not in message:  # it is the length that is damaged, or something is cut
        return None
    with open(path, "rb") as file:
        file.seek(offset)
        return offset + HEADER + int.from_bytes(file.read(8), "little") + FOOTER


def _loss(message, following):
    if following is not None:
        return "damaged: its checksum is wrong"
    if "truncated" in message:
        return "cut off: the shard ends before the record does"
    return "no TFRecord (is the file compressed?), or damaged: neither it nor what follows can be read"


def _example(payload, fields):
    """Where in the payload the encoded image lies, offset and length; the label; what the class is called."""
    try:
        features = tf.train.Example.FromString(payload).features.feature
    except DecodeError:
        raise ValueError("no tf.train.Example") from None
    for name in (fields.image, fields.label):
        if name not in features:
            raise ValueError(f"it has no field {name!r}, but {', '.join(sorted(features)) or 'none'}")
    images, labels = features[fields.image].bytes_list.value, features[fields.label].int64_list.value
    for name, kind, values in ((fields.image, "string", images), (fields.label, "integer", labels)):
        if len(values) != 1:
            raise ValueError(f"{name!r} holds {len(values)} {kind}s, expected one")
    called = tuple(_text(features, name) for name in (fields.text, fields.synset))
    return payload.find(images[0]), len(images[0]), labels[0], called


def _text(features, name):
    values = features[name].bytes_list.value if name in features else ()
    return values[0].decode(errors="replace") if values else ""


FORMAT = 1
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # what `np.load` raises for such a file


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RecordIndex:
    """Every record of a split, in the order of its shards.

    Args:
        shards: Paths of the shards.
        stamps: Size in bytes and time of change, in nanoseconds, of each shard when it was read.
        starts: Row at which each shard begins, and their number: int64 `(shards + 1,)`.
        rows: Records, of type `record_scan.ROW`, `(records,)`.
        names: Label -> text and synset.
    """

    shards: tuple[Path, ...]
    stamps: tuple[tuple[int, int], ...]
    starts: np.ndarray
    rows: np.ndarray
    names: dict[int, tuple[str, str]]

    def shard_of(self, rows: np.ndarray) -> np.ndarray:
        """Number of the shard that each row lies in."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def name(self, row: int) -> str:
        """What messages call a record; its number counts from 0 in its shard."""
        shard = int(self.shard_of(np.array([row]))[0])
        return f"{self.shards[shard].name}, record {row - self.starts[shard]}"


def record_index(shards: Sequence[Path], fields: Fields) -> tuple[RecordIndex, list[str]]:
    """The index of `shards`, from the cache where it is fresh, and what is wrong with them."""
    keys = [_key(path) for path in shards]
    places = _places(shards, fields)
    for place in places:
        if len(kept := _load(place)) and all(key in kept for key in keys):
            return _joined(shards, keys, [kept[key] for key in keys])
    for place in places:
        try:
            with owned(place.with_suffix(".lock"), f"the index {place}", patience=float("inf")):
                return _joined(shards, keys, _refreshed(place, shards, keys, fields))
        except ResourceError:  # a folder that is only read, or a file system without locks
            continue
    return _joined(shards, keys, _scanned(shards, fields))


def _key(path):
    stat = path.stat()
    return path.name, stat.st_size, stat.st_mtime_ns


def _places(shards, fields):
    """Where the index may lie: beside the shards, or in the user's cache."""
    parts = [path.name for path in shards] + list(dataclasses.astuple(fields))
    name = f".{shards[0].name.split('-')[0]}-{_short(parts)}.index.npz"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    away = Path(caches, "keras-committee", _short([str(shards[0].parent.resolve())]), name.lstrip("."))
    return shards[0].parent / name, away


def _short(parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _refreshed(place, shards, keys, fields):
    """The scans of the shards; what is not in the index at `place` is read, and what is sound is kept there."""
    kept = _load(place)
    stale = [path for path, key in zip(shards, keys, strict=True) if key not in kept]
    if not stale:
        return [kept[key] for key in keys]
    read = dict(zip(stale, _scanned(stale, fields), strict=True))
    scans = [read.get(path) or kept[key] for path, key in zip(shards, keys, strict=True)]
    _save(place, {key: scan for key, scan in zip(keys, scans, strict=True) if not scan.problems})
    return scans


def _scanned(shards, fields):
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda path: scan_shard(path, fields), shards))


def _joined(shards, keys, scans):
    stamps = tuple(key[1:] for key in keys)
    starts = np.cumsum([0, *(len(scan.rows) for scan in scans)])
    names = {label: called for scan in reversed(scans) for label, called in scan.names.items()}
    rows = np.concatenate([scan.rows for scan in scans])
    index = RecordIndex(shards=tuple(shards), stamps=stamps, starts=starts, rows=rows, names=names)
    return index, [problem for scan in scans for problem in scan.problems]


def _save(place, scans):
    keys = list(scans)
    buffer = io.BytesIO()
    arrays = {
        "format": np.array(FORMAT),
        "keys": np.array([json.dumps(key) for key in keys], np.str_),
        "names": np.array([json.dumps(list(scans[key].names.items())) for key in keys], np.str_),
        "counts": np.array([len(scans[key].rows) for key in keys], np.int64),
    }
    rows = np.concatenate([np.zeros(0, ROW), *(scans[key].rows for key in keys)])
    np.savez(buffer, **arrays, rows=rows)
    write_file(place, buffer.getvalue())


def _load(place):
    """Shard's name, size and time -> `Scan`; empty where there is no index, or one that cannot be read."""
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as file:
            if file["format"] != FORMAT:
                return {}
            keys = [tuple(json.loads(str(key))) for key in file["keys"]]
            names = [{label: tuple(called) for label, called in json.loads(str(text))} for text in file["names"]]
            parts = np.split(file["rows"].astype(ROW), np.cumsum(file["counts"])[:-1])
    except DAMAGED:
        return {}
    triples = zip(keys, parts, names, strict=True)
    return {key: Scan(rows=rows, names=called, problems=[]) for key, rows, called in triples}
