"""How much may a request ask for? Checked before anything of that size is allocated."""

import dataclasses
import math
from collections.abc import Sequence

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
