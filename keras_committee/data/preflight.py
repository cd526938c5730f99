"""What is wrong with the data, all of it in one message?

Each check returns a list of sentences, one for each problem; `errors.refuse` turns the collected list into one
`DataError`.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_committee.data.decode import decode_image
from keras_committee.data.images import Files, Pixels
from keras_committee.errors import refuse as refuse

CHUNK = 256  # files a thread takes at once
SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def check_labels(labels: np.ndarray, classes: int, where: str) -> list[str]:
    """Labels that are not integers in `0 .. classes - 1`, with their rows; `where` names the array."""
    if labels.ndim != 1:
        return [f"{where}: shape {labels.shape}, expected one label for each image"]
    if labels.dtype.kind not in "iuf":
        return [f"{where}: {labels.dtype} labels, expected integers"]
    kind = [f"{where}: {labels.dtype} labels, expected integers"] if labels.dtype.kind == "f" else []
    wrong = np.flatnonzero(~((labels >= 0) & (labels < classes)))  # written so that NaN is wrong
    return kind + [f"{where}: label {labels[row]} at row {row}, classes 0..{classes - 1}" for row in wrong]


def check_images(images: np.ndarray, shape: tuple[int, ...], where: str) -> list[str]:
    """Whether `images` is uint8 `(examples, *shape)`; `where` names the array."""
    if images.dtype == np.uint8 and images.shape[1:] == shape:
        return []
    wanted = ", ".join(map(str, ("examples", *shape)))
    return [f"{where}: {images.dtype} of shape {images.shape}, expected uint8 of shape ({wanted})"]


def read_files(files: Files) -> tuple[Pixels, list[str]]:
    """Decode every file into memory, and say which cannot be."""
    array = np.zeros((len(files), *files.shape), np.uint8)
    decode = tf.function(files.decode, input_signature=[tf.TensorSpec([None], tf.string)])

    def read(start):
        names = files.names[start : start + CHUNK]
        contents, problems = zip(*(_contents(files, name) for name in names), strict=True)
        if any(problems):
            return [
                problem or _undecodable(files, *pair) for problem, *pair in zip(problems, names, contents, strict=True)
            ]
        try:
            with tf.device("CPU:0"):
                array[start : start + CHUNK] = decode(tf.constant(contents))
        except tf.errors.InvalidArgumentError:  # it does not say which file
            problems = [_undecodable(files, *pair) for pair in zip(names, contents, strict=True)]
            if not any(problems):
                raise
        return problems

    problems = _each_chunk(files, read)
    return Pixels(array), problems


def check_files(files: Files) -> list[str]:
    """Which files cannot be decoded, told from their first and last bytes.

    For data too large to decode beforehand. A file is decoded only where its end looks cut off.
    """

    def glance(start):
        return [_glance(files, name) for name in files.names[start : start + CHUNK]]

    return _each_chunk(files, glance)


def _each_chunk(files, check):
    """The problems that `check(start)` returns for each chunk of files, in order, found by one thread for each core."""
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:
        found = threads.map(check, range(0, len(files), CHUNK))
        return [problem for part in found for problem in part if problem is not None]


def _contents(files, name):
    """The bytes of one file and None, or None and what is wrong with it."""
    try:
        contents = (files.root / name).read_bytes()
    except OSError as error:
        return None, f"{name}: cannot be read ({error.strerror})"
    problem = _signature(contents)[1]
    return contents, problem and f"{name}: {problem}"


def _undecodable(files, name, contents):
    """Why the content of one file cannot be used, or None."""
    try:
        height, width, _ = decode_image(contents).shape
    except tf.errors.InvalidArgumentError:
        return f"{name}: damaged or cut off, it cannot be decoded"
    if files.exact and (height, width) != files.size:
        return f"{name}: {height}x{width} pixels, expected {files.size[0]}x{files.size[1]}"
    return None


def _glance(files, name):
    """What is wrong with one file, or None."""
    try:
        with open(files.root / name, "rb") as file:
            head = file.read(16)
            file.seek(-min(16, file.seek(0, os.SEEK_END)), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror})"
    kind, problem = _signature(head)
    if problem:
        return f"{name}: {problem}"
    if tail.endswith(ENDINGS[kind]) and not files.exact:
        return None
    contents, problem = _contents(files, name)
    return problem or _undecodable(files, name, contents)


def _signature(head):
    """The format that a file's first bytes tell, and what is wrong with it."""
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            return kind, None
    if not head:
        return "", "the file is empty"
    if head.startswith(b"GIF8"):
        return "", "a GIF, whatever its name says; JPEG and PNG are read"
    return "", "neither a JPEG nor a PNG, whatever its name says"
