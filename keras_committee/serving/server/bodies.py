"""How is the body of a request read without taking in more than is allowed?"""

import asyncio
import zlib

from starlette.requests import Request

from keras_committee.serving.server.limits import Limits, check_body
from keras_committee.tfserving.tf_protocol import StatusError

_SMALL = 2**20  # bytes; below, the ratio does not matter: a black image compresses well
_STEP = 2**16


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, decompressed where it is gzip.

    Raises:
        StatusError: HTTP 413 for a body beyond the limits, 408 where it does not arrive in time.
        ClientDisconnect: Where the client has gone.
    """
    check_body(_declared(request), limits)
    taken = bytearray()
    try:
        async with asyncio.timeout(limits.read_timeout):
            async for piece in request.stream():
                taken += piece
                check_body(len(taken), limits)
    except TimeoutError as error:
        message = f"the request body did not arrive within {limits.read_timeout:g} s"
        raise StatusError("DEADLINE_EXCEEDED", message, http=408) from error
    return bytes(taken)


def decompress(body: bytes, limits: Limits) -> bytes:
    """What a gzip body holds. Raises StatusError: INVALID_ARGUMENT, or HTTP 413 for a bomb."""
    inflater, held = zlib.decompressobj(wbits=31), bytearray()
    while not inflater.eof:
        try:
            piece = inflater.decompress(inflater.unconsumed_tail or (b"" if held else body), _STEP)
        except zlib.error as error:
            raise StatusError("INVALID_ARGUMENT", f"the gzip body cannot be decompressed: {error}") from error
        if not piece:
            raise StatusError("INVALID_ARGUMENT", "the gzip body cannot be decompressed: it is cut short")
        held += piece
        _check(len(held), len(body), limits)
    return bytes(held)


def is_gzip(request: Request) -> bool:
    return request.headers.get("content-encoding", "").strip().lower() == "gzip"


def _declared(request: Request) -> int:
    """The content-length; 0 where there is none."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isdigit() else 0


def _check(size: int, compressed: int, limits: Limits) -> None:
    if size > limits.decompressed:
        message = f"the request body exceeds {limits.decompressed} bytes after decompression"
        raise StatusError("RESOURCE_EXHAUSTED", message, http=413)
    if size > max(_SMALL, limits.ratio * compressed):
        message = f"the request body decompresses to more than {limits.ratio} times its size"
        raise StatusError("RESOURCE_EXHAUSTED", message, http=413)
