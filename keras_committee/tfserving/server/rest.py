"""How does the REST API of TF Serving listen on a port, and answer with its URLs, codes and texts?"""

import asyncio
import functools
import importlib.util
import logging
import re
import threading
import zlib
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount
from uvicorn.protocols.http.h11_impl import H11Protocol

from keras_committee.tfserving.server import json_output
from keras_committee.tfserving.server.limits import Limits, check_body
from keras_committee.tfserving.server.manager import Manager
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.ports import listen
from keras_committee.tfserving.server.rest_handlers import LOOPBACK, Gate, Requests, Target, read_target
from keras_committee.tfserving.server.worker_pool import Work
from keras_committee.tfserving.tf_protocol import StatusError

MONITORING = "/monitoring/prometheus/metrics"
_API = re.compile(r"/v1/.*", re.I | re.S)
# What libevent answers in TF Serving for a path that it does not know.
_NOT_FOUND = "<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"

_log = logging.getLogger(__name__)


class RestServer:
    """A REST server in a thread of its own. `port` is the one that it listens on; `close` ends it."""

    def __init__(self, server: uvicorn.Server, sockets: list[Any], work: Work):
        self.port: int = sockets[0].getsockname()[1]
        self._server, self._work = server, work
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, name="rest", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answers what is being asked, then ends. A second call does nothing."""
        self._server.should_exit = True
        self._thread.join()
        self._work.close()

    def __enter__(self) -> "RestServer":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def start(
    manager: Manager,
    address: tuple[str, int],
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    monitoring: str = MONITORING,
    threads: int | None = None,
) -> RestServer:
    """Listens on `address`, (host, port); port 0 takes a free one.

    Args:
        manager: Where the models come from; it outlives the server.
        address: Host and port. Only on a loopback host is the Host header checked, against another page's tricks.
        limits: What a request may ask for.
        metrics: Where requests are counted.
        monitoring: Path of the page for Prometheus.
        threads: That answer requests; a few more than cores where None.

    Raises:
        ResourceError: If the port is in use, or may not be taken.
    """
    limits = limits or Limits()
    socket, work = listen(*address), Work(limits, threads)
    app = make_app(manager, limits, metrics or Metrics(), work, monitoring, hosts=_hosts(address[0]))
    config = uvicorn.Config(
        app,
        http=functools.partial(Connection, limits),  # pyright: ignore[reportArgumentType]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.header,
        timeout_graceful_shutdown=5,
    )
    return RestServer(uvicorn.Server(config), [socket], work)


def make_app(
    manager: Manager, limits: Limits, metrics: Metrics, work: Work, monitoring: str, hosts: frozenset[str] | None
) -> Gate:
    """The application: the web page at /, the API and the page for Prometheus."""
    api = _Api(Requests(manager, limits, metrics), limits, metrics, work, monitoring)
    return Gate(Starlette(routes=[*_page_routes(manager), Mount("/", app=api)]), hosts, limits)


class _Api:
    """One application for all paths: no router knows `:predict`, or takes the rest of a path for what it is."""

    def __init__(self, requests: Requests, limits: Limits, metrics: Metrics, work: Work, monitoring: str):
        self._requests, self._limits, self._metrics = requests, limits, metrics
        self._work, self._monitoring = work, monitoring

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode("ascii")
        try:
            response = await self._answer(request, path)
        except ClientDisconnect:
            return
        except StatusError as error:
            headers = {"connection": "close"} if error.http in (408, 413) else {}  # the rest of the body is not read
            response = _json(json_output.error(error.message), error.http, headers)
        await response(scope, receive, send)

    async def _answer(self, request: Request, path: str) -> Response:
        if path == self._monitoring:
            return Response(self._metrics.page(), media_type="text/plain")
        if not _API.fullmatch(path):
            return Response(_NOT_FOUND, 404, media_type="text/html")
        target = read_target(request.method, path)
        if target.verb == "status":
            return _json(self._requests.status(target))
        if target.verb == "metadata":
            return _json(self._requests.metadata(target))
        return await self._call(request, target)

    async def _call(self, request: Request, target: Target) -> Response:
        body, packed = await read_body(request, self._limits), is_gzip(request)

        def job(deadline: float) -> bytes:
            content = decompress(body, self._limits) if packed else body
            return self._requests.answer(target, content, deadline).encode("utf-8", "replace")

        return _json(await self._work.run(job))


def _json(content: str | bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    return Response(content, status, headers, media_type="application/json")


def _hosts(host: str) -> frozenset[str] | None:
    return LOOPBACK | {host.lower()} if host in LOOPBACK or host.startswith("127.") else None


def _page_routes(manager: Manager) -> list[Any]:
    if importlib.util.find_spec("keras_committee.tfserving.server.page") is None:
        return []
    page = importlib.import_module("keras_committee.tfserving.server.page")
    return page.routes(manager)


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


class Connection(H11Protocol):
    """uvicorn's connection with a clock: for headers and body, for the whole of a request, and a limit to their number.

    Where there are too many, the one that has kept us waiting longest for its request is closed; where all are being
    answered, the new one gets 503.
    """

    def __init__(self, limits: Limits, **arguments: Any):
        super().__init__(**arguments)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._answering = False
        self.waiting_since = self.loop.time()

    def connection_made(self, transport: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections and not self._make_room():
            self._refuse(503, f"more than {self._limits.connections} connections")
            return
        self._start(self._limits.read_timeout, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked and not self._answering:
            self._answering = True  # the body has a clock in the application; this one is for a client that never reads
            self._start(2 * self._limits.read_timeout + self._limits.deadline, self.transport.abort)
        elif not asked and self._timer is None:
            self._start(self._limits.read_timeout, self._too_slow)

    def on_response_complete(self) -> None:
        self._stop()
        self._answering = False
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read, as JSON; and nothing more where an answer is already under way."""
        within_headers = self.cycle is None or self.cycle.response_complete
        too_long = within_headers and len(self.conn.trailing_data[0]) > self._limits.header
        self._refuse(431 if too_long else 400, f"the headers exceed {self._limits.header} bytes" if too_long else msg)

    def waits(self) -> bool:
        """Whether the client owes us a request, or the rest of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _make_room(self) -> bool:
        waiting = [each for each in self.connections if isinstance(each, Connection) and each.waits()]
        oldest = min((each for each in waiting if each is not self), key=lambda each: each.waiting_since, default=None)
        if oldest is not None:
            oldest.transport.abort()
            self.connections.discard(oldest)
        return oldest is not None

    def _too_slow(self) -> None:
        self._timer = None
        self._refuse(408, f"no request within {self._limits.read_timeout:g} s")

    def _refuse(self, status: int, message: str) -> None:
        body = json_output.error(message).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an answer is under way, and ends here
        self.transport.close()

    def _start(self, seconds: float, then: Any) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, then)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
