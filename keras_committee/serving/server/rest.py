"""How does the REST API of TF Serving listen on a port, and answer with its URLs, codes and texts?"""

import functools
import importlib.util
import logging
import re
import threading
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount

from keras_committee.serving.server import json_answers
from keras_committee.serving.server.bodies import decompress, is_gzip, read_body
from keras_committee.serving.server.connections import Connection
from keras_committee.serving.server.gate import LOOPBACK, Gate
from keras_committee.serving.server.limits import Limits
from keras_committee.serving.server.manager import Manager
from keras_committee.serving.server.metrics import Metrics
from keras_committee.serving.server.ports import listen
from keras_committee.serving.server.requests import Requests
from keras_committee.serving.server.urls import Target, read_target
from keras_committee.serving.server.work import Work
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
            response = _json(json_answers.error(error.message), error.http, headers)
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
    if importlib.util.find_spec("keras_committee.serving.server.page") is None:
        return []
    page = importlib.import_module("keras_committee.serving.server.page")
    return page.routes(manager)
