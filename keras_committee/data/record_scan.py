"""What lies in one TFRecord shard, and where, and is all of it sound?

A shard is a sequence of records, each of them 8 bytes of length, 4 bytes of checksum of the length, the payload, and 4
bytes of checksum of the payload (masked CRC-32C). TensorFlow's reader checks both; the payload is a `tf.train.Example`.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.lib.io import tf_record  # a `tf.data` pipeline cannot go on after a damaged record

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
