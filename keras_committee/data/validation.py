"""What is wrong with the data, all of it in one message?

Each check returns a list of sentences, one for each problem; `errors.refuse` turns the collected list into one
`DataError`.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_committee.data.images import Encoded, Pixels
from keras_committee.data.preprocessing import JPEG, PNG, decode_image
from keras_committee.data.splits import Split, Splits

CHUNK = 256  # files a thread takes at once
SIGNATURES = {JPEG: "JPEG", PNG: "PNG"}
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


def check_classes(labels: np.ndarray, classes: Sequence[str], where: str) -> list[str]:
    """Classes without an example among `labels`, integers below the number of classes; `where` names the array."""
    counts = np.bincount(labels, minlength=len(classes))
    empty = zip(classes, counts, strict=True)
    return [
        f"{where}: class {label} ({name}) has no examples" for label, (name, count) in enumerate(empty) if not count
    ]


def check_images(images: np.ndarray, shape: tuple[int, ...], where: str) -> list[str]:
    """Whether `images` is uint8 `(examples, *shape)`; `where` names the array."""
    if images.dtype == np.uint8 and images.shape[1:] == shape:
        return []
    wanted = ", ".join(map(str, ("examples", *shape)))
    return [f"{where}: {images.dtype} of shape {images.shape}, expected uint8 of shape ({wanted})"]


def read_files(files: Encoded) -> tuple[Pixels, dict[int, str]]:
    """Decode every file into memory, and say which cannot be, by their places."""
    array = np.zeros((len(files), *files.shape), np.uint8)
    signature = [tf.TensorSpec([None], tf.string)]
    # A method's name in TensorFlow's warnings would be that of its object, with every file.
    decode = tf.function(lambda contents: files.decode(contents), input_signature=signature)

    def read(start):
        indices = _chunk(files, start)
        contents, problems = zip(*(_contents(files, index) for index in indices), strict=True)
        try:
            if not any(problems):
                array[start : start + CHUNK] = decoded(contents)
                return problems
        except tf.errors.InvalidArgumentError:  # it does not say which file
            pass
        problems = [
            problem or _undecodable(files, *pair) for problem, *pair in zip(problems, indices, contents, strict=True)
        ]
        whole = [place for place, problem in enumerate(problems) if problem is None]
        array[[start + place for place in whole]] = decoded([contents[place] for place in whole])
        return problems

    def decoded(contents):
        with tf.device("CPU:0"):
            return decode(tf.constant(contents, tf.string, shape=[len(contents)]))

    problems = _each_chunk(files, read)
    return Pixels(array, files), problems


def check_files(files: Encoded) -> dict[int, str]:
    """Which files cannot be decoded, by their places, told from their first and last bytes.

    For data too large to decode beforehand. A file is decoded only where its end looks cut off.
    """

    def glance(start):
        return [_glance(files, index) for index in _chunk(files, start)]

    return _each_chunk(files, glance)


def _chunk(files, start):
    return range(start, min(start + CHUNK, len(files)))


def _each_chunk(files, check):
    """The problems among those, one or None for each file, that `check(start)` returns for each chunk of files."""
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:
        found = threads.map(check, range(0, len(files), CHUNK))
        problems = [problem for part in found for problem in part]
    return {place: problem for place, problem in enumerate(problems) if problem is not None}


def _contents(files, index):
    """The bytes of one file and None, or None and what is wrong with it."""
    try:
        contents = files.read(index)
    except OSError as error:
        return None, f"{files.name(index)}: cannot be read ({error.strerror})"
    problem = _signature(contents)[1]
    return contents, problem and f"{files.name(index)}: {problem}"


def _undecodable(files, index, contents):
    """Why the content of one file cannot be used, or None."""
    try:
        height, width, _ = decode_image(contents).shape
    except tf.errors.InvalidArgumentError:
        return f"{files.name(index)}: damaged or cut off, it cannot be decoded"
    if files.exact and (height, width) != files.framing.size:
        return f"{files.name(index)}: {height}x{width} pixels, expected {'x'.join(map(str, files.framing.size))}"
    return None


def _glance(files, index):
    """What is wrong with one file, or None."""
    try:
        head, tail = files.ends(index)
    except OSError as error:
        return f"{files.name(index)}: cannot be read ({error.strerror})"
    kind, problem = _signature(head)
    if problem:
        return f"{files.name(index)}: {problem}"
    if tail.endswith(ENDINGS[kind]) and not files.exact:
        return None
    contents, problem = _contents(files, index)
    return problem or _undecodable(files, index, contents)


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


SHOWN = 5


def told(splits: Splits) -> str | None:
    """A sentence on the test images that are training or validation images too, or None where there are none."""
    parts = {"train": splits.train, "validation": splits.validation}
    pairs = zip(parts.items(), twins(list(parts.values()), splits.test), strict=True)
    found = [
        f"{splits.test.images.name(test)} is {name} image {part.images.name(place)}"
        for (name, part), places in pairs
        for test, place in places
    ]
    if not found:
        return None
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"{len(found)} of {len(splits.test)} test images are trained on as well: {', '.join(found[:SHOWN])}{more}.\n"
        "  What is measured on them is too good: take them out of one of the splits."
    )


def twins(parts: Sequence[Split], test: Split) -> list[list[tuple[int, int]]]:
    """For each of `parts` the places (in `test`, in the part) of equal images.

    Equal are those of equal pixels in memory, of equal bytes in files.
    """
    glances = _digests(test, range(len(test)), glance=True)
    return [_twins(part, test, glances) for part in parts]


def _twins(part: Split, test: Split, glances: dict[int, bytes]) -> list[tuple[int, int]]:
    seen = _digests(part, range(len(part)), glance=True)
    both = set(glances.values()) & set(seen.values())
    seen = _digests(part, (place for place, glance in seen.items() if glance in both))
    places = {digest: place for place, digest in reversed(seen.items())}  # the first of several
    near = _digests(test, (place for place, glance in glances.items() if glance in both))
    return [(place, places[digest]) for place, digest in near.items() if digest in places]


def _digests(split: Split, places: Iterable[int], *, glance: bool = False) -> dict[int, bytes]:
    """Of the images at `places`; with `glance` of the little of them that was read before."""
    places = list(places)
    return dict(zip(places, split.images.digests(places, glance=glance), strict=True))
