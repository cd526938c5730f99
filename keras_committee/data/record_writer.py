"""Conversion of class folders to TFRecord shards.

Everything is written into `.DESTINATION.unfinished` next to the destination, each shard under a temporary name first.
The last step renames that folder to the destination. A conversion that was killed continues with the finished shards.
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_committee.class_folders import check_split_folders
from keras_committee.data.dataset import absent_classes
from keras_committee.data.image_folder import ClassFolders
from keras_committee.data.lazy_tensorflow import tf
from keras_committee.data.preprocessing import decode_image, resize
from keras_committee.data.record_index import Fields, load_or_build_index
from keras_committee.data.splits import Split
from keras_committee.data.validation import check_files
from keras_committee.errors import DataError, RecipeError, ResourceError, VerificationError, raise_if_problems
from keras_committee.files import file_lock, fsync_dir, require_free, translate_os_errors, write_file, write_json
from keras_committee.shard_files import is_shard, shard_name

_log = logging.getLogger(__name__)

FIRST_LABEL = 1  # Model Garden reserves 0 for the background
_LABELS_FILE, _PLAN_FILE, _LOCK_FILE = "labels.txt", "records.json", "lock"
_HINT = (
    "Fix or remove what is listed above, or leave out up to N unreadable images with --skip-bad N, and run the command "
    "again. Nothing was written."
)
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises
_WORDNET_FOLDER = re.compile(r"(?P<synset>n\d{8})(?:[_ -]+(?P<text>.+))?")


def write_tfrecords(
    source: Path,
    destination: Path,
    *,
    shards: int,
    validation_shards: int | None = None,
    workers: int | None = None,
    keep_encoding: bool = False,
    skip_bad: int = 0,
    split_folders: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the images of class folders as shards named `train-00000-of-00008`, in a fixed random order.

    A validation folder of the source or, alone, a test folder becomes `validation-*`; a test folder next to a
    validation folder becomes `test-*`. `labels.txt` contains the class names, those of the folders, in label order:
    the label of line 1 is 1.

    Args:
        source: The folder, as for `data.image_folder`.
        destination: The folder to create.
        shards: Number of training shards.
        validation_shards: Number of shards of every other split; None uses an eighth of `shards`.
        workers: Number of threads; None uses one per core, at most 8.
        keep_encoding: Whether PNG and CMYK images are kept, see `serialize_example`.
        skip_bad: Largest number of unreadable images to leave out with a warning.
        split_folders: Folder of each split, as for `data.image_folder`.
        on_progress: Called with the number of images written and their total.

    Returns:
        The content of `records.json`, and `reencoded`, the number of images converted to JPEG by this call.

    Raises:
        DataError: Lists every unreadable image; nothing is written.
        RecipeError: If the destination exists, a shard would be empty, or `split_folders` is invalid.
        InUseError: If another process writes to the destination.
        ResourceError: If the shards cannot be written.
        VerificationError: If the written shards cannot be read back.
    """
    check_split_folders(split_folders, "write_tfrecords")
    splits, classes = _read_source(source, skip_bad, split_folders)
    counts = _shard_counts(splits, shards, validation_shards)
    require_free(destination)
    staging = destination.with_name(f".{destination.name}.unfinished")
    with file_lock(staging / _LOCK_FILE, str(staging)):
        plan = _prepare_staging(staging, source, splits, counts, classes, keep_encoding)
        num_reencoded = _write_shards(staging, splits, counts, classes, keep_encoding, workers, on_progress)
        write_file(staging / _LABELS_FILE, "".join(f"{name}\n" for name in classes).encode())
        _verify_shards(staging, plan)
        _move_into_place(staging, destination)
    return {**plan, "reencoded": num_reencoded}


def _read_source(source, skip_bad, split_folders):
    """Return the splits, by the prefix of their shards, and the class names; raise DataError for unreadable images."""
    reader = ClassFolders(directory=source, transform=resize(1), split_folders=split_folders)
    found = reader.find()
    for note in found.notes if found.test is None else ():  # the shards of splits keep the names of their folders
        _log.warning("%s: %s", source, note)
    for warning in found.warnings:
        _log.warning("%s: %s", source, warning)
    held_out = {"test": found.test} if found.validation is not None else {"validation": found.test}
    splits = {"train": found.train, "validation": found.validation, **held_out}
    splits = {name: split for name, split in splits.items() if split is not None}
    bad_files = {name: check_files(split.images) for name, split in splits.items()}
    unreadable = [problem for problems in bad_files.values() for problem in problems.values()]
    if 0 < len(unreadable) <= skip_bad:
        _log.warning("%s: left out because of --skip-bad %d: %s", source, skip_bad, "; ".join(unreadable))
        unreadable = []
    raise_if_problems(str(source), [*found.problems, *unreadable], _HINT)
    splits = {
        name: split.subset(np.delete(np.arange(len(split)), list(bad_files[name]))) for name, split in splits.items()
    }
    emptied = [(name, absent_classes(split, found.classes)) for name, split in splits.items()]
    raise_if_problems(
        str(source),
        [f"no image of class {absent[0]!r} in the {name} split is readable" for name, absent in emptied if absent],
        _HINT,
    )
    if names := [name for name in found.classes if "\n" in name]:
        raise DataError(f"{source}: class names must not contain a line break. Received: {names[0]!r}")
    return splits, found.classes


def _shard_counts(splits: Mapping[str, Split], shards, other_shards):
    counts = {name: shards if name == "train" else other_shards or max(1, shards // 8) for name in splits}
    for name, count in counts.items():
        if not 1 <= count <= len(splits[name]):
            raise RecipeError(f"{len(splits[name])} {name} images cannot fill {count} shards. Request fewer shards.")
    return counts


def _prepare_staging(staging, source, splits, counts, classes, keep_encoding):
    """Write the plan into the staging folder, and remove what was written for another plan."""
    plan = {
        "images": _listing_hash(source, splits),
        "png_and_cmyk": "kept" if keep_encoding else "JPEG",
        "first_label": FIRST_LABEL,
        "classes": len(classes),
        "splits": {name: {"examples": len(splits[name]), "shards": counts[name]} for name in splits},
    }
    if _read_plan(staging) != plan:
        for path in staging.iterdir():
            if path.name != _LOCK_FILE:
                path.unlink()
        write_json(staging / _PLAN_FILE, plan)
    for path in staging.glob(".*.tmp"):
        path.unlink()
    return plan


def _read_plan(staging):
    try:
        return json.loads((staging / _PLAN_FILE).read_text())
    except (OSError, ValueError):
        return None


def _listing_hash(source, splits):
    """Return the SHA-256 of the name, size and modification time of every image."""
    digest = hashlib.sha256()
    for split in splits.values():
        for index in range(len(split)):
            name = split.images.name(index)
            stat = os.stat(source / name)
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _write_shards(staging, splits, counts, classes, keep_encoding, workers, on_progress):
    """Write the missing shards and return the number of images converted to JPEG."""
    total, num_done, lock, stopped = sum(map(len, splits.values())), 0, threading.Lock(), threading.Event()

    errors = []  # that of the thread which failed first

    def on_images_done(images):
        nonlocal num_done
        if stopped.is_set():  # another thread failed, or Ctrl-C; a large shard would take a while to finish
            raise CancelledError
        with lock:
            num_done += images
            on_progress(num_done, total)

    def write_job(job):
        path, split, rows = job
        if path.exists():  # written before the conversion was killed
            on_images_done(len(rows))
            return 0
        try:
            return _write_shard(path, split, rows, classes, keep_encoding, on_images_done)
        except BaseException as error:
            errors.append(error)
            stopped.set()
            raise

    jobs = [job for name, split in splits.items() for job in _shard_jobs(staging, name, split, counts[name])]
    threads = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        return sum(threads.map(write_job, jobs))
    except CancelledError:  # of a shard before the one that failed
        raise errors[0] from None
    finally:
        stopped.set()
        threads.shutdown(cancel_futures=True)


def _shard_jobs(staging, name, split, count):
    """Return path, split and rows of each shard, with the examples in a random order that never changes."""
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
            f"cannot write {path}: {error.message}.\n  Free some disk space, then run the same command to resume."
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
    except (*_UNREADABLE, tf.errors.InvalidArgumentError) as error:
        raise DataError(
            f"{name} cannot be read: {error}. Fix or remove it, then run the command again; it resumes."
        ) from error


def _verify_shards(staging, plan):
    """Read all shards back, which also writes their index. Raises VerificationError."""
    for name, expected in plan["splits"].items():
        shards = sorted(path for path in staging.glob(f"{name}-*") if is_shard(path.name))
        index, problems = load_or_build_index(shards, Fields())
        if problems or len(index.rows) != expected["examples"]:
            first = problems[0] if problems else f"{len(index.rows)} records, expected {expected['examples']}"
            raise VerificationError(f"the shards in {staging} cannot be read back: {first}.\n  Remove the folder.")


def _move_into_place(staging, destination):
    with translate_os_errors(destination):
        require_free(destination)
        (staging / _LOCK_FILE).unlink()
        if destination.exists():
            shutil.rmtree(destination)  # an empty folder
        os.rename(staging, destination)
        fsync_dir(destination.parent)


def serialize_example(
    contents: bytes, filename: str, label: int, class_name: str, *, keep_encoding: bool = False
) -> tuple[bytes, bool]:
    """Serialize an image file as a `tf.train.Example` of Model Garden's format.

    Args:
        contents: Content of the image file.
        filename: Name of the file, without folders.
        label: The class, counted from 0; written as `label + FIRST_LABEL`.
        class_name: Name of the class folder. `n01440764_tench` gives the synset `n01440764` and the text `tench`; any
            other name is both.
        keep_encoding: Whether PNG and CMYK images are kept. Otherwise they become RGB JPEGs of quality 100, because
            Model Garden reads only JPEG.

    Returns:
        The serialized example, and whether the image was converted to JPEG.

    Raises:
        OSError: If the file is not an image.
    """
    with Image.open(io.BytesIO(contents)) as image:
        (width, height), file_format, mode = image.size, image.format, image.mode
    reencoded = not keep_encoding and (file_format == "PNG" or mode == "CMYK")
    if reencoded:
        contents = tf.io.encode_jpeg(decode_image(contents), format="rgb", quality=100).numpy()
    synset, text = _synset_and_text(class_name)
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
        "image/encoded": _bytes_feature(contents),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(), reencoded


def _synset_and_text(class_name):
    """Split the name of a WordNet folder into synset and text; any other name is both."""
    match = _WORDNET_FOLDER.fullmatch(class_name)
    return (match["synset"], match["text"] or class_name) if match else (class_name, class_name)


def _int64_feature(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _bytes_feature(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
