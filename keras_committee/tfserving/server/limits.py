"""Limits of a request, checked before anything of the requested size is allocated."""

import dataclasses
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_committee.tfserving.tf_protocol import StatusError, proto_shape, proto_to_array

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_GIF_FRAME = b"\0\x2c"  # the end of a block and the start of a frame
_MAX_EMBEDDED_IMAGES = 16  # images within one string that is itself no image, such as a tf.Example
_MARKERS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_SIZE_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF markers


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the local server. TF Serving itself has none of them; put a proxy in front of it.

    Attributes:
        max_body_bytes: Bytes of a request body as sent.
        max_decompressed_bytes: Bytes of a gzip body after decompression.
        max_compression_ratio: Decompressed bytes per compressed byte.
        max_json_depth: Levels of the lists of a tensor in JSON, and of the object around them.
        max_elements: Elements of one tensor.
        max_batch_size: Rows of one request.
        max_pixels: Pixels of one JPEG or PNG image, read from its header.
        max_connections: Open REST connections; beyond them, HTTP 503.
        max_header_bytes: Bytes of the request line and the headers.
        read_timeout: Seconds until a request must have arrived; then HTTP 408.
        response_timeout: Seconds until a request is answered; then DEADLINE_EXCEEDED, HTTP 504.
        max_queue_size: Requests waiting or running; more are UNAVAILABLE, HTTP 503.
    """

    max_body_bytes: int = 32 * 2**20
    max_decompressed_bytes: int = 64 * 2**20
    max_compression_ratio: int = 100
    max_json_depth: int = 16
    max_elements: int = 2**26
    max_batch_size: int = 1024
    max_pixels: int = 25_000_000
    max_connections: int = 512
    max_header_bytes: int = 16 * 2**10
    read_timeout: float = 10.0
    response_timeout: float = 30.0
    max_queue_size: int = 512

    def __str__(self) -> str:
        return ", ".join(f"{name}={value:,}" for name, value in dataclasses.asdict(self).items())


def check_body(size: int, limits: Limits) -> None:
    """Raise RESOURCE_EXHAUSTED, HTTP 413, if a body of `size` bytes is too large."""
    if size > limits.max_body_bytes:
        raise StatusError(
            "RESOURCE_EXHAUSTED", f"the request body exceeds {limits.max_body_bytes} bytes", http_status=413
        )


def check_shape(name: str, shape: Sequence[int], limits: Limits) -> None:
    """Raise INVALID_ARGUMENT if `shape`, (batch, ...), has too many rows or elements, or a negative size."""
    if any(size < 0 for size in shape):
        raise StatusError("INVALID_ARGUMENT", f"{name} has the shape {list(shape)}: no size may be negative")
    if (elements := math.prod(shape)) > limits.max_elements:
        raise StatusError(
            "INVALID_ARGUMENT", f"{name} has {elements} elements; at most {limits.max_elements} are allowed"
        )
    if shape and shape[0] > limits.max_batch_size:
        raise StatusError(
            "INVALID_ARGUMENT", f"{name} has a batch of {shape[0]}; at most {limits.max_batch_size} are allowed"
        )


def proto_to_checked_array(proto: Any, name: str, limits: Limits) -> np.ndarray:
    """Return the array of a TensorProto, checked against `limits`.

    Args:
        proto: TensorProto, as received.
        name: Name of the input.
        limits: Checked on the shape before the array is allocated, and on the headers of images.

    Raises:
        StatusError: INVALID_ARGUMENT for an invalid tensor, or one beyond the limits.
    """
    try:
        check_shape(name, proto_shape(proto, limits.max_elements), limits)
        array = proto_to_array(proto, limits.max_elements)
    except StatusError as error:
        raise StatusError(error.code, f"tensor parsing error: {name}: {error.message}") from error
    if array.dtype == object:
        check_image_sizes(array, limits)
    return array


def check_image_sizes(array: np.ndarray, limits: Limits) -> None:
    """Raise INVALID_ARGUMENT if a string is or contains an image with too many pixels.

    Args:
        array: Object array of bytes. A tf.Example may contain images. Which formats are accepted is left to the
            model.
        limits: `max_pixels` applies.
    """
    for content in array.ravel():
        content = content.encode() if isinstance(content, str) else content
        for start in _image_offsets(content):
            if size := image_size(content[start:] if start else content):
                _check_pixels(*size, limits)


def image_size(content: bytes) -> tuple[int, int] | None:
    """Return (width, height) from the header of a PNG, JPEG, GIF or BMP image, or None if there is no such header.

    The frames of a GIF count as one image, one below the other; their number is estimated.
    Not Pillow: it returns no size for a truncated image, which the model's decoder may still allocate.
    """
    if content.startswith(_PNG_MAGIC):
        return struct.unpack(">II", content[16:24]) if len(content) >= 24 else None
    if content.startswith(b"GIF8") and len(content) >= 10:
        width, height = struct.unpack("<HH", content[6:10])
        return width, height * max(1, content.count(_GIF_FRAME))
    if content.startswith(b"BM") and len(content) >= 26:
        width, height = struct.unpack("<ii", content[18:26])
        return abs(width), abs(height)  # a negative height: the rows from top to bottom
    return _jpeg_size(content) if content.startswith(_JPEG_MAGIC) else None


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"an image has {width} x {height} pixels; at most {limits.max_pixels} in all are allowed",
        )


def _image_offsets(content: bytes) -> list[int]:
    if content.startswith((_PNG_MAGIC, _JPEG_MAGIC, b"GIF8", b"BM")):
        return [0]
    offsets = [*_find_all(content, _PNG_MAGIC), *_find_all(content, _JPEG_MAGIC)]
    if len(offsets) > _MAX_EMBEDDED_IMAGES:
        raise StatusError("INVALID_ARGUMENT", f"a string contains more than {_MAX_EMBEDDED_IMAGES} images")
    return offsets


def _find_all(content: bytes, magic: bytes) -> Iterator[int]:
    start = content.find(magic)
    for _ in range(_MAX_EMBEDDED_IMAGES + 1):
        if start < 0:
            return
        yield start
        start = content.find(magic, start + 1)


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Scan marker by marker and skip the bytes between them, as libjpeg does."""
    offset = 2
    while (offset := content.find(b"\xff", offset)) >= 0 and offset + 9 <= len(content):
        marker = content[offset + 1]
        if marker in (0x00, 0xFF) or marker in _MARKERS_WITHOUT_LENGTH:
            offset += 1 if marker == 0xFF else 2
        elif marker in _SIZE_MARKERS:
            height, width = struct.unpack(">HH", content[offset + 5 : offset + 9])
            return width, height
        else:
            offset += 2 + max(2, struct.unpack(">H", content[offset + 2 : offset + 4])[0])
    return None
