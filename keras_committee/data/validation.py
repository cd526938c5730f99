"""Checks of the data before training: labels, images, unreadable files, and duplicates between splits.

Each check returns a list of sentences, one per problem; `errors.raise_if_problems` turns them into one `DataError`.
"""

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_committee.data.images import EncodedImages, InMemoryImages
from keras_committee.data.lazy_tensorflow import tf
from keras_committee.data.preprocessing import decode_image
from keras_committee.data.splits import Split, Splits
from keras_committee.errors import DataError, ResourceError, raise_if_problems
from keras_committee.files import write_file
from keras_committee.image_header import JPEG_MAGIC, PNG_MAGIC
from keras_committee.progress import track

CHUNK_SIZE = 256  # files per task of a thread
_FORMAT_BY_MAGIC = {JPEG_MAGIC: "JPEG", PNG_MAGIC: "PNG"}
_MIN_CACHED_IMAGES = 2_000  # fewer are decoded in about two seconds
_MIN_LOGGED_IMAGES = 2 * _MIN_CACHED_IMAGES
_DAMAGED_SINCE_HINT = (
    "What was trained or computed before is kept. Restore these files and run the same command again. Without them, "
    "skip_bad=N in the recipe skips up to N images; members that are not finished then need --restart."
)

_log = logging.getLogger(__name__)
_MAX_LISTED_DUPLICATES = 5


def check_labels(labels: np.ndarray, classes: int, array_name: str) -> list[str]:
    """Find labels that are not integers in `0 .. classes - 1`.

    Args:
        labels: The labels, any array.
        classes: Number of classes.
        array_name: Name of the array for the messages.
    """
    if labels.ndim != 1:
        return [f"{array_name}: shape {labels.shape}, expected one label for each image"]
    if labels.dtype.kind not in "iuf":
        return [f"{array_name}: {labels.dtype} labels, expected integers"]
    dtype_problems = [f"{array_name}: {labels.dtype} labels, expected integers"] if labels.dtype.kind == "f" else []
    bad_rows = np.flatnonzero(~((labels >= 0) & (labels < classes)))  # negated, so that NaN is bad
    return dtype_problems + [
        f"{array_name}: label {labels[row]} at row {row}, classes 0..{classes - 1}" for row in bad_rows
    ]


def check_classes(labels: np.ndarray, classes: Sequence[str], array_name: str) -> list[str]:
    """Find classes without an example.

    Args:
        labels: Integers in `0 .. len(classes) - 1`, `(examples,)`.
        classes: Class names, in label order.
        array_name: Name of the array for the messages.
    """
    counts = np.bincount(labels, minlength=len(classes))
    return [
        f"{array_name}: class {label} ({name}) has no examples"
        for label, (name, count) in enumerate(zip(classes, counts, strict=True))
        if not count
    ]


def check_images(images: np.ndarray, shape: tuple[int, ...], array_name: str) -> list[str]:
    """Check that `images` is uint8 `(examples, *shape)`.

    Args:
        images: The images, any array.
        shape: Required height, width and channels.
        array_name: Name of the array for the messages.
    """
    if images.dtype == np.uint8 and images.shape[1:] == shape:
        return []
    expected_shape = ", ".join(map(str, ("examples", *shape)))
    return [f"{array_name}: {images.dtype} of shape {images.shape}, expected uint8 of shape ({expected_shape})"]


def read_files(files: EncodedImages) -> tuple[InMemoryImages, dict[int, str]]:
    """Decode all files into memory.

    Returns:
        The images, black where a file cannot be decoded, and the problem of each such file by its index.
    """
    array = np.zeros((len(files), *files.shape), np.uint8)

    def read_chunk(start):
        indices = _chunk_indices(files, start)
        contents, problems = zip(*(_read_file(files, index) for index in indices), strict=True)
        try:
            if not any(problems):
                array[start : start + CHUNK_SIZE] = files.decode(contents)
                return problems
        except tf.errors.InvalidArgumentError:  # does not name the file
            pass
        problems = [
            problem or _decoding_problem(files, index, content)
            for problem, index, content in zip(problems, indices, contents, strict=True)
        ]
        valid = [position for position, problem in enumerate(problems) if problem is None]
        array[[start + position for position in valid]] = files.decode([contents[position] for position in valid])
        return problems

    problems = _check_chunks(files, read_chunk)
    return InMemoryImages(array, files), problems


def check_files(files: EncodedImages, *, recheck: bool = False) -> dict[int, str]:
    """Find files that cannot be decoded, for data too large to keep in memory.

    Each image is decoded once, JPEGs at an eighth of their size, which takes two thirds of the time and detects the
    same damage (on 480 damaged JPEGs). What was decoded is remembered by name, size and modification time, or by
    the checksum of the record, next to the shards or in the user's cache.

    A JPEG has no checksum: damage that libjpeg decodes, to wrong pixels, is not found.

    Args:
        files: The images.
        recheck: Whether to decode images that were decoded before, too.

    Returns:
        The problem of each bad file by its index.
    """
    keys = files.content_keys()
    known = np.zeros(0, np.uint64) if files.require_exact_size else _load_decoded(files)
    unchecked = np.arange(len(files)) if recheck else np.flatnonzero((keys == 0) | ~np.isin(keys, known))
    if len(unchecked) > _MIN_LOGGED_IMAGES:
        _log.warning("decoding %s images, once, to find those that are damaged", f"{len(unchecked):,}")

    def check_chunk(start):
        return [_check_file(files, index) for index in unchecked[start : start + CHUNK_SIZE].tolist()]

    found = _check_chunks(unchecked, check_chunk)
    problems = {int(unchecked[position]): problem for position, problem in found.items()}
    decoded = np.setdiff1d(np.concatenate([known, keys]), [0, *keys[list(problems)]])
    if not files.require_exact_size and len(decoded) >= _MIN_CACHED_IMAGES and not np.array_equal(decoded, known):
        _store_decoded(files, decoded)
    return problems


@contextlib.contextmanager
def name_unreadable_images(*splits: Split) -> Iterator[None]:
    """Raise DataError with the names of the damaged or missing images in place of TensorFlow's error, which has none.

    Args:
        splits: The splits that are read in the `with` block.
    """
    try:
        yield
    except Exception as error:
        encoded = [split.images for split in splits if isinstance(split.images, EncodedImages)]
        if not encoded or not _is_read_error(error):
            raise
        problems = [problem for images in encoded for problem in check_files(images, recheck=True).values()]
        raise_if_problems("images that could be read before", problems, _DAMAGED_SINCE_HINT)
        raise


def _is_read_error(error):
    errors = tf.errors
    return isinstance(
        error,
        (
            errors.InvalidArgumentError,  # a damaged image
            errors.NotFoundError,
            errors.PermissionDeniedError,
            errors.FailedPreconditionError,  # a folder in place of the file
            errors.UnknownError,  # an exception of `TFRecordImages.read_batch`
        ),
    )


def duplicates_warning(splits: Splits) -> str | None:
    """Return a warning that names test images which are also training or validation images, or None."""
    others = {"train": splits.train, "validation": splits.validation}
    pairs = find_duplicates(list(others.values()), splits.test)
    duplicates = [
        f"{splits.test.images.name(test_index)} is {name} image {split.images.name(index)}"
        for (name, split), index_pairs in zip(others.items(), pairs, strict=True)
        for test_index, index in index_pairs
    ]
    if not duplicates:
        return None
    listed = ", ".join(duplicates[:_MAX_LISTED_DUPLICATES])
    more = f", and {len(duplicates) - _MAX_LISTED_DUPLICATES} more" if len(duplicates) > _MAX_LISTED_DUPLICATES else ""
    verb = "is" if len(duplicates) == 1 else "are"
    return (
        f"{len(duplicates)} of {len(splits.test)} test images {verb} in the training or validation split, too: "
        f"{listed}{more}.\n  The test accuracy is too high; remove the duplicates from one of the splits."
    )


def find_duplicates(other_splits: Sequence[Split], test: Split) -> list[list[tuple[int, int]]]:
    """Find test images that are also in other splits: equal pixels in memory, equal bytes in files.

    Returns:
        For each of `other_splits` the pairs of indices (in `test`, in the other split).
    """
    test_quick_hashes = _hashes_by_index(test, range(len(test)), ends_only=True)
    return [_find_duplicates_in(split, test, test_quick_hashes) for split in other_splits]


def _chunk_indices(files, start):
    return range(start, min(start + CHUNK_SIZE, len(files)))


def _check_chunks(files, check):
    """Collect the problems that `check(start)` returns for each chunk, one or None per file."""
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:
        chunk_problems = threads.map(check, range(0, len(files), CHUNK_SIZE))
        chunk_problems = track(chunk_problems, f"reading {len(files):,} images", len(files), size=len)
        problems = [problem for chunk in chunk_problems for problem in chunk]
    return {index: problem for index, problem in enumerate(problems) if problem is not None}


def _read_file(files, index):
    """Return the bytes of one file and its problem; either may be None."""
    try:
        contents = files.read(index)
    except OSError as error:
        return None, f"{files.name(index)}: cannot be read ({error.strerror})"
    except DataError as error:
        return None, f"{files.name(index)}: {error}"
    problem = _detect_format(contents)[1]
    return contents, problem and f"{files.name(index)}: {problem}"


def _decoding_problem(files, index, contents, ratio=1):
    """Return why the contents of one file cannot be used, or None; JPEGs are decoded at 1 / `ratio` of their size."""
    try:
        with tf.device("CPU:0"):
            height, width, _ = decode_image(contents, ratio).shape
    except tf.errors.InvalidArgumentError:
        return f"{files.name(index)}: damaged or cut off, it cannot be decoded"
    if files.require_exact_size and (height, width) != files.transform.size:
        return f"{files.name(index)}: {height}x{width} pixels, expected {'x'.join(map(str, files.transform.size))}"
    return None


def _check_file(files, index):
    """Return the problem of one file, or None."""
    contents, problem = _read_file(files, index)
    return problem or _decoding_problem(files, index, contents, ratio=1 if files.require_exact_size else 8)


def _load_decoded(files):
    """Return the content keys of images that were decoded before, uint64, ascending."""
    for path in files.cache_paths():
        try:
            keys = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if keys.dtype == np.uint64 and keys.ndim == 1:
            return keys
    return np.zeros(0, np.uint64)


def _store_decoded(files, keys):
    buffer = io.BytesIO()
    np.save(buffer, keys, allow_pickle=False)
    for path in files.cache_paths():
        with contextlib.suppress(ResourceError):  # a read-only folder: the next command decodes them again
            write_file(path, buffer.getvalue())
            return


def _detect_format(head):
    """Return the format of a file that starts with `head`, and its problem or None."""
    for magic, format_name in _FORMAT_BY_MAGIC.items():
        if head.startswith(magic):
            return format_name, None
    if not head:
        return "", "the file is empty"
    if head.startswith(b"GIF8"):
        return "", "a GIF file; only JPEG and PNG are supported"
    return "", "neither a JPEG nor a PNG file"


def _find_duplicates_in(split, test, test_quick_hashes):
    """Compare full hashes only where the hashes of the ends are equal."""
    split_hashes = _hashes_by_index(split, range(len(split)), ends_only=True)
    shared = set(test_quick_hashes.values()) & set(split_hashes.values())
    split_hashes = _hashes_by_index(split, (index for index, quick in split_hashes.items() if quick in shared))
    index_by_hash = {digest: index for index, digest in reversed(split_hashes.items())}  # the first of several
    test_hashes = _hashes_by_index(test, (index for index, quick in test_quick_hashes.items() if quick in shared))
    return [(index, index_by_hash[digest]) for index, digest in test_hashes.items() if digest in index_by_hash]


def _hashes_by_index(split: Split, indices: Iterable[int], *, ends_only: bool = False) -> dict[int, bytes]:
    indices = list(indices)
    return dict(zip(indices, split.images.hashes(indices, ends_only=ends_only), strict=True))
