"""Routes and handlers of TF Serving's REST API, without HTTP."""

import contextlib
import dataclasses
import re
from typing import Any
from urllib.parse import unquote

from keras_committee.tfserving.server import examples, json_output
from keras_committee.tfserving.server.json_input import TensorInfos, read_examples, read_predict
from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.server.manager import Manager
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.worker_pool import seconds_until, timed
from keras_committee.tfserving.tf_protocol import DEFAULT_SIGNATURE, StatusError
from keras_committee.tfserving.versions import parse_version

SERVER_NAME = "keras-committee local server, not TensorFlow Serving"

# model_servers/http_rest_api_util.cc: paths match in any case, but the verb must be lower case.
_PREDICTION_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)", re.I | re.A
)
_STATUS_PATH = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.I | re.A
)
_MAX_VERSION_DIGITS = 400  # Python rejects integers of more than 4,300 digits


class VersionError(StatusError):
    """A version in a path that is no 64-bit integer. TF Serving responds to it with an empty body."""

    def __init__(self, text: str):
        super().__init__("INVALID_ARGUMENT", f"Failed to convert version: {text} to numeric.")


@dataclasses.dataclass(frozen=True)
class Route:
    """A parsed method and path.

    Attributes:
        verb: "predict", "classify", "regress", "metadata" or "status".
        name: Name of the model, %-decoded.
        version: Number of the version, or None.
        label: Label of the version, %-decoded, or None.
    """

    verb: str
    name: str
    version: int | None
    label: str | None


def parse_route(method: str, path: str) -> Route:
    """Parse a request line.

    Args:
        method: HTTP method.
        path: Path as sent, with the query.

    Raises:
        VersionError: For a version that is no 64-bit integer.
        StatusError: INVALID_ARGUMENT with TF Serving's message.
    """
    pattern = {"POST": _PREDICTION_PATH, "GET": _STATUS_PATH}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None:
        raise StatusError("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
    name, version, label, verb = match.groups()
    if method == "GET":
        verb = "metadata" if verb == "metadata" else "status"
    route = Route(verb.lower(), _unquote(name or ""), _parse_version(version), _unquote(label) if label else None)
    if verb != route.verb:
        raise StatusError("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
    if not route.name:
        raise StatusError("INVALID_ARGUMENT", "Missing model name in request.")
    return route


class RestHandlers:
    """Handlers of the REST API, which map a route and a body to JSON text.

    Args:
        manager: Lends the models.
        limits: Limits of a request.
        metrics: Counts the requests.
    """

    def __init__(self, manager: Manager, limits: Limits, metrics: Metrics):
        self._manager, self._limits, self._metrics = manager, limits, metrics

    def handle(self, route: Route, body: bytes, deadline: float) -> str:
        """Return the response to a POST request; `deadline` is on the monotonic clock.

        Raises:
            StatusError: With TF Serving's message.
        """
        seconds_until(deadline)
        handler = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[route.verb]
        return handler(route, body, deadline)

    def metadata(self, route: Route) -> str:
        """Return the response to a request for the metadata of a version.

        Raises:
            StatusError: With TF Serving's message.
        """
        from google.protobuf.json_format import MessageToDict

        with self._borrow(route) as servable:
            # Also the signature that initializes tables, as in TF Serving.
            signatures = {
                name: MessageToDict(proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
                for name, proto in sorted(servable.session.meta_graph.signature_def.items())
            }
            spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
        metadata = {"signature_def": {"signature_def": signatures}}
        return json_output.format_document({"model_spec": spec, "metadata": metadata, "server": SERVER_NAME})

    def status(self, route: Route) -> str:
        """Return the response to a status request. A label is ignored, as in TF Serving.

        Raises:
            StatusError: With TF Serving's message.
        """
        statuses = [
            {
                "version": str(version_status.version),
                "state": version_status.state,
                "status": {"error_code": version_status.code, "error_message": version_status.message},
            }
            for version_status in self._manager.statuses(route.name, route.version)
        ]
        return json_output.format_document({"model_version_status": statuses})

    def record_request(self, route: Route | None, api: str, status: str, seconds: float) -> None:
        """Count a request and its duration. `api` is the verb of a POST request, "" for GET; `status` a gRPC code."""
        name = "" if route is None else route.name
        if name and name not in self._manager.names():  # otherwise clients could create any number of labels
            return
        self._metrics.count_request(name, status)
        if status == "OK":
            self._metrics.record_latency("request_latency", (name, api, "REST"), seconds)

    def _predict(self, route: Route, body: bytes, deadline: float) -> str:
        with contextlib.ExitStack() as stack:
            # The inputs of the signature are needed while the body is read, so an invalid JSON text is reported
            # before an unknown model, as in TF Serving.
            sessions: list[Any] = []

            def find_inputs(signature: str) -> TensorInfos:
                sessions.append(stack.enter_context(self._borrow(route)).session)
                return _signature_inputs(sessions[0], signature)

            request = read_predict(body, find_inputs, self._limits)
            (session,) = sessions
            with self._timed_run(route, "Predict"):
                outputs = session.run(request.signature, request.inputs, timeout=seconds_until(deadline))
        return json_output.format_predictions(outputs, request.is_row_format)

    def _classify(self, route: Route, body: bytes, deadline: float) -> str:
        signature, rows = read_examples(body, self._limits)
        with self._borrow(route) as servable, self._timed_run(route, "Classify"):
            labels, scores = examples.classify(servable.session, signature, rows, seconds_until(deadline))
        return json_output.format_classifications(labels, scores)

    def _regress(self, route: Route, body: bytes, deadline: float) -> str:
        signature, rows = read_examples(body, self._limits)
        with self._borrow(route) as servable, self._timed_run(route, "Regress"):
            values = examples.regress(servable.session, signature, rows, seconds_until(deadline))
        return json_output.format_regressions(values)

    def _borrow(self, route: Route) -> contextlib.AbstractContextManager[Any]:
        return self._manager.borrow(route.name, route.version, route.label)

    def _timed_run(self, route: Route, api: str) -> contextlib.AbstractContextManager[None]:
        labels = (route.name, api, "TF1")
        return timed(lambda seconds: self._metrics.record_latency("runtime_latency", labels, seconds))


def _unquote(text: str) -> str:
    return unquote(text, errors="surrogateescape")  # may be any bytes


def _parse_version(text: str | None) -> int | None:
    if text is None:
        return None
    version = parse_version(text) if len(text) <= _MAX_VERSION_DIGITS else None
    if version is None:
        raise VersionError(text)
    return version


def _signature_inputs(session: Any, signature: str) -> TensorInfos:
    name = signature or DEFAULT_SIGNATURE
    if name not in session.signatures:
        raise StatusError("INVALID_ARGUMENT", f'Serving signature name: "{name}" not found in signature def')
    if not session.signatures[name].inputs:
        raise StatusError("INVALID_ARGUMENT", f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    return session.signatures[name].inputs
