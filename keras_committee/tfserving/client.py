"""How does a program ask a committee that is served, by TF Serving or by its stand-in?

with Client("grpc://127.0.0.1:8500", model="digits") as client:
    client.predict(images)["label"]                    # float32 (batch, height, width, 3)
    client.predict([path.read_bytes()], label="canary")  # JPEG or PNG, decoded by the server
"""

import base64
import dataclasses
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from keras_committee.errors import RecipeError
from keras_committee.tfserving.tf_protocol import StatusError, packed_proto, proto_to_array

__all__ = ["Client", "RequestError", "VersionStatus"]

_T = TypeVar("_T")
_INITIAL_BACKOFF, _MAX_BACKOFF = 0.05, 2.0  # seconds


class RequestError(StatusError):
    """The server refused, or could not be reached in time. `code` and `message` are those of the server."""

    def __init__(self, error: StatusError, explanation: str):
        super().__init__(error.code, error.message)
        self.args = (explanation,)


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """One version of the model: `state` is START, LOADING, AVAILABLE, UNLOADING or END; `error` says why it ended."""

    version: int
    state: str
    error: str = ""


class Client:
    """Asks one model of one server. Any number of threads may use it at once.

    Args:
        url: `grpc://host:8500` or `http://host:8501`; `https` too. It may end in the model's name.
        model: The model's name, where the URL has none.
        timeout: Seconds for a call with all its retries.
        max_message_bytes: Of a gRPC message. gRPC itself would stop at 4 MB.

    Raises:
        RecipeError: If the URL is none of these, or no model is named.
    """

    def __init__(
        self, url: str, model: str | None = None, *, timeout: float = 30.0, max_message_bytes: int = 256 * 2**20
    ):
        self.url, self.timeout = url, timeout
        scheme, address, url_model = _read_url(url)
        self.model = _resolve_model_name(url, model, url_model)
        if scheme == "grpc":
            self._transport = GrpcTransport(address, self.model, max_message_bytes)
        else:
            self._transport = RestTransport(f"{scheme}://{address}", self.model)

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
        """Asks for the outputs of a batch.

        Args:
            inputs: Float images `(batch, height, width, channels)` for the input `image`; encoded JPEG or PNG files
                for `image_bytes`; or arrays by input name.
            signature: Which one; where None `serving_default`, for encoded images `predict_bytes`.
            version: A version's number, or
            label: its label; the newest version where both are None.
            outputs: Names of the outputs that are wanted; none for all.
            timeout: Seconds, in place of those of the client.

        Returns:
            dict of output name -> array with the batch first. Strings are object arrays of bytes.

        Raises:
            RequestError: What the server said. Only UNAVAILABLE, 503 and lost connections are tried again.
            RecipeError: If the inputs are none of these.
        """
        if version is not None and label is not None:
            raise RecipeError(f"name a version or a label, not both. Received: {version} and {label!r}")
        arrays, default_signature = _prepare_inputs(inputs)
        signature = default_signature if signature is None else signature
        return self._call_with_retry(
            lambda remaining: self._transport.predict(arrays, signature, version, label, tuple(outputs), remaining),
            timeout,
        )

    def status(self, version: int | None = None, *, timeout: float | None = None) -> list[VersionStatus]:
        """What has become of the model's versions, the newest first. Raises RequestError."""
        statuses = self._call_with_retry(lambda remaining: self._transport.status(version, remaining), timeout)
        return sorted((VersionStatus(*each) for each in statuses), key=lambda each: -each.version)

    def close(self) -> None:
        """Closes the connections. The client cannot be used after it."""
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _call_with_retry(self, call: Callable[[float], _T], timeout: float | None) -> _T:
        """Asks until there is an answer, the deadline, or a refusal that stays one."""
        timeout = self.timeout if timeout is None else timeout
        deadline, backoff, attempts = time.monotonic() + timeout, _INITIAL_BACKOFF, 0
        while True:
            attempts += 1
            try:
                return call(max(deadline - time.monotonic(), 0.001))
            except StatusError as error:
                delay = backoff * random.uniform(0.5, 1.0)  # clients that failed together do not come back together
                if error.code != "UNAVAILABLE" or time.monotonic() + delay >= deadline:
                    raise RequestError(error, self._explain(error, attempts, timeout)) from error
            time.sleep(delay)
            backoff = min(2 * backoff, _MAX_BACKOFF)

    def _explain(self, error: StatusError, attempts: int, timeout: float) -> str:
        where = f"{self.url}, model {self.model!r}"
        if error.code == "UNAVAILABLE":
            return (
                f"{where}: no answer in {attempts} tries within {timeout:g} s: {error.message}\n"
                "  Is the server running? `keras-committee serve MODEL_DIR` starts one on this machine."
            )
        return f"{where}: {error.code}: {error.message}{_HINTS.get(error.code, '')}"


_HINTS = {
    "NOT_FOUND": "\n  `Client.status()` lists the versions that are there.",
    "DEADLINE_EXCEEDED": "\n  Give the call more time, `timeout=SECONDS`, or send fewer images at once.",
    "RESOURCE_EXHAUSTED": "\n  Send fewer images at once, or encoded ones; `max_message_bytes` bounds gRPC messages.",
}


def _read_url(url: str) -> tuple[str, str, str]:
    """Scheme, `host:port` and the model's name, which may be ""."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = parts = None
    if parts is None or parts.scheme not in ("grpc", "http", "https") or not host or port is None:
        raise RecipeError(f"a server is grpc://host:port or http://host:port. Received: {url!r}")
    path = parts.path.removeprefix("/v1/models").strip("/")
    return parts.scheme, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", urllib.parse.unquote(path)


def _resolve_model_name(url: str, model: str | None, url_model: str) -> str:
    if "/" in url_model or (model and url_model and model != url_model) or not (model or url_model):
        raise RecipeError(f"name one model: model=NAME or {url.split('/', 3)[0]}//host:port/NAME. Received: {url!r}")
    return model or url_model


def _prepare_inputs(inputs: Any) -> tuple[dict[str, np.ndarray], str]:
    """The inputs by name, and the signature that usually takes them."""
    if isinstance(inputs, Mapping):
        return {name: _as_array(value) for name, value in inputs.items()}, "serving_default"
    if isinstance(inputs, bytes):
        inputs = [inputs]
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "fiu" and inputs.ndim == 4:
        return {"image": inputs.astype(np.float32)}, "serving_default"
    if not isinstance(inputs, np.ndarray) and inputs and all(isinstance(item, bytes) for item in inputs):
        return {"image_bytes": _as_array(inputs)}, "predict_bytes"
    received = (
        f"an array {inputs.dtype}{list(inputs.shape)}" if isinstance(inputs, np.ndarray) else type(inputs).__name__
    )
    raise RecipeError(
        "images are an array (batch, height, width, channels), encoded files as a list of bytes, or arrays by input "
        f"name. Received: {received}"
    )


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
        return np.array(value, object)  # or numpy cuts zeros off the end
    return np.asarray(value)


# What TF Serving's HTTP codes meant before they were HTTP codes.
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


class RestTransport:
    """The REST API at `server_url`, "http://host:port", for one model."""

    def __init__(self, server_url: str, model: str):
        try:
            import urllib3
        except ImportError as error:
            raise RecipeError(f'http:// needs pip install "keras-committee[serving]": {error}') from error
        self._pool = urllib3.PoolManager(maxsize=16, retries=False)
        self._base_url = f"{server_url}/v1/models/{urllib.parse.quote(model, safe='')}"
        self._signatures: dict[str, dict[str, Any]] = {}  # by URL of the version

    def predict(
        self,
        inputs: dict[str, np.ndarray],
        signature: str,
        version: int | None,
        label: str | None,
        outputs: tuple[str, ...],
        timeout: float,
    ) -> dict[str, np.ndarray]:
        url = self._base_url + _version_path(version, label)
        body = {"signature_name": signature, "inputs": {name: _array_to_json(array) for name, array in inputs.items()}}
        values = self._request("POST", f"{url}:predict", timeout, json.dumps(body).encode())["outputs"]
        infos = self._output_infos(url, signature, timeout)
        values_by_name = values if len(infos) > 1 else dict.fromkeys(infos, values)  # one output comes without its name
        arrays = {name: _array_from_json(values_by_name[name], infos[name]["dtype"]) for name in sorted(values_by_name)}
        return _select_outputs(arrays, outputs)

    def status(self, version: int | None, timeout: float) -> list[tuple[int, str, str]]:
        response = self._request("GET", self._base_url + _version_path(version, None), timeout)
        return [
            (int(version_status["version"]), version_status["state"], version_status["status"]["error_message"])
            for version_status in response["model_version_status"]
        ]

    def close(self) -> None:
        self._pool.clear()

    def _output_infos(self, url: str, signature: str, timeout: float) -> dict[str, Any]:
        """Names and dtypes of the outputs. A label may move, but a signature keeps its promise: asked for once."""
        if signature not in self._signatures.get(url, {}):
            metadata = self._request("GET", f"{url}/metadata", timeout)["metadata"]
            self._signatures[url] = metadata["signature_def"]["signature_def"]
        return self._signatures[url][signature]["outputs"]

    def _request(self, method: str, url: str, timeout: float, body: bytes | None = None) -> Any:
        import urllib3

        headers = {"Content-Type": "application/json"} if body else {}
        try:
            response = self._pool.request(
                method, url, body=body, headers=headers, timeout=urllib3.Timeout(total=timeout), redirect=False
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise StatusError("DEADLINE_EXCEEDED", f"no answer within {timeout:.1f} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise StatusError("UNAVAILABLE", str(error)) from error
        return _parse_response(response.status, response.data)


def _parse_response(status: int, data: bytes) -> Any:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if status != 200:
        server_message = document.get("error") if isinstance(document, dict) else None
        raise StatusError(
            _STATUS_CODES.get(status, "INTERNAL"), str(server_message or f"HTTP {status} without a reason")
        )
    if not isinstance(document, dict):
        raise StatusError("INTERNAL", "this is no TF Serving: its answer is no JSON object")
    return document


def _version_path(version: int | None, label: str | None) -> str:
    if version is not None:
        return f"/versions/{version}"
    return "" if label is None else f"/labels/{urllib.parse.quote(label, safe='')}"


def _array_to_json(array: np.ndarray) -> Any:
    if array.dtype.kind == "O":
        return _encode_base64(array.tolist())
    return array.tolist()


def _encode_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_encode_base64(item) for item in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _array_from_json(value: Any, dtype: str) -> np.ndarray:
    if dtype not in _NUMPY_DTYPES:
        raise StatusError("UNIMPLEMENTED", f"an output of {dtype} does not come over REST")
    return np.array(_decode_base64(value), object) if dtype == "DT_STRING" else np.array(value, _NUMPY_DTYPES[dtype])


def _decode_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode_base64(item) for item in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def _select_outputs(arrays: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
    """REST always answers with all outputs: the choice is made here, in gRPC's words."""
    for name in outputs:
        if name not in arrays:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{{{','.join(sorted(arrays))}}}.",
            )
    return {name: arrays[name] for name in outputs or arrays}


_MAX_ELEMENTS = 2**31  # elements of an answer; its message is bounded anyway


class GrpcTransport:
    """One channel to `address`, "host:port", for one model."""

    def __init__(self, address: str, model: str, max_message_bytes: int):
        try:
            import grpc
            from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
        except ImportError as error:
            raise RecipeError(f'grpc:// needs pip install "keras-committee[serving]": {error}') from error
        self._channel = grpc.insecure_channel(address, _channel_options(max_message_bytes))
        self._prediction_stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model_stub = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._model = model

    def predict(
        self,
        inputs: dict[str, np.ndarray],
        signature: str,
        version: int | None,
        label: str | None,
        outputs: tuple[str, ...],
        timeout: float,
    ) -> dict[str, np.ndarray]:
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec(version, label), output_filter=outputs)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(packed_proto(array))
        response = _call_rpc(self._prediction_stub.Predict, request, timeout)
        return {name: proto_to_array(proto, _MAX_ELEMENTS) for name, proto in sorted(response.outputs.items())}

    def status(self, version: int | None, timeout: float) -> list[tuple[int, str, str]]:
        from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

        request = status_pb2.GetModelStatusRequest(model_spec=self._spec(version, None))
        response = _call_rpc(self._model_stub.GetModelStatus, request, timeout)
        state_name = status_pb2.ModelVersionStatus.State.Name
        return [
            (version_status.version, state_name(version_status.state), version_status.status.error_message)
            for version_status in response.model_version_status
        ]

    def close(self) -> None:
        self._channel.close()

    def _spec(self, version: int | None, label: str | None) -> Any:
        from tensorflow_serving.apis import model_pb2

        spec = model_pb2.ModelSpec(name=self._model)
        if version is not None:
            spec.version.value = version
        if label is not None:
            spec.version_label = label
        return spec


def _channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.enable_retries", 0),  # the client has its own, with one deadline for all
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _call_rpc(method: Any, request: Any, timeout: float) -> Any:
    import grpc

    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise StatusError(error.code().name, error.details() or "") from error
