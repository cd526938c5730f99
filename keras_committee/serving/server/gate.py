"""Which requests are let in at all?"""

import json
import logging
from typing import Any

from keras_committee.serving.server.limits import Limits

NAME = "keras-committee stand-in, not TensorFlow Serving"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_log = logging.getLogger(__name__)


class Gate:
    """The outermost layer: checks Host (a web page elsewhere must not reach us under its own name), the framing and
    the size of the headers; says in each answer who answers; no failure of ours shows more than HTTP 500.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None, limits: Limits):
        self._app, self._hosts, self._limits = app, hosts, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        started = False

        async def named(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"server", NAME.encode())]
            await send(message)

        if refusal := self._refusal(scope):
            await _answer(named, *refusal)
            return
        try:
            await self._app(scope, receive, named)
        except Exception:  # a bug of ours: told in the log, and the server goes on
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                await _answer(named, 500, "internal error; see the log of the server")

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + len(scope["raw_path"])
        if size > self._limits.header:
            return 431, f"the headers exceed {self._limits.header} bytes"
        if b"transfer-encoding" in headers and b"content-length" in headers:
            return 400, "a request has either Content-Length or Transfer-Encoding"
        host = headers.get(b"host", b"localhost").decode("latin-1")
        if self._hosts is not None and host_name(host) not in self._hosts:
            return 403, f"Host {host[:200]!r} is not served here; use one of {', '.join(sorted(self._hosts))}"
        return None


def host_name(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


async def _answer(send: Any, status: int, message: str) -> None:
    body = json.dumps({"error": message}, indent=4).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
