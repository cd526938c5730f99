"""REST API of TF Serving over HTTP, with limits on requests and connections."""

import asyncio
import functools
import logging
import re
import select
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount
from uvicorn.protocols.http.h11_impl import H11Protocol

from keras_committee.tfserving.config import METRICS_PATH
from keras_committee.tfserving.drift import render_drift
from keras_committee.tfserving.server import json_output, page
from keras_committee.tfserving.server.limits import Limits, check_body
from keras_committee.tfserving.server.manager import Manager
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.ports import RunningServer, allow_open_files, listen
from keras_committee.tfserving.server.rest_handlers import SERVER_NAME, RestHandlers, Route, VersionError, parse_route
from keras_committee.tfserving.server.worker_pool import BoundedExecutor
from keras_committee.tfserving.tf_protocol import StatusError

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_API_PATH = re.compile(r"/v1/.*", re.I | re.S)
_ABSOLUTE_FORM = re.compile(rb"https?://([^/]*)", re.I)  # the start of a target for a proxy (RFC 9112)
_WEB_ORIGIN = re.compile(r"https?://")  # anywhere in an Origin header
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
# The response of libevent, TF Serving's HTTP library, to an unknown path.
_ALLOWED_METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})  # evhttp_server.cc
_NOT_IMPLEMENTED_PAGE = (
    "<HTML><HEAD>\n<TITLE>501 Not Implemented</TITLE>\n</HEAD><BODY>\n<H1>Not Implemented</H1>\n</BODY></HTML>\n"
)
_NOT_FOUND_PAGE = "<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
_CHUNK_BYTES = 2**16
_MIN_WAIT_SECONDS = 0.5  # without a request, until a connection may be closed to make room for another
_LINGER_SECONDS = 1.0  # for the client to read the response and close the connection
_MAX_REFUSED = 256  # connections beyond the limit that receive HTTP 503; others are reset
_OTHER_FILES = 192  # open files besides connections: models, libraries, gRPC
_RATIO_EXEMPT_BYTES = 2**20  # decompressed bytes without a check of the ratio: a black image compresses well

_log = logging.getLogger(__name__)


def start(
    manager: Manager,
    address: tuple[str, int],
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    metrics_path: str = METRICS_PATH,
    num_threads: int | None = None,
    enable_cors_support: bool = False,
) -> RunningServer:
    """Start a REST server in a thread.

    Args:
        manager: Lends the models; it outlives the server.
        address: Host and port; port 0 selects a free port. On a loopback host the Host header of requests is checked.
        limits: Limits of a request.
        metrics: Counts the requests.
        metrics_path: Path of the metrics for Prometheus.
        num_threads: Threads that answer requests; None for one per core, at least 4.
        enable_cors_support: Whether responses of the API allow pages of any origin to read them.

    Raises:
        ResourceError: If the port is in use or not available, or `limits.max_connections` exceeds the open files.
    """
    limits, metrics = limits or Limits(), metrics or Metrics()
    allow_open_files(limits.max_connections + _MAX_REFUSED + _OTHER_FILES)
    socket, executor = listen(*address), BoundedExecutor(limits, num_threads)
    handlers = RestHandlers(manager, limits, metrics)
    api: Any = _ApiApp(handlers, limits, metrics, executor, metrics_path, manager)
    if enable_cors_support:
        api = _with_cors_headers(api)
    app = Starlette(routes=[*page.routes(manager, limits), Mount("/", app=api)])
    stopping = threading.Event()
    config = uvicorn.Config(
        RequestCheckMiddleware(app, _allowed_hosts(address[0]), limits, stopping),
        http=functools.partial(_LimitedH11Protocol, limits, set()),  # pyright: ignore[reportArgumentType]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.max_header_bytes,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, name="rest", daemon=True)
    port = socket.getsockname()[1]
    thread.start()

    def stop() -> None:
        stopping.set()
        server.should_exit = True
        thread.join()
        executor.close()

    return RunningServer(port, stop)


class RequestCheckMiddleware:
    """Outermost layer of the application: request checks, the server header and unexpected exceptions.

    Rejects requests with an unexpected Host, two conflicting lengths or long headers. The check of the Host protects
    against DNS rebinding, by which a page of another site sends requests to this server under its own host name.
    Starlette's TrustedHostMiddleware is not equivalent: it also rejects requests without a Host, responds with HTTP 400
    in plain text instead of 403 in JSON, and older releases do not match [::1].

    Args:
        app: The ASGI application.
        allowed_hosts: Host names to accept, in lower case; None accepts all.
        limits: `max_header_bytes` applies.
        stopping: Once set, responses announce that the connection is closed, so that no client uses it again.
    """

    def __init__(self, app: Any, allowed_hosts: frozenset[str] | None, limits: Limits, stopping: threading.Event):
        self._app, self._allowed_hosts, self._limits, self._stopping = app, allowed_hosts, limits, stopping

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response_started = False

        async def send_with_server_header(message: Any) -> None:
            nonlocal response_started
            if message["type"] == "http.response.start":
                response_started = True
                headers = [*message["headers"], (b"server", SERVER_NAME.encode())]
                message["headers"] = headers + ([(b"connection", b"close")] if self._stopping.is_set() else [])
            await send(message)

        scope, target_host = _with_origin_form(scope)
        if error := self._request_error(scope, target_host):
            await _error_response(*error, close=True)(scope, receive, send_with_server_header)
            return
        try:
            await self._app(scope, receive, send_with_server_header)
        except Exception:  # a bug in this server must not stop it
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not response_started:
                response = _error_response(500, "internal error; see the server's log", close=True)
                await response(scope, receive, send_with_server_header)

    def _request_error(self, scope: Any, target_host: str | None) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + len(scope["raw_path"])
        if size > self._limits.max_header_bytes:
            return 431, f"the headers exceed {self._limits.max_header_bytes} bytes"
        if b"transfer-encoding" in headers and b"content-length" in headers:
            return 400, "a request has either Content-Length or Transfer-Encoding"
        hosts = [headers.get(b"host", b"localhost").decode("latin-1")]
        hosts += [] if target_host is None else [target_host]
        for host in hosts:
            if self._allowed_hosts is not None and _host_name(host) not in self._allowed_hosts:
                allowed = ", ".join(sorted(self._allowed_hosts))
                return 403, f"Host {host[:200]!r} is not served here; use one of {allowed}"
        return None


class _ApiApp:
    """The ASGI application for all paths of the API and the metrics.

    Starlette's router has no pattern for `:predict`, and decodes paths before it matches them.
    """

    def __init__(
        self,
        handlers: RestHandlers,
        limits: Limits,
        metrics: Metrics,
        executor: BoundedExecutor,
        metrics_path: str,
        manager: Manager,
    ):
        self._handlers, self._limits, self._metrics = handlers, limits, metrics
        self._executor, self._metrics_path, self._manager = executor, metrics_path, manager

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        try:
            response = await self._respond(request, _path_with_query(scope))
        except ClientDisconnect:
            return
        except VersionError as error:
            response = Response(status_code=error.http_status, media_type="application/json")
        except StatusError as error:
            unread_body = error.http_status in (408, 413)
            response = _error_response(error.http_status, error.message, close=unread_body)
        await response(scope, receive, send)

    async def _respond(self, request: Request, path: str) -> Response:
        if request.method not in _ALLOWED_METHODS:
            return Response(_NOT_IMPLEMENTED_PAGE, 501, media_type="text/html")
        if path.partition("?")[0] == self._metrics_path:
            return self._metrics_response(path)
        if not _API_PATH.fullmatch(path):
            return Response(_NOT_FOUND_PAGE, 404, media_type="text/html")
        return await self._count_response(request, path)

    async def _count_response(self, request: Request, path: str) -> Response:
        """Respond to a request of the API, and count it as model_servers/http_server.cc does."""
        started, route, api = time.perf_counter(), None, ""
        if request.method == "OPTIONS":  # a browser's request before another
            is_allowed = bool(_WEB_ORIGIN.search(request.headers.get("origin", "")))
            self._metrics.count_request("", "OK" if is_allowed else "FAILED_PRECONDITION")
            return Response(status_code=200 if is_allowed else 400)
        try:
            route = parse_route(request.method, path)
            if route.verb == "status":
                text = self._handlers.status(route)
            elif route.verb == "metadata":
                text = self._handlers.metadata(route)
            else:
                api, text = route.verb, await self._handle_post(request, route)
        except StatusError as error:
            self._handlers.record_request(route, api, error.code, time.perf_counter() - started)
            raise
        self._handlers.record_request(route, api, "OK", time.perf_counter() - started)
        return _json_response(text)

    def _metrics_response(self, path: str) -> Response:
        if path == self._metrics_path:
            text = self._metrics.render() + render_drift(self._manager.drift_monitors())
            return Response(text, media_type="text/plain")
        return Response(f"Unexpected path: {path}. Should be {self._metrics_path}", 400, media_type="text/plain")

    async def _handle_post(self, request: Request, route: Route) -> str:
        body = await _read_body(request, self._limits)
        is_gzipped = "gzip" in request.headers.get("content-encoding", "")  # also x-gzip

        def job(deadline: float) -> str:
            content = decompress(body, self._limits) if is_gzipped else body
            return self._handlers.handle(route, content, deadline)

        return await self._executor.run(job)


class _LimitedH11Protocol(H11Protocol):
    """uvicorn's connection with a timeout for requests and responses, and a limit on the number of connections.

    Beyond the limit, the connection that has waited longest for a request is closed, so that slow clients cannot block
    the server. If none has waited for `_MIN_WAIT_SECONDS`, the new connection receives HTTP 503. uvicorn's
    `limit_concurrency` instead always rejects the new connection, and `timeout_keep_alive` starts only after a
    response.

    A client that has sent a whole request and closes only its sending side receives the response.

    Args:
        limits: `max_connections`, `max_header_bytes` and the timeouts apply.
        refused: The connections of this server beyond the limit, which receive HTTP 503.
        arguments: Those of uvicorn.
    """

    def __init__(self, limits: Limits, refused: set[Any], **arguments: Any):
        super().__init__(**arguments)
        self._limits, self._refused = limits, refused
        self._timer: asyncio.TimerHandle | None = None
        self._responding = False
        self._receiving = False
        self._half_closed = False
        self._waiting_since = self.loop.time()

    def connection_made(self, transport: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        lingering: Any = _LingeringTransport(transport, self.loop, self._has_unread_data)
        super().connection_made(lingering)
        num_accepted = len(self.connections) - len(self._refused)
        if num_accepted <= self._limits.max_connections or self._close_oldest_waiting():
            self._start_timer(self._limits.read_timeout, self._on_read_timeout)
        elif len(self._refused) < _MAX_REFUSED:
            self._refused.add(self)
            self._start_timer(_LINGER_SECONDS, self._refuse)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._refused.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # the rest of a request that has been answered
        if self in self._refused:
            self._refuse()
            return
        if not self._receiving:
            self._receiving, self._waiting_since = True, self.loop.time()
        super().data_received(data)
        has_request = self.cycle is not None and not self.cycle.response_complete
        if has_request and not self._responding:
            # The application limits the time for the body; this timer is for a client that never reads the response.
            self._responding = True
            self._start_timer(2 * self._limits.read_timeout + self._limits.response_timeout, self.transport.abort)
        elif not has_request and self._timer is None:
            self._start_timer(self._limits.read_timeout, self._on_read_timeout)

    def eof_received(self) -> bool:
        """Return whether to keep the connection open for the response."""
        self._half_closed = True
        return not self.transport.is_closing() and self._has_whole_request()

    def on_response_complete(self) -> None:
        self._stop_timer()
        self._responding = self._receiving = False
        self._waiting_since = self.loop.time()
        super().on_response_complete()
        if self._half_closed and not self._has_whole_request():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Respond in JSON to a request that h11 cannot parse, unless a response has already started."""
        within_headers = self.cycle is None or self.cycle.response_complete
        if within_headers and len(self.conn.trailing_data[0]) > self._limits.max_header_bytes:
            self._send_error(431, f"the headers exceed {self._limits.max_header_bytes} bytes")
        else:
            self._send_error(400, msg)

    def _has_whole_request(self) -> bool:
        """Whether a request has arrived that has yet to be answered."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _has_unread_data(self) -> bool:
        """Whether data of a request may arrive that will not be read."""
        return self in self._refused or (self._receiving and (not self._responding or self.cycle.more_body))

    def _close_oldest_waiting(self) -> bool:
        waiting = [
            connection
            for connection in self.connections - self._refused - {self}
            if isinstance(connection, _LimitedH11Protocol) and not connection._has_whole_request()
        ]
        oldest = min(waiting, key=lambda connection: connection._waiting_since, default=None)
        if oldest is None or self.loop.time() - oldest._waiting_since < _MIN_WAIT_SECONDS or oldest._has_arrived_data():
            return False
        oldest.transport.abort()
        self.connections.discard(oldest)
        return True

    def _has_arrived_data(self) -> bool:
        """Whether data has arrived that this busy server has not read yet."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _refuse(self) -> None:
        self._send_error(503, f"more than {self._limits.max_connections} connections; try again later")

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
            pass  # a response has started; it ends here
        self.transport.close()

    def _start_timer(self, seconds: float, callback: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _LingeringTransport:
    """A transport whose `close` sends the response and, if data may be unread, waits for the client to close.

    A socket that is closed with unread data resets the connection, and the client may lose the response: to a request
    whose body is too large, for instance.

    Args:
        transport: The transport of the socket.
        loop: The event loop.
        has_unread_data: Returns whether data may be unread.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop, has_unread_data: Callable[[], bool]):
        self._transport, self._loop, self._has_unread_data = transport, loop, has_unread_data
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        self._closing = True
        if not self._has_unread_data():
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()
            self._loop.call_later(_LINGER_SECONDS, self._transport.close)


def decompress(body: bytes, limits: Limits) -> bytes:
    """Decompress a gzip body of one or more members.

    Returns:
        The content; b"" for invalid gzip data, as in TF Serving (evhttp_request.cc).

    Raises:
        StatusError: RESOURCE_EXHAUSTED, HTTP 413, beyond the limits.
    """
    content, rest = bytearray(), body
    while rest:  # one member after another (RFC 1952)
        decompressor = zlib.decompressobj(wbits=31)
        while not decompressor.eof:
            try:
                chunk = decompressor.decompress(rest, _CHUNK_BYTES)
            except zlib.error:
                return b""
            rest = decompressor.unconsumed_tail
            if not chunk and not rest and not decompressor.eof:
                return b""  # truncated
            content += chunk
            _check_decompressed_size(len(content), len(body), limits)
        rest = decompressor.unused_data
    return bytes(content)


def _check_decompressed_size(size: int, compressed: int, limits: Limits) -> None:
    if size > limits.max_decompressed_bytes:
        message = f"the request body exceeds {limits.max_decompressed_bytes} bytes after decompression"
        raise StatusError("RESOURCE_EXHAUSTED", message, http_status=413)
    if size > max(_RATIO_EXEMPT_BYTES, limits.max_compression_ratio * compressed):
        message = f"the request body decompresses to more than {limits.max_compression_ratio} times its size"
        raise StatusError("RESOURCE_EXHAUSTED", message, http_status=413)


async def _read_body(request: Request, limits: Limits) -> bytes:
    """Return the body as sent.

    Raises:
        StatusError: RESOURCE_EXHAUSTED, HTTP 413, beyond the limits; DEADLINE_EXCEEDED, HTTP 408, after the timeout.
        ClientDisconnect: If the client has closed the connection.
    """
    declared_size = request.headers.get("content-length", "0")
    check_body(int(declared_size) if declared_size.isdigit() else 0, limits)
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


def _with_origin_form(scope: Any) -> tuple[Any, str | None]:
    """Return the scope with a target of the form "/path", and the host of a target of the form "http://host/path"."""
    match = _ABSOLUTE_FORM.match(scope["raw_path"])
    if match is None:
        return scope, None
    raw_path = scope["raw_path"][match.end() :] or b"/"
    path = unquote(raw_path.decode("ascii", "replace"))
    return {**scope, "raw_path": raw_path, "path": path}, match[1].decode("latin-1")


def _path_with_query(scope: Any) -> str:
    """Return the path as sent; for TF Serving, the query is a part of it."""
    query = scope["query_string"]
    return (scope["raw_path"] + (b"?" + query if query else b"")).decode("ascii", "backslashreplace")


def _with_cors_headers(app: Any) -> Any:
    async def respond(scope: Any, receive: Any, send: Any) -> None:
        has_cors_headers = _API_PATH.fullmatch(scope["raw_path"].decode("ascii", "replace"))

        async def send_with_cors_headers(message: Any) -> None:
            if has_cors_headers and message["type"] == "http.response.start":
                headers = [(name.encode(), value.encode()) for name, value in _CORS_HEADERS.items()]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await app(scope, receive, send_with_cors_headers)

    return respond


def _json_response(content: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    try:
        encoded = content.encode("utf-8", "surrogateescape")  # strings of a model may be any bytes
    except UnicodeEncodeError:
        encoded = content.encode("utf-8", "replace")
    return Response(encoded, status, headers, media_type="application/json")


def _error_response(status: int, message: str, *, close: bool) -> Response:
    return _json_response(json_output.format_error(message), status, {"connection": "close"} if close else None)


def _allowed_hosts(host: str) -> frozenset[str] | None:
    return LOOPBACK_HOSTS | {host.lower()} if host in LOOPBACK_HOSTS or host.startswith("127.") else None


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
