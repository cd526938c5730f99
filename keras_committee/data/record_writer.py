"""How do class folders become TFRecord shards, whole or not at all?

Everything is written into `.DESTINATION.unfinished` beside the destination, each shard under a temporary name first;
the last act gives the folder its name. A conversion that was killed goes on with the shards it had finished.
"""

import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_committee.data import validation
from keras_committee.data.image_folder import ClassFolders
from keras_committee.data.preprocessing import decode_image, resize
from keras_committee.data.record_index import Fields, load_or_build_index
from keras_committee.data.splits import Split
from keras_committee.data.tfrecords import is_shard, shard_name
from keras_committee.errors import DataError, RecipeError, ResourceError, VerificationError, raise_if_problems
from keras_committee.files import file_lock, fsync_dir, translate_os_errors, write_file, write_json

LABELS_FILE, PLAN_FILE, LOCK_FILE = "labels.txt", "records.json", "lock"
HINT = "Mend or remove what is named above, then run the command again. Nothing was written."


def write_tfrecords(
    source: Path,
    destination: Path,
    *,
    shards: int,
    validation_shards: int | None = None,
    workers: int | None = None,
    keep_encoding: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes the images of class folders as shards named `train-00000-of-00008`, shuffled, the same way each time.

    A split `val`, `validation` or, alone, `test` of the source becomes `validation-*`; a `test` beside one of them
    becomes `test-*`. `labels.txt` holds the class names, the folders', in label order: the label of line 1 is 1.

    Args:
        source: The folder that `data.image_folder` reads.
        destination: The folder to make.
        shards: Number of training shards.
        validation_shards: Number of shards of every other split; an eighth of `shards` where it is None.
        workers: Threads; None takes one for each core, 8 at most.
        keep_encoding: Whether PNG and CMYK images stay as they are (see `record_example.py`).
        on_progress: Called with the images done and the images there are.

    Returns:
        What stands in `records.json`, and `encoded_anew`, the number of images that are JPEGs now.

    Raises:
        DataError: Names every image that cannot be read; nothing is written.
        RecipeError: If the destination exists, or a shard would be empty.
        InUseError: If another process writes there.
        ResourceError: If it cannot be written.
    """
    splits, classes = _read_source(source)
    counts = _shard_counts(splits, shards, validation_shards)
    _check_destination_free(destination)
    staging = destination.with_name(f".{destination.name}.unfinished")
    with file_lock(staging / LOCK_FILE, str(staging)):
        plan = _begin(staging, source, splits, counts, classes, keep_encoding)
        num_reencoded = _write_shards(staging, splits, counts, classes, keep_encoding, workers, on_progress)
        write_file(staging / LABELS_FILE, "".join(f"{name}\n" for name in classes).encode())
        _verify_shards(staging, plan)
        _move_into_place(staging, destination)
    return {**plan, "encoded_anew": num_reencoded}


def _read_source(source):
    """The splits by the names of their shards, and the class names; refuses a source with a broken image."""
    reader = ClassFolders(directory=source, transform=resize(1))
    found = reader.find()
    held_out = {"test": found.test} if found.validation is not None else {"validation": found.test}
    splits = {"train": found.train, "validation": found.validation, **held_out}
    splits = {name: split for name, split in splits.items() if split is not None}
    unreadable = [problem for split in splits.values() for problem in validation.check_files(split.images).values()]
    raise_if_problems(str(source), [*found.problems, *unreadable], HINT)
    if lines := [name for name in found.classes if "\n" in name]:
        raise DataError(f"{source}: a class name with a line break cannot stand in {LABELS_FILE}: {lines[0]!r}")
    return splits, found.classes


def _shard_counts(splits: Mapping[str, Split], shards, other_shards):
    counts = {name: shards if name == "train" else other_shards or max(1, shards // 8) for name in splits}
    for name, count in counts.items():
        if not 1 <= count <= len(splits[name]):
            raise RecipeError(f"{len(splits[name])} {name} images cannot fill {count} shards. Ask for fewer.")
    return counts


def _check_destination_free(destination):
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise RecipeError(f"{destination} exists. It was left as it is: name another folder, or remove it.")


def _begin(staging, source, splits, counts, classes, keep_encoding):
    """The plan, in the staging folder; what was written after another plan is removed."""
    plan = {
        "images": _listing_hash(source, splits),
        "png_and_cmyk": "kept" if keep_encoding else "JPEG",
        "first_label": FIRST_LABEL,
        "classes": len(classes),
        "splits": {name: {"examples": len(splits[name]), "shards": counts[name]} for name in splits},
    }
    if _read_plan(staging) != plan:
        for path in staging.iterdir():
            if path.name != LOCK_FILE:
                path.unlink()
        write_json(staging / PLAN_FILE, plan)
    for path in staging.glob(".*.tmp"):
        path.unlink()
    return plan


def _read_plan(staging):
    try:
        return json.loads((staging / PLAN_FILE).read_text())
    except (OSError, ValueError):
        return None


def _listing_hash(source, splits):
    """SHA-256 of every image's name, size and time of change."""
    digest = hashlib.sha256()
    for split in splits.values():
        for index in range(len(split)):
            name = split.images.name(index)
            stat = os.stat(source / name)
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _write_shards(staging, splits, counts, classes, keep_encoding, workers, on_progress):
    """Writes the shards that are not there; returns how many images were encoded anew in this process."""
    total, num_done, lock, stopped = sum(map(len, splits.values())), 0, threading.Lock(), threading.Event()

    def on_images_done(images):
        nonlocal num_done
        if stopped.is_set():  # another thread failed, or Ctrl-C: a large shard would go on for a while
            raise CancelledError
        with lock:
            num_done += images
            on_progress(num_done, total)

    def write_job(job):
        path, split, rows = job
        if path.exists():  # from before the conversion was killed
            on_images_done(len(rows))
            return 0
        try:
            return _write_shard(path, split, rows, classes, keep_encoding, on_images_done)
        except BaseException:
            stopped.set()
            raise

    jobs = [job for name, split in splits.items() for job in _shard_jobs(staging, name, split, counts[name])]
    threads = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        return sum(threads.map(write_job, jobs))
    finally:
        stopped.set()
        threads.shutdown(cancel_futures=True)


def _shard_jobs(staging, name, split, count):
    """Path and examples of each shard of a split. The order is random, but not for a reader to choose."""
    order = np.random.default_rng(0).permutation(len(split))
    rows_by_shard = np.array_split(order, count)
    return [(staging / shard_name(name, number, count), split, rows) for number, rows in enumerate(rows_by_shard)]


def _write_shard(path, split, rows, classes, keep_encoding, on_images_done):
    temporary, num_reencoded = path.with_name(f".{path.name}.tmp"), 0
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for row in rows:
                example, reencoded = _read_and_serialize(
                    split.images, int(row), int(split.labels[row]), classes, keep_encoding
                )
                writer.write(example)
                num_reencoded += reencoded
                on_images_done(1)
    except tf.errors.OpError as error:
        raise ResourceError(
            f"cannot write {path}: {error.message}.\n  Make room, then run the same command."
        ) from error
    with translate_os_errors(path):
        descriptor = os.open(temporary, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.replace(temporary, path)
        fsync_dir(path.parent)
    return num_reencoded


def _read_and_serialize(images, index, label, classes, keep_encoding):
    name = images.name(index)
    try:
        return serialize_example(
            images.read(index), Path(name).name, label, classes[label], keep_encoding=keep_encoding
        )
    except (OSError, tf.errors.InvalidArgumentError) as error:
        raise DataError(f"{name} cannot be read: {error}. Mend or remove it, then run the command again.") from error


def _verify_shards(staging, plan):
    """Reads everything back, which makes the index too. Raises VerificationError."""
    for name, expected in plan["splits"].items():
        shards = sorted(path for path in staging.glob(f"{name}-*") if is_shard(path.name))
        index, problems = load_or_build_index(shards, Fields())
        if problems or len(index.rows) != expected["examples"]:
            first = problems[0] if problems else f"{len(index.rows)} records, expected {expected['examples']}"
            raise VerificationError(f"what was written to {staging} cannot be read back: {first}.\n  Remove it.")


def _move_into_place(staging, destination):
    with translate_os_errors(destination):
        _check_destination_free(destination)
        (staging / LOCK_FILE).unlink()
        if destination.exists():
            shutil.rmtree(destination)  # it is empty
        os.rename(staging, destination)
        fsync_dir(destination.parent)


FIRST_LABEL = 1  # Model Garden keeps 0 for the background
_WORDNET = re.compile(r"(?P<synset>n\d{8})(?:[_ -]+(?P<text>.+))?")


def serialize_example(
    content: bytes, filename: str, label: int, class_name: str, *, keep_encoding: bool = False
) -> tuple[bytes, bool]:
    """A serialized `tf.train.Example`, and whether the image was encoded anew.

    Args:
        content: The image file's.
        filename: Its name, without folders.
        label: The class, counted from 0; written as `label + FIRST_LABEL`.
        class_name: The class folder's name. `n01440764_tench` gives the synset `n01440764` and the text `tench`; any other
            name is both.
        keep_encoding: Whether PNG and CMYK stay as they are. Model Garden reads JPEG only, so they become RGB JPEGs of quality
            100 otherwise.

    Raises:
        OSError: If it is no image.
    """
    with Image.open(io.BytesIO(content)) as image:
        (width, height), file_format, mode = image.size, image.format, image.mode
    reencoded = not keep_encoding and (file_format == "PNG" or mode == "CMYK")
    if reencoded:
        content = tf.io.encode_jpeg(decode_image(content), format="rgb", quality=100).numpy()
    synset, text = synset_and_text(class_name)
    features = {
        "image/height": _int64_feature(height),
        "image/width": _int64_feature(width),
        "image/colorspace": _bytes_feature(b"RGB"),
        "image/channels": _int64_feature(3),
        "image/class/label": _int64_feature(label + FIRST_LABEL),
        "image/class/synset": _bytes_feature(synset.encode()),
        "image/class/text": _bytes_feature(text.encode()),
        "image/format": _bytes_feature(b"PNG" if file_format == "PNG" and not reencoded else b"JPEG"),
        "image/filename": _bytes_feature(filename.encode(errors="surrogateescape")),
        "image/encoded": _bytes_feature(content),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(), reencoded


def synset_and_text(class_name: str) -> tuple[str, str]:
    """Synset and text of the class in a folder of this name."""
    match = _WORDNET.fullmatch(class_name)
    return (match["synset"], match["text"] or class_name) if match else (class_name, class_name)


def _int64_feature(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _bytes_feature(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
