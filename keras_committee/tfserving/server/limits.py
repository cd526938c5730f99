"""How much may a request ask for? Checked before anything of that size is allocated."""

import dataclasses
import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from keras_committee.tfserving.tf_protocol import StatusError


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the stand-in accepts. TF Serving itself has none of these limits: put a proxy before it.

    Attributes:
        body: Bytes of a request as it is sent.
        decompressed: Bytes of a gzip body after decompression.
        ratio: Decompressed bytes for each compressed byte.
        depth: Levels of lists and objects in JSON.
        elements: Of one tensor.
        batch: Rows of one request.
        pixels: Of one JPEG or PNG image, read from its header.
        connections: Open at once.
        header: Bytes of request line and headers.
        read_timeout: Seconds until a request must have arrived.
        deadline: Seconds until it is answered; then 504.
        queue: Requests that wait or run; then 503.
    """

    body: int = 32 * 2**20
    decompressed: int = 64 * 2**20
    ratio: int = 100
    depth: int = 16
    elements: int = 2**26
    batch: int = 1024
    pixels: int = 25_000_000
    connections: int = 64
    header: int = 16 * 2**10
    read_timeout: float = 10.0
    deadline: float = 30.0
    queue: int = 128

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:,}" for name, value in dataclasses.asdict(self).items())


def check_shape(name: str, shape: Sequence[int], limits: Limits) -> None:
    """Raises INVALID_ARGUMENT for a shape (batch, ...) with more rows or elements than are allowed."""
    if any(size < 0 for size in shape):
        raise StatusError("INVALID_ARGUMENT", f"{name} has the shape {list(shape)}: no size may be negative")
    if (elements := math.prod(shape)) > limits.elements:
        raise StatusError("INVALID_ARGUMENT", f"{name} has {elements} elements; at most {limits.elements} are allowed")
    if shape and shape[0] > limits.batch:
        raise StatusError("INVALID_ARGUMENT", f"{name} has a batch of {shape[0]}; at most {limits.batch} are allowed")


def check_body(size: int, limits: Limits) -> None:
    """Raises RESOURCE_EXHAUSTED, HTTP 413, for a body of `size` bytes that is too large."""
    if size > limits.body:
        raise StatusError("RESOURCE_EXHAUSTED", f"the request body exceeds {limits.body} bytes", http=413)


_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_MOST = 16  # images within one string that is itself no image, such as a tf.Example
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF markers


def check_strings(array: np.ndarray, limits: Limits, name: str = "") -> None:
    """Raises INVALID_ARGUMENT where a string is an image with too many pixels, or holds one, as a tf.Example does.

    Args:
        array: Object array of bytes.
        limits: `pixels`.
        name: Of the input. What goes into `image_bytes` must not be a GIF, BMP, TIFF or WebP image either; what is no
            image at all is left to the model.
    """
    for content in array.ravel():
        content = content.encode() if isinstance(content, str) else content
        if name == "image_bytes":
            _check_kind(content)
        for start in _starts(content):
            if size := image_size(content[start:] if start else content):
                _check_pixels(*size, limits)


def image_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) by the header of a PNG or JPEG; None where there is none."""
    if content.startswith(_PNG):
        return struct.unpack(">II", content[16:24]) if len(content) >= 24 else None
    return _jpeg_size(content) if content.startswith(_JPEG) else None


def _check_kind(content: bytes) -> None:
    kinds = [kind for magic, kind in _OTHERS.items() if content.startswith(magic)]
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kinds.append("WebP")
    if kinds:
        raise StatusError("INVALID_ARGUMENT", f"Unknown image file format: {kinds[0]}. JPEG or PNG is required.")


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"an image has {width} x {height} pixels; at most {limits.pixels} in all are allowed",
        )


def _starts(content: bytes) -> list[int]:
    if content.startswith((_PNG, _JPEG)):
        return [0]
    starts = [*_find(content, _PNG), *_find(content, _JPEG)]
    if len(starts) > _MOST:
        raise StatusError("INVALID_ARGUMENT", f"a string holds more than {_MOST} images")
    return starts


def _find(content: bytes, magic: bytes) -> Iterator[int]:
    start = content.find(magic)
    for _ in range(_MOST + 1):
        if start < 0:
            return
        yield start
        start = content.find(magic, start + 1)


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Goes from marker to marker, and over what is between them, as libjpeg does."""
    at = 2
    while (at := content.find(b"\xff", at)) >= 0 and at + 9 <= len(content):
        marker = content[at + 1]
        if marker in (0x00, 0xFF) or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
        elif marker in _SIZES:
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + max(2, struct.unpack(">H", content[at + 2 : at + 4])[0])
    return None
