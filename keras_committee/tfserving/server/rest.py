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
from keras_committee.tfserving.server.rest_handlers import (
    LOOPBACK_HOSTS,
    HostCheckMiddleware,
    RestHandlers,
    Route,
    parse_route,
)
from keras_committee.tfserving.server.worker_pool import BoundedExecutor
from keras_committee.tfserving.tf_protocol import StatusError

METRICS_PATH = "/monitoring/prometheus/metrics"
_API_PATH = re.compile(r"/v1/.*", re.I | re.S)
# What libevent answers in TF Serving for a path that it does not know.
_NOT_FOUND_PAGE = "<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"

_log = logging.getLogger(__name__)


class RestServer:
    """A REST server in a thread of its own. `port` is the one that it listens on; `close` ends it."""

    def __init__(self, server: uvicorn.Server, sockets: list[Any], executor: BoundedExecutor):
        self.port: int = sockets[0].getsockname()[1]
        self._server, self._executor = server, executor
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, name="rest", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answers what is being asked, then ends. A second call does nothing."""
        self._server.should_exit = True
        self._thread.join()
        self._executor.close()

    def __enter__(self) -> "RestServer":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def start(
    manager: Manager,
    address: tuple[str, int],
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    metrics_path: str = METRICS_PATH,
    num_threads: int | None = None,
) -> RestServer:
    """Listens on `address`, (host, port); port 0 takes a free one.

    Args:
        manager: Where the models come from; it outlives the server.
        address: Host and port. Only on a loopback host is the Host header checked, against another page's tricks.
        limits: What a request may ask for.
        metrics: Where requests are counted.
        metrics_path: Path of the page for Prometheus.
        num_threads: That answer requests; a few more than cores where None.

    Raises:
        ResourceError: If the port is in use, or may not be taken.
    """
    limits = limits or Limits()
    socket, executor = listen(*address), BoundedExecutor(limits, num_threads)
    app = make_app(
        manager, limits, metrics or Metrics(), executor, metrics_path, allowed_hosts=_allowed_hosts(address[0])
    )
    config = uvicorn.Config(
        app,
        http=functools.partial(LimitedH11Protocol, limits),  # pyright: ignore[reportArgumentType]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.max_header_bytes,
        timeout_graceful_shutdown=5,
    )
    return RestServer(uvicorn.Server(config), [socket], executor)


def make_app(
    manager: Manager,
    limits: Limits,
    metrics: Metrics,
    executor: BoundedExecutor,
    metrics_path: str,
    allowed_hosts: frozenset[str] | None,
) -> HostCheckMiddleware:
    """The application: the web page at /, the API and the page for Prometheus."""
    api = _ApiApp(RestHandlers(manager, limits, metrics), limits, metrics, executor, metrics_path)
    return HostCheckMiddleware(Starlette(routes=[*_page_routes(manager), Mount("/", app=api)]), allowed_hosts, limits)


class _ApiApp:
    """One application for all paths: no router knows `:predict`, or takes the rest of a path for what it is."""

    def __init__(
        self, handlers: RestHandlers, limits: Limits, metrics: Metrics, executor: BoundedExecutor, metrics_path: str
    ):
        self._handlers, self._limits, self._metrics = handlers, limits, metrics
        self._executor, self._metrics_path = executor, metrics_path

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode("ascii")
        try:
            response = await self._respond(request, path)
        except ClientDisconnect:
            return
        except StatusError as error:
            headers = (
                {"connection": "close"} if error.http_status in (408, 413) else {}
            )  # the rest of the body is not read
            response = _json_response(json_output.format_error(error.message), error.http_status, headers)
        await response(scope, receive, send)

    async def _respond(self, request: Request, path: str) -> Response:
        if path == self._metrics_path:
            return Response(self._metrics.render(), media_type="text/plain")
        if not _API_PATH.fullmatch(path):
            return Response(_NOT_FOUND_PAGE, 404, media_type="text/html")
        route = parse_route(request.method, path)
        if route.verb == "status":
            return _json_response(self._handlers.status(route))
        if route.verb == "metadata":
            return _json_response(self._handlers.metadata(route))
        return await self._call_handler(request, route)

    async def _call_handler(self, request: Request, route: Route) -> Response:
        body, is_gzipped = await read_body(request, self._limits), is_gzip(request)

        def job(deadline: float) -> bytes:
            content = decompress(body, self._limits) if is_gzipped else body
            return self._handlers.handle(route, content, deadline).encode("utf-8", "replace")

        return _json_response(await self._executor.run(job))


def _json_response(content: str | bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    return Response(content, status, headers, media_type="application/json")


def _allowed_hosts(host: str) -> frozenset[str] | None:
    return LOOPBACK_HOSTS | {host.lower()} if host in LOOPBACK_HOSTS or host.startswith("127.") else None


def _page_routes(manager: Manager) -> list[Any]:
    if importlib.util.find_spec("keras_committee.tfserving.server.page") is None:
        return []
    page = importlib.import_module("keras_committee.tfserving.server.page")
    return page.routes(manager)


_RATIO_EXEMPT_BYTES = 2**20  # bytes; below, the ratio does not matter: a black image compresses well
_CHUNK_BYTES = 2**16


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, decompressed where it is gzip.

    Raises:
        StatusError: HTTP 413 for a body beyond the limits, 408 where it does not arrive in time.
        ClientDisconnect: Where the client has gone.
    """
    check_body(_content_length(request), limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_timeout):
            async for chunk in request.stream():
                body += chunk
                check_body(len(body), limits)
    except TimeoutError as error:
        message = f"the request body did not arrive within {limits.read_timeout:g} s"
        raise StatusError("DEADLINE_EXCEEDED", message, http_status=408) from error
    return bytes(body)


def decompress(body: bytes, limits: Limits) -> bytes:
    """What a gzip body holds. Raises StatusError: INVALID_ARGUMENT, or HTTP 413 for a bomb."""
    decompressor, content = zlib.decompressobj(wbits=31), bytearray()
    while not decompressor.eof:
        try:
            chunk = decompressor.decompress(decompressor.unconsumed_tail or (b"" if content else body), _CHUNK_BYTES)
        except zlib.error as error:
            raise StatusError("INVALID_ARGUMENT", f"the gzip body cannot be decompressed: {error}") from error
        if not chunk:
            raise StatusError("INVALID_ARGUMENT", "the gzip body cannot be decompressed: it is cut short")
        content += chunk
        _check_decompressed_size(len(content), len(body), limits)
    return bytes(content)


def is_gzip(request: Request) -> bool:
    return request.headers.get("content-encoding", "").strip().lower() == "gzip"


def _content_length(request: Request) -> int:
    """The content-length; 0 where there is none."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isdigit() else 0


def _check_decompressed_size(size: int, compressed: int, limits: Limits) -> None:
    if size > limits.max_decompressed_bytes:
        message = f"the request body exceeds {limits.max_decompressed_bytes} bytes after decompression"
        raise StatusError("RESOURCE_EXHAUSTED", message, http_status=413)
    if size > max(_RATIO_EXEMPT_BYTES, limits.max_compression_ratio * compressed):
        message = f"the request body decompresses to more than {limits.max_compression_ratio} times its size"
        raise StatusError("RESOURCE_EXHAUSTED", message, http_status=413)


class LimitedH11Protocol(H11Protocol):
    """uvicorn's connection with a clock: for headers and body, for the whole of a request, and a limit to their number.

    Where there are too many, the one that has kept us waiting longest for its request is closed; where all are being
    answered, the new one gets 503.
    """

    def __init__(self, limits: Limits, **arguments: Any):
        super().__init__(**arguments)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._responding = False
        self.waiting_since = self.loop.time()

    def connection_made(self, transport: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections and not self._close_oldest_waiting():
            self._send_error(503, f"more than {self._limits.max_connections} connections")
            return
        self._start_timer(self._limits.read_timeout, self._on_read_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        has_request = self.cycle is not None and not self.cycle.response_complete
        if has_request and not self._responding:
            self._responding = (
                True  # the body has a clock in the application; this one is for a client that never reads
            )
            self._start_timer(2 * self._limits.read_timeout + self._limits.response_timeout, self.transport.abort)
        elif not has_request and self._timer is None:
            self._start_timer(self._limits.read_timeout, self._on_read_timeout)

    def on_response_complete(self) -> None:
        self._stop_timer()
        self._responding = False
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read, as JSON; and nothing more where an answer is already under way."""
        within_headers = self.cycle is None or self.cycle.response_complete
        too_long = within_headers and len(self.conn.trailing_data[0]) > self._limits.max_header_bytes
        self._send_error(
            431 if too_long else 400, f"the headers exceed {self._limits.max_header_bytes} bytes" if too_long else msg
        )

    def is_waiting(self) -> bool:
        """Whether the client owes us a request, or the rest of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _close_oldest_waiting(self) -> bool:
        waiting = [
            connection
            for connection in self.connections
            if isinstance(connection, LimitedH11Protocol) and connection.is_waiting()
        ]
        oldest = min((each for each in waiting if each is not self), key=lambda each: each.waiting_since, default=None)
        if oldest is not None:
            oldest.transport.abort()
            self.connections.discard(oldest)
        return oldest is not None

    def _on_read_timeout(self) -> None:
        self._timer = None
        self._send_error(408, f"no request within {self._limits.read_timeout:g} s")

    def _send_error(self, status: int, message: str) -> None:
        body = json_output.format_error(message).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an answer is under way, and ends here
        self.transport.close()

    def _start_timer(self, seconds: float, callback: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
