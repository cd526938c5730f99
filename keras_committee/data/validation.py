"""What is wrong with the data, all of it in one message?

Each check returns a list of sentences, one for each problem; `errors.raise_if_problems` turns the collected list into one
`DataError`.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_committee.data.images import EncodedImages, InMemoryImages
from keras_committee.data.preprocessing import JPEG_MAGIC, PNG_MAGIC, decode_image
from keras_committee.data.splits import Split, Splits

CHUNK_SIZE = 256  # files a thread takes at once
FORMAT_BY_MAGIC = {JPEG_MAGIC: "JPEG", PNG_MAGIC: "PNG"}
END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def check_labels(labels: np.ndarray, classes: int, array_name: str) -> list[str]:
    """Labels that are not integers in `0 .. classes - 1`, with their rows; `array_name` names the array."""
    if labels.ndim != 1:
        return [f"{array_name}: shape {labels.shape}, expected one label for each image"]
    if labels.dtype.kind not in "iuf":
        return [f"{array_name}: {labels.dtype} labels, expected integers"]
    dtype_problems = [f"{array_name}: {labels.dtype} labels, expected integers"] if labels.dtype.kind == "f" else []
    bad_rows = np.flatnonzero(~((labels >= 0) & (labels < classes)))  # written so that NaN is wrong
    return dtype_problems + [
        f"{array_name}: label {labels[row]} at row {row}, classes 0..{classes - 1}" for row in bad_rows
    ]


def check_classes(labels: np.ndarray, classes: Sequence[str], array_name: str) -> list[str]:
    """Classes without an example among `labels`, integers below the number of classes; `array_name` names the array."""
    counts = np.bincount(labels, minlength=len(classes))
    class_counts = zip(classes, counts, strict=True)
    return [
        f"{array_name}: class {label} ({name}) has no examples"
        for label, (name, count) in enumerate(class_counts)
        if not count
    ]


def check_images(images: np.ndarray, shape: tuple[int, ...], array_name: str) -> list[str]:
    """Whether `images` is uint8 `(examples, *shape)`; `array_name` names the array."""
    if images.dtype == np.uint8 and images.shape[1:] == shape:
        return []
    expected_shape = ", ".join(map(str, ("examples", *shape)))
    return [f"{array_name}: {images.dtype} of shape {images.shape}, expected uint8 of shape ({expected_shape})"]


def read_files(files: EncodedImages) -> tuple[InMemoryImages, dict[int, str]]:
    """Decode every file into memory, and say which cannot be, by their places."""
    array = np.zeros((len(files), *files.shape), np.uint8)
    signature = [tf.TensorSpec([None], tf.string)]
    # A method's name in TensorFlow's warnings would be that of its object, with every file.
    decode = tf.function(lambda contents: files.decode(contents), input_signature=signature)

    def read_chunk(start):
        indices = _chunk_indices(files, start)
        contents, problems = zip(*(_read_file(files, index) for index in indices), strict=True)
        try:
            if not any(problems):
                array[start : start + CHUNK_SIZE] = decode_batch(contents)
                return problems
        except tf.errors.InvalidArgumentError:  # it does not say which file
            pass
        problems = [
            problem or _decoding_problem(files, *pair)
            for problem, *pair in zip(problems, indices, contents, strict=True)
        ]
        valid = [index_in_chunk for index_in_chunk, problem in enumerate(problems) if problem is None]
        array[[start + place for place in valid]] = decode_batch([contents[place] for place in valid])
        return problems

    def decode_batch(contents):
        with tf.device("CPU:0"):
            return decode(tf.constant(contents, tf.string, shape=[len(contents)]))

    problems = _check_chunks(files, read_chunk)
    return InMemoryImages(array, files), problems


def check_files(files: EncodedImages) -> dict[int, str]:
    """Which files cannot be decoded, by their places, told from their first and last bytes.

    For data too large to decode beforehand. A file is decoded only where its end looks cut off.
    """

    def check_chunk(start):
        return [_check_header(files, index) for index in _chunk_indices(files, start)]

    return _check_chunks(files, check_chunk)


def _chunk_indices(files, start):
    return range(start, min(start + CHUNK_SIZE, len(files)))


def _check_chunks(files, check):
    """The problems among those, one or None for each file, that `check(start)` returns for each chunk of files."""
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:
        chunk_problems = threads.map(check, range(0, len(files), CHUNK_SIZE))
        problems = [problem for chunk in chunk_problems for problem in chunk]
    return {index: problem for index, problem in enumerate(problems) if problem is not None}


def _read_file(files, index):
    """The bytes of one file and None, or None and what is wrong with it."""
    try:
        contents = files.read(index)
    except OSError as error:
        return None, f"{files.name(index)}: cannot be read ({error.strerror})"
    problem = _detect_format(contents)[1]
    return contents, problem and f"{files.name(index)}: {problem}"


def _decoding_problem(files, index, contents):
    """Why the content of one file cannot be used, or None."""
    try:
        height, width, _ = decode_image(contents).shape
    except tf.errors.InvalidArgumentError:
        return f"{files.name(index)}: damaged or cut off, it cannot be decoded"
    if files.require_exact_size and (height, width) != files.transform.size:
        return f"{files.name(index)}: {height}x{width} pixels, expected {'x'.join(map(str, files.transform.size))}"
    return None


def _check_header(files, index):
    """What is wrong with one file, or None."""
    try:
        head, tail = files.head_and_tail(index)
    except OSError as error:
        return f"{files.name(index)}: cannot be read ({error.strerror})"
    format_name, problem = _detect_format(head)
    if problem:
        return f"{files.name(index)}: {problem}"
    if tail.endswith(END_MARKERS[format_name]) and not files.require_exact_size:
        return None
    contents, problem = _read_file(files, index)
    return problem or _decoding_problem(files, index, contents)


def _detect_format(head):
    """The format that a file's first bytes tell, and what is wrong with it."""
    for magic, format_name in FORMAT_BY_MAGIC.items():
        if head.startswith(magic):
            return format_name, None
    if not head:
        return "", "the file is empty"
    if head.startswith(b"GIF8"):
        return "", "a GIF, whatever its name says; JPEG and PNG are read"
    return "", "neither a JPEG nor a PNG, whatever its name says"


MAX_SHOWN = 5


def duplicates_warning(splits: Splits) -> str | None:
    """A sentence on the test images that are training or validation images too, or None where there are none."""
    splits_by_name = {"train": splits.train, "validation": splits.validation}
    pairs = zip(splits_by_name.items(), find_duplicates(list(splits_by_name.values()), splits.test), strict=True)
    duplicates = [
        f"{splits.test.images.name(test_index)} is {name} image {split.images.name(index)}"
        for (name, split), index_pairs in pairs
        for test_index, index in index_pairs
    ]
    if not duplicates:
        return None
    more = f", and {len(duplicates) - MAX_SHOWN} more" if len(duplicates) > MAX_SHOWN else ""
    return (
        f"{len(duplicates)} of {len(splits.test)} test images are trained on as well: {', '.join(duplicates[:MAX_SHOWN])}{more}.\n"
        "  What is measured on them is too good: take them out of one of the splits."
    )


def find_duplicates(other_splits: Sequence[Split], test: Split) -> list[list[tuple[int, int]]]:
    """For each of `other_splits` the places (in `test`, in the part) of equal images.

    Equal are those of equal pixels in memory, of equal bytes in files.
    """
    test_quick_hashes = _hashes_by_index(test, range(len(test)), ends_only=True)
    return [_find_duplicates_in(split, test, test_quick_hashes) for split in other_splits]


def _find_duplicates_in(split: Split, test: Split, test_quick_hashes: dict[int, bytes]) -> list[tuple[int, int]]:
    split_hashes = _hashes_by_index(split, range(len(split)), ends_only=True)
    shared_hashes = set(test_quick_hashes.values()) & set(split_hashes.values())
    split_hashes = _hashes_by_index(
        split, (index for index, quick_hash in split_hashes.items() if quick_hash in shared_hashes)
    )
    index_by_hash = {digest: place for place, digest in reversed(split_hashes.items())}  # the first of several
    test_hashes = _hashes_by_index(
        test, (place for place, glance in test_quick_hashes.items() if glance in shared_hashes)
    )
    return [(place, index_by_hash[digest]) for place, digest in test_hashes.items() if digest in index_by_hash]


def _hashes_by_index(split: Split, indices: Iterable[int], *, ends_only: bool = False) -> dict[int, bytes]:
    """Of the images at `indices`; with `ends_only` of the little of them that was read before."""
    indices = list(indices)
    return dict(zip(indices, split.images.hashes(indices, ends_only=ends_only), strict=True))
