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
from keras_committee.tfserving.server.worker_pool import remaining, timed
from keras_committee.tfserving.tf_protocol import DEFAULT, StatusError

# model_servers/http_rest_api_util.cc; (?i) as there, and then the verb must be in lower case all the same.
_PREDICTION = re.compile(
    r"/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)", re.I | re.A
)
_STATUS = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.I | re.A
)
_LARGEST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Target:
    """`verb` is "predict", "classify", "regress", "metadata" or "status"; the name and the label are %-decoded."""

    verb: str
    name: str
    version: int | None
    label: str | None


def read_target(method: str, path: str) -> Target:
    """What `METHOD path` asks for; `path` is as it was sent, without its query.

    Raises:
        StatusError: INVALID_ARGUMENT in TF Serving's words.
    """
    pattern = {"POST": _PREDICTION, "GET": _STATUS}.get(method)
    matched = pattern.fullmatch(path) if pattern else None
    if matched is None:
        raise StatusError("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
    name, version, label, verb = matched.groups()
    target = Target(_verb(method, verb), unquote(name or ""), _number(version), unquote(label) if label else None)
    if method == "POST" and verb != target.verb:
        raise StatusError("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
    if not target.name:
        raise StatusError("INVALID_ARGUMENT", "Missing model name in request.")
    return target


def _verb(method: str, verb: str | None) -> str:
    if method == "GET":
        return "metadata" if verb == "metadata" else "status"
    return (verb or "").lower()


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if len(text) > 400 or int(text) > _LARGEST:
        raise StatusError("INVALID_ARGUMENT", f"Failed to convert version: {text} to numeric.")
    return int(text)


class Requests:
    """The REST API without its HTTP: `answer` runs in a worker's thread."""

    def __init__(self, manager: Manager, limits: Limits, metrics: Metrics):
        self._manager, self._limits, self._metrics = manager, limits, metrics

    def answer(self, target: Target, body: bytes, deadline: float) -> str:
        """The JSON text for a POST with `body`; `deadline` is on the monotonic clock. Raises StatusError."""
        remaining(deadline)
        call = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[target.verb]
        status = "OK"
        with timed(lambda seconds: self._record(target, status, seconds)):
            try:
                return call(target, body, deadline)
            except StatusError as error:
                status = error.code
                raise

    def metadata(self, target: Target) -> str:
        """The JSON text for GET .../metadata. Raises StatusError."""
        from google.protobuf.json_format import MessageToDict

        with self._manager.borrow(target.name, target.version, target.label) as servable:
            signatures = {
                name: MessageToDict(
                    each.proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for name, each in servable.session.signatures.items()
            }
            spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
        metadata = {"signature_def": {"signature_def": signatures}}
        return json.dumps({"model_spec": spec, "metadata": metadata, "server": NAME}, indent=1, ensure_ascii=False)

    def status(self, target: Target) -> str:
        """The JSON text for GET of a model or version; a label is ignored, as in TF Serving. Raises StatusError."""
        listed = [
            {
                "version": str(each.version),
                "state": each.state,
                "status": {"error_code": each.code, "error_message": each.message},
            }
            for each in self._manager.statuses(target.name, target.version)
        ]
        return json.dumps({"model_version_status": listed}, indent=1, ensure_ascii=False)

    def _predict(self, target: Target, body: bytes, deadline: float) -> str:
        with contextlib.ExitStack() as stack:
            borrowed: list[Any] = []

            def find_inputs(signature: str) -> Any:
                servable = stack.enter_context(self._manager.borrow(target.name, target.version, target.label))
                borrowed.append(servable.session)
                return _inputs(servable.session, signature)

            request = read_predict(body, find_inputs, self._limits)
            (session,) = borrowed
            with timed(lambda seconds: self._ran(target, "Predict", seconds)):
                outputs = session.run(request.signature, request.inputs, timeout=remaining(deadline))
        return json_output.predictions(outputs, request.row)

    def _classify(self, target: Target, body: bytes, deadline: float) -> str:
        signature, rows = read_examples(body, self._limits)
        with (
            self._manager.borrow(target.name, target.version, target.label) as servable,
            timed(lambda seconds: self._ran(target, "Classify", seconds)),
        ):
            labels, scores = examples.classify(servable.session, signature, rows, remaining(deadline))
        return json_output.classifications(labels, scores)

    def _regress(self, target: Target, body: bytes, deadline: float) -> str:
        signature, rows = read_examples(body, self._limits)
        with (
            self._manager.borrow(target.name, target.version, target.label) as servable,
            timed(lambda seconds: self._ran(target, "Regress", seconds)),
        ):
            values = examples.regress(servable.session, signature, rows, remaining(deadline))
        return json_output.regressions(values)

    def _record(self, target: Target, status: str, seconds: float) -> None:
        if target.name not in self._manager.names():  # a stranger must not make up labels
            return
        self._metrics.count(target.name, status)
        if status == "OK":
            self._metrics.latency("request_latency", (target.name, target.verb, "REST"), seconds)

    def _ran(self, target: Target, api: str, seconds: float) -> None:
        self._metrics.latency("runtime_latency", (target.name, api, "TF1"), seconds)


def _inputs(session: Any, signature: str) -> Any:
    name = signature or DEFAULT
    if name not in session.signatures:
        raise StatusError("INVALID_ARGUMENT", f'Serving signature name: "{name}" not found in signature def')
    if not session.signatures[name].inputs:
        raise StatusError("INVALID_ARGUMENT", f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    return session.signatures[name].inputs


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
