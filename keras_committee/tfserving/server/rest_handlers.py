"""What is the answer to a REST request, once its body is here?"""

import contextlib
import dataclasses
import json
import logging
import re
from typing import Any
from urllib.parse import unquote

from keras_committee.tfserving.server import examples, json_output
from keras_committee.tfserving.server.json_input import read_examples, read_predict
from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.server.manager import Manager
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.worker_pool import seconds_until, timed
from keras_committee.tfserving.tf_protocol import DEFAULT_SIGNATURE, StatusError

# model_servers/http_rest_api_util.cc; (?i) as there, and then the verb must be in lower case all the same.
_PREDICTION_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)", re.I | re.A
)
_STATUS_PATH = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.I | re.A
)
_MAX_VERSION = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Route:
    """`verb` is "predict", "classify", "regress", "metadata" or "status"; the name and the label are %-decoded."""

    verb: str
    name: str
    version: int | None
    label: str | None


def parse_route(method: str, path: str) -> Route:
    """What `METHOD path` asks for; `path` is as it was sent, without its query.

    Raises:
        StatusError: INVALID_ARGUMENT in TF Serving's words.
    """
    pattern = {"POST": _PREDICTION_PATH, "GET": _STATUS_PATH}.get(method)
    matched = pattern.fullmatch(path) if pattern else None
    if matched is None:
        raise StatusError("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
    name, version, label, verb = matched.groups()
    route = Route(
        _parse_verb(method, verb), unquote(name or ""), _parse_version(version), unquote(label) if label else None
    )
    if method == "POST" and verb != route.verb:
        raise StatusError("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
    if not route.name:
        raise StatusError("INVALID_ARGUMENT", "Missing model name in request.")
    return route


def _parse_verb(method: str, verb: str | None) -> str:
    if method == "GET":
        return "metadata" if verb == "metadata" else "status"
    return (verb or "").lower()


def _parse_version(text: str | None) -> int | None:
    if text is None:
        return None
    if len(text) > 400 or int(text) > _MAX_VERSION:
        raise StatusError("INVALID_ARGUMENT", f"Failed to convert version: {text} to numeric.")
    return int(text)


class RestHandlers:
    """The REST API without its HTTP: `handle` runs in a worker's thread."""

    def __init__(self, manager: Manager, limits: Limits, metrics: Metrics):
        self._manager, self._limits, self._metrics = manager, limits, metrics

    def handle(self, route: Route, body: bytes, deadline: float) -> str:
        """The JSON text for a POST with `body`; `deadline` is on the monotonic clock. Raises StatusError."""
        seconds_until(deadline)
        handler = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[route.verb]
        status = "OK"
        with timed(lambda seconds: self._record_request(route, status, seconds)):
            try:
                return handler(route, body, deadline)
            except StatusError as error:
                status = error.code
                raise

    def metadata(self, route: Route) -> str:
        """The JSON text for GET .../metadata. Raises StatusError."""
        from google.protobuf.json_format import MessageToDict

        with self._manager.borrow(route.name, route.version, route.label) as servable:
            signatures = {
                name: MessageToDict(
                    signature.proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for name, signature in servable.session.signatures.items()
            }
            spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
        metadata = {"signature_def": {"signature_def": signatures}}
        return json.dumps(
            {"model_spec": spec, "metadata": metadata, "server": SERVER_NAME}, indent=1, ensure_ascii=False
        )

    def status(self, route: Route) -> str:
        """The JSON text for GET of a model or version; a label is ignored, as in TF Serving. Raises StatusError."""
        statuses = [
            {
                "version": str(version_status.version),
                "state": version_status.state,
                "status": {"error_code": version_status.code, "error_message": version_status.message},
            }
            for version_status in self._manager.statuses(route.name, route.version)
        ]
        return json.dumps({"model_version_status": statuses}, indent=1, ensure_ascii=False)

    def _predict(self, route: Route, body: bytes, deadline: float) -> str:
        with contextlib.ExitStack() as stack:
            borrowed: list[Any] = []

            def find_inputs(signature: str) -> Any:
                servable = stack.enter_context(self._manager.borrow(route.name, route.version, route.label))
                borrowed.append(servable.session)
                return _signature_inputs(servable.session, signature)

            request = read_predict(body, find_inputs, self._limits)
            (session,) = borrowed
            with timed(lambda seconds: self._record_runtime(route, "Predict", seconds)):
                outputs = session.run(request.signature, request.inputs, timeout=seconds_until(deadline))
        return json_output.format_predictions(outputs, request.is_row_format)

    def _classify(self, route: Route, body: bytes, deadline: float) -> str:
        signature, rows = read_examples(body, self._limits)
        with (
            self._manager.borrow(route.name, route.version, route.label) as servable,
            timed(lambda seconds: self._record_runtime(route, "Classify", seconds)),
        ):
            labels, scores = examples.classify(servable.session, signature, rows, seconds_until(deadline))
        return json_output.format_classifications(labels, scores)

    def _regress(self, route: Route, body: bytes, deadline: float) -> str:
        signature, rows = read_examples(body, self._limits)
        with (
            self._manager.borrow(route.name, route.version, route.label) as servable,
            timed(lambda seconds: self._record_runtime(route, "Regress", seconds)),
        ):
            values = examples.regress(servable.session, signature, rows, seconds_until(deadline))
        return json_output.format_regressions(values)

    def _record_request(self, route: Route, status: str, seconds: float) -> None:
        if route.name not in self._manager.names():  # a stranger must not make up labels
            return
        self._metrics.count_request(route.name, status)
        if status == "OK":
            self._metrics.record_latency("request_latency", (route.name, route.verb, "REST"), seconds)

    def _record_runtime(self, route: Route, api: str, seconds: float) -> None:
        self._metrics.record_latency("runtime_latency", (route.name, api, "TF1"), seconds)


def _signature_inputs(session: Any, signature: str) -> Any:
    name = signature or DEFAULT_SIGNATURE
    if name not in session.signatures:
        raise StatusError("INVALID_ARGUMENT", f'Serving signature name: "{name}" not found in signature def')
    if not session.signatures[name].inputs:
        raise StatusError("INVALID_ARGUMENT", f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    return session.signatures[name].inputs


SERVER_NAME = "keras-committee stand-in, not TensorFlow Serving"
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

_log = logging.getLogger(__name__)


class HostCheckMiddleware:
    """The outermost layer: checks Host (a web page elsewhere must not reach us under its own name), the framing and
    the size of the headers; says in each answer who answers; no failure of ours shows more than HTTP 500.
    """

    def __init__(self, app: Any, allowed_hosts: frozenset[str] | None, limits: Limits):
        self._app, self._allowed_hosts, self._limits = app, allowed_hosts, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response_started = False

        async def send_with_server_header(message: Any) -> None:
            nonlocal response_started
            if message["type"] == "http.response.start":
                response_started = True
                message["headers"] = [*message["headers"], (b"server", SERVER_NAME.encode())]
            await send(message)

        if error := self._request_error(scope):
            await _send_error(send_with_server_header, *error)
            return
        try:
            await self._app(scope, receive, send_with_server_header)
        except Exception:  # a bug of ours: told in the log, and the server goes on
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not response_started:
                await _send_error(send_with_server_header, 500, "internal error; see the log of the server")

    def _request_error(self, scope: Any) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + len(scope["raw_path"])
        if size > self._limits.max_header_bytes:
            return 431, f"the headers exceed {self._limits.max_header_bytes} bytes"
        if b"transfer-encoding" in headers and b"content-length" in headers:
            return 400, "a request has either Content-Length or Transfer-Encoding"
        host = headers.get(b"host", b"localhost").decode("latin-1")
        if self._allowed_hosts is not None and host_name(host) not in self._allowed_hosts:
            return 403, f"Host {host[:200]!r} is not served here; use one of {', '.join(sorted(self._allowed_hosts))}"
        return None


def host_name(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


async def _send_error(send: Any, status: int, message: str) -> None:
    body = json.dumps({"error": message}, indent=4).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
