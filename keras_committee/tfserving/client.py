"""Client of an exported committee behind TensorFlow Serving, over gRPC or REST.

with Client("grpc://127.0.0.1:8500", model="digits") as client:
    client.predict(images)["label"]                      # uint8 or float32 (batch, height, width, 3)
    client.predict([path.read_bytes()], label="canary")  # JPEG or PNG, decoded by the server
"""

import base64
import contextlib
import dataclasses
import json
import logging
import random
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from keras_committee.errors import RecipeError
from keras_committee.tfserving.tf_protocol import (
    DEFAULT_SIGNATURE,
    StatusError,
    choose_outputs,
    proto_to_array,
    write_packed,
)

__all__ = ["Client", "RequestError", "VersionStatus"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_INITIAL_BACKOFF, _MAX_BACKOFF = 0.05, 2.0  # seconds
_MAX_ELEMENTS = 2**31  # of an output; `max_message_bytes` is the limit that matters
_CONNECT_TIMEOUT = 5.0  # seconds of one attempt; an address that drops packets never refuses a connection
# A server that stops ends requests with either code, and predictions can be repeated without harm.
_RETRIED_CODES = frozenset({"UNAVAILABLE", "CANCELLED"})
_HINTS = {
    "NOT_FOUND": "\n  `Client.status()` lists the available versions.",
    "DEADLINE_EXCEEDED": "\n  Increase `timeout=SECONDS`, or send fewer images at once.",
    "RESOURCE_EXHAUSTED": "\n  Send fewer images at once, or encoded ones; `max_message_bytes` limits gRPC messages.",
}

MISSING_SIGNATURE_CODES = ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION")  # differs between servers
_UINT8_SIGNATURE = "predict_uint8"  # of the exports of keras_committee

_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}  # over gRPC

# The status behind each HTTP code of TF Serving; any other code is INTERNAL.
_STATUS_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_NUMPY_DTYPES = {
    "DT_FLOAT": "float32",
    "DT_DOUBLE": "float64",
    "DT_BOOL": "bool",
    "DT_STRING": "object",
    **{f"DT_{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


class RequestError(StatusError):
    """A request failed: the server rejected it, or did not respond in time.

    `code` and `message` are those of the server.
    """

    def __init__(self, error: StatusError, explanation: str):
        super().__init__(error.code, error.message)
        self.args = (explanation,)


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of one version of the model.

    Attributes:
        version: Number of the version.
        state: START, LOADING, AVAILABLE, UNLOADING or END.
        error: Why the version cannot be served; empty if it can.
    """

    version: int
    state: str
    error: str = ""


class Client:
    """Sends requests to one model of one server. Threads may share a client.

    gRPC is faster: over HTTP the metadata of the version are requested before each prediction, since a response
    contains neither its version nor dtypes.

    Args:
        url: `grpc://host:8500`, `http://host:8501` or `https://host:8501`, optionally followed by `/MODEL`.
        model: Name of the model, if the URL has none.
        timeout: Maximum time of a call with all its retries, in seconds.
        connect_timeout: Maximum time in which a server that cannot be reached is tried again; `timeout` where None.
        max_message_bytes: Maximum size of a gRPC message, in bytes. The default of gRPC is 4 MB.

    Raises:
        RecipeError: If the URL is not valid, no model is named, or a package for the protocol is missing.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        timeout: float = 30.0,
        connect_timeout: float | None = None,
        max_message_bytes: int = 256 * 2**20,
    ):
        self.url, self.timeout, self.connect_timeout = url, timeout, connect_timeout
        self._is_closed, self._may_have_uint8 = False, True
        scheme, address, url_model = _read_url(url)
        self.model = _resolve_model_name(url, model, url_model)
        self._transport: _Transport
        try:
            if scheme == "grpc":
                self._transport = _GrpcTransport(address, self.model, max_message_bytes)
            else:
                self._transport = _RestTransport(f"{scheme}://{address}", self.model)
        except ImportError as error:
            raise RecipeError(
                f'{scheme}:// requires more packages: {error}.\n  pip install "keras-committee[serving]"'
            ) from error

    def predict(
        self,
        inputs: np.ndarray | bytes | Sequence[bytes] | Mapping[str, Any],
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the outputs for a batch of inputs.

        Args:
            inputs: Images `(batch, height, width, channels)` for the input `image`; encoded JPEG or PNG files for
                `image_bytes`; or arrays by input name. uint8 images have a quarter of the bytes of float32 ones.
            signature: Name of the signature. None is `predict_bytes` for encoded images; `predict_uint8` for uint8
                images, where the model has it; else `serving_default`, which receives images as float32.
            version: Number of the version. None is the newest available one.
            label: Label of the version, instead of `version`.
            outputs: Names of the outputs to return; all if empty.
            timeout: Maximum time in seconds, instead of that of the client.

        Returns:
            Arrays by output name, batch first. Strings are object arrays of bytes.

        Raises:
            RequestError: If the request fails. Only UNAVAILABLE (HTTP 503), CANCELLED (499) and lost connections are
                retried.
            RecipeError: If `inputs` has another form, or both `version` and `label` are given.
        """
        if version is not None and label is not None:
            raise RecipeError(f"give a version or a label, not both. Received: version={version}, label={label!r}")
        may_be_uint8 = self._may_have_uint8 if signature is None else signature == _UINT8_SIGNATURE
        arrays, default_signature = _prepare_inputs(inputs, may_be_uint8)
        request_signature = default_signature if signature is None else signature
        request = _Request(arrays, request_signature, version, label, tuple(outputs))
        try:
            return self._call_with_retry(lambda remaining: self._transport.predict(request, remaining), timeout)
        except RequestError as error:
            if not _lacks_signature(error, request, signature):
                raise
        self._may_have_uint8 = False  # the model is of another program or an earlier version
        return self.predict(inputs, version=version, label=label, outputs=outputs, timeout=timeout)

    def status(self, version: int | None = None, *, timeout: float | None = None) -> list[VersionStatus]:
        """Return the state of one version, or of all, newest first.

        Args:
            version: Number of the version; None returns all.
            timeout: Maximum time in seconds, instead of that of the client.

        Raises:
            RequestError: If the request fails.
        """
        statuses = self._call_with_retry(lambda remaining: self._transport.status(version, remaining), timeout)
        return sorted(statuses, key=lambda status: -status.version)

    def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        self._is_closed = True
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _call_with_retry(self, call: Callable[[float], _T], timeout: float | None) -> _T:
        """Call with the remaining seconds until a result, a final error, or the deadline."""
        timeout = self.timeout if timeout is None else timeout
        start, backoff, attempts = time.monotonic(), _INITIAL_BACKOFF, 0
        retry_timeout = timeout if self.connect_timeout is None else min(timeout, self.connect_timeout)
        while True:
            attempts += 1
            try:
                return call(max(start + timeout - time.monotonic(), 0.001))
            except StatusError as error:
                delay = backoff * random.uniform(0.5, 1.0)  # so that clients that failed together retry apart
                is_final = self._is_closed or error.code not in _RETRIED_CODES
                if is_final or time.monotonic() + delay >= start + retry_timeout:
                    raise RequestError(error, self._explain(error, attempts, retry_timeout)) from error
                if attempts == 1:
                    _log.warning("%s: %s; trying again for up to %g s", self.url, error.message, retry_timeout)
            time.sleep(delay)
            backoff = min(2 * backoff, _MAX_BACKOFF)

    def _explain(self, error: StatusError, attempts: int, timeout: float) -> str:
        where = f"{self.url}, model {self.model!r}"
        if error.code in _RETRIED_CODES:
            tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
            return (
                f"{where}: no response in {tries} within {timeout:g} s: {error.message}\n"
                "  Is the server running? Start one with `keras-committee serve MODEL_DIR`, or set a longer timeout."
            )
        return f"{where}: {error.code}: {error.message}{_HINTS.get(error.code, '')}"


@dataclasses.dataclass(frozen=True)
class _Request:
    """A prediction request; see `Client.predict`."""

    inputs: dict[str, np.ndarray]
    signature: str
    version: int | None
    label: str | None
    outputs: tuple[str, ...]


class _Transport(Protocol):
    """A connection to one model on one server. `timeout` is in seconds. Failed calls raise StatusError."""

    def predict(self, request: _Request, timeout: float) -> dict[str, np.ndarray]: ...

    def status(self, version: int | None, timeout: float) -> list[VersionStatus]: ...

    def close(self) -> None: ...


class _RestTransport:
    """The REST API at `server_url`, "http://host:port", for one model."""

    def __init__(self, server_url: str, model: str):
        import urllib3

        self._pool = urllib3.PoolManager(maxsize=16, retries=False)
        self._base_url = f"{server_url}/v1/models/{urllib.parse.quote(model, safe='')}"

    def predict(self, request: _Request, timeout: float) -> dict[str, np.ndarray]:
        deadline = time.monotonic() + timeout
        # A response contains neither dtypes nor its version. So the newest or labeled version is resolved first, with
        # its signatures, and the prediction requests that version.
        metadata = self._get(_version_path(request.version, request.label) + "/metadata", timeout)
        with _reject_other_documents():
            version = int(metadata["model_spec"]["version"])
            signatures = metadata["metadata"]["signature_def"]["signature_def"]
        body = _predict_body(request.signature, request.inputs)
        url = f"{self._base_url}/versions/{version}:predict"
        try:
            response = self._send("POST", url, max(deadline - time.monotonic(), 0.001), body)
        except StatusError as error:
            if error.code == "NOT_FOUND" and request.version is None:  # unloaded since: another one is available
                raise StatusError("UNAVAILABLE", error.message) from error
            raise
        with _reject_other_documents():
            arrays = _read_outputs(response["outputs"], signatures[request.signature]["outputs"])
        return {name: arrays[name] for name in choose_outputs(arrays, request.outputs)}  # REST always sends all outputs

    def status(self, version: int | None, timeout: float) -> list[VersionStatus]:
        response = self._get(_version_path(version, None), timeout)
        with _reject_other_documents():
            return [
                VersionStatus(int(status["version"]), status["state"], status["status"]["error_message"])
                for status in response["model_version_status"]
            ]

    def close(self) -> None:
        self._pool.clear()

    def _get(self, path: str, timeout: float) -> Any:
        return self._send("GET", self._base_url + path, timeout)

    def _send(self, method: str, url: str, timeout: float, body: bytes | None = None) -> Any:
        import urllib3

        headers = {"Content-Type": "application/json"} if body else {}
        try:
            limits = urllib3.Timeout(total=timeout, connect=_CONNECT_TIMEOUT)
            response = self._pool.request(method, url, body=body, headers=headers, timeout=limits, redirect=False)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise StatusError("DEADLINE_EXCEEDED", f"no response within {timeout:.1f} s") from error
        except urllib3.exceptions.HTTPError as error:
            # Its text has the name of an object. A refused connection raises a subclass, with the reason as its cause.
            is_timeout = type(error) is urllib3.exceptions.ConnectTimeoutError
            reason = getattr(error.__cause__, "strerror", None) or str(error)
            message = f"no connection within {min(timeout, _CONNECT_TIMEOUT):.1f} s" if is_timeout else reason
            raise StatusError("UNAVAILABLE", message) from error
        return _parse_response(response.status, response.data)


class _GrpcTransport:
    """One channel to `address`, "host:port", for one model."""

    def __init__(self, address: str, model: str, max_message_bytes: int):
        import grpc

        from keras_committee.tfserving import messages

        options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.enable_retries", 0),  # the client retries itself, with one deadline for all attempts
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._channel = grpc.insecure_channel(address, options)
        self._predict = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            messages.PredictRequest.SerializeToString,
            messages.PredictResponse.FromString,
        )
        self._get_model_status = self._channel.unary_unary(
            "/tensorflow.serving.ModelService/GetModelStatus",
            messages.GetModelStatusRequest.SerializeToString,
            messages.GetModelStatusResponse.FromString,
        )
        self._model = model

    def predict(self, request: _Request, timeout: float) -> dict[str, np.ndarray]:
        from keras_committee.tfserving.messages import PredictRequest

        spec = self._spec(request.version, request.label)
        spec.signature_name = request.signature
        message = PredictRequest(model_spec=spec, output_filter=request.outputs)
        for name, array in request.inputs.items():
            write_packed(message.inputs[name], array)
        response = _call_rpc(self._predict, message, timeout)
        return {name: proto_to_array(proto, _MAX_ELEMENTS) for name, proto in sorted(response.outputs.items())}

    def status(self, version: int | None, timeout: float) -> list[VersionStatus]:
        from keras_committee.tfserving.messages import GetModelStatusRequest

        message = GetModelStatusRequest(model_spec=self._spec(version, None))
        response = _call_rpc(self._get_model_status, message, timeout)
        return [
            VersionStatus(status.version, _STATES.get(status.state, str(status.state)), status.status.error_message)
            for status in response.model_version_status
        ]

    def close(self) -> None:
        self._channel.close()

    def _spec(self, version: int | None, label: str | None) -> Any:
        from keras_committee.tfserving.messages import ModelSpec

        spec = ModelSpec(name=self._model)
        if version is not None:
            spec.version.value = version
        if label is not None:
            spec.version_label = label
        return spec


def _call_rpc(method: Any, message: Any, timeout: float) -> Any:
    import grpc

    try:
        return method(message, timeout=timeout)
    except grpc.RpcError as error:
        reason = (error.details() or "").rpartition("Failed to connect to remote host: ")[2]
        raise StatusError(error.code().name, reason) from error


def _read_url(url: str) -> tuple[str, str, str]:
    """Return scheme, `host:port` and the name of the model, which may be ""."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = parts = None
    if parts is None or parts.scheme not in ("grpc", "http", "https") or not host or port is None:
        raise RecipeError(f"a server URL must be grpc://host:port or http://host:port. Received: {url!r}")
    path = parts.path.removeprefix("/v1/models").strip("/")
    return parts.scheme, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", urllib.parse.unquote(path)


def _resolve_model_name(url: str, model: str | None, url_model: str) -> str:
    if "/" in url_model or (model and url_model and model != url_model) or not (model or url_model):
        raise RecipeError(
            f"name one model: model=NAME or {url.split('/', 3)[0]}//host:port/NAME. "
            f"Received: url={url!r}, model={model!r}"
        )
    return model or url_model


def _prepare_inputs(inputs: Any, may_be_uint8: bool) -> tuple[dict[str, np.ndarray], str]:
    """Return the inputs by name, and the default signature for them.

    Args:
        inputs: As in `Client.predict`.
        may_be_uint8: Whether uint8 images are sent as such, to a signature for them.
    """
    if isinstance(inputs, Mapping):
        return {name: _as_array(value) for name, value in inputs.items()}, DEFAULT_SIGNATURE
    if isinstance(inputs, bytes):
        inputs = [inputs]
    if may_be_uint8 and isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim == 4:
        return {"image": inputs}, _UINT8_SIGNATURE
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "fiu" and inputs.ndim == 4:
        return {"image": inputs.astype(np.float32)}, DEFAULT_SIGNATURE
    if not isinstance(inputs, np.ndarray) and inputs and all(isinstance(item, bytes) for item in inputs):
        return {"image_bytes": _as_array(inputs)}, "predict_bytes"
    received = (
        f"an array {inputs.dtype}{list(inputs.shape)}" if isinstance(inputs, np.ndarray) else type(inputs).__name__
    )
    raise RecipeError(
        "inputs must be an array of images (batch, height, width, channels), a list of encoded files (bytes), or "
        f"arrays by input name. Received: {received}"
    )


def _lacks_signature(error: RequestError, request: "_Request", signature: str | None) -> bool:
    """Return whether a request failed because the model has no signature for uint8 images, which nobody requested."""
    is_default = signature is None and request.signature == _UINT8_SIGNATURE
    return is_default and error.code in MISSING_SIGNATURE_CODES and _UINT8_SIGNATURE in error.message


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
        return np.array(value, object)  # a fixed-width dtype would drop trailing zero bytes
    return np.asarray(value)


def _parse_response(status: int, data: bytes) -> Any:
    try:
        document = json.loads(data.decode("utf-8", "surrogateescape"))  # strings of a model may be any bytes
    except (ValueError, RecursionError):
        document = None
    if status != 200:
        server_message = document.get("error") if isinstance(document, dict) else None
        raise StatusError(
            _STATUS_CODES.get(status, "INTERNAL"), str(server_message or f"HTTP {status} without a message")
        )
    if not isinstance(document, dict):
        raise StatusError("INTERNAL", "this is not TF Serving: the response is not a JSON object")
    return document


@contextlib.contextmanager
def _reject_other_documents() -> Iterator[None]:
    """Raise INTERNAL instead of the error of a response whose content is not that of TF Serving."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = f"this is not TF Serving: the response has other content ({type(error).__name__}: {error})"
        raise StatusError("INTERNAL", message) from error


def _read_outputs(values: Any, infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays in a response by name. `infos` are the outputs of the signature in the metadata."""
    if len(infos) == 1:  # TF Serving sends a single output without its name
        values = dict.fromkeys(infos, values)
    return {name: _array_from_json(values[name], infos[name]["dtype"]) for name in sorted(infos)}


def _version_path(version: int | None, label: str | None) -> str:
    if version is not None:
        return f"/versions/{version}"
    return "" if label is None else f"/labels/{urllib.parse.quote(label, safe='')}"


def _predict_body(signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """Return the JSON of a prediction request. Numbers have the digits that their dtype needs."""
    import orjson

    if all(array.dtype.kind in "biuf" and array.ndim and np.isfinite(array).all() for array in inputs.values()):
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items() if array.size}
        empty = {name: array.tolist() for name, array in inputs.items() if not array.size}
        return orjson.dumps({"signature_name": signature, "inputs": arrays | empty}, option=orjson.OPT_SERIALIZE_NUMPY)
    values = {name: _array_to_json(array) for name, array in inputs.items()}  # orjson writes NaN as null
    return json.dumps({"signature_name": signature, "inputs": values}).encode()


def _array_to_json(array: np.ndarray) -> Any:
    return _encode_base64(array.tolist()) if array.dtype.kind in "OS" else array.tolist()


def _encode_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_encode_base64(item) for item in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _array_from_json(value: Any, dtype: str) -> np.ndarray:
    if dtype not in _NUMPY_DTYPES:
        raise StatusError("UNIMPLEMENTED", f"outputs of dtype {dtype} are not supported over REST")
    return np.array(_decode_base64(value), object) if dtype == "DT_STRING" else np.array(value, _NUMPY_DTYPES[dtype])


def _decode_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode_base64(item) for item in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode("utf-8", "surrogateescape")
