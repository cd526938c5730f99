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
from keras_committee.tfserving.tf_protocol import StatusError, packed_proto, to_array

__all__ = ["Client", "RequestError", "VersionStatus"]

_T = TypeVar("_T")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds


class RequestError(StatusError):
    """The server refused, or could not be reached in time. `code` and `message` are those of the server."""

    def __init__(self, error: StatusError, told: str):
        super().__init__(error.code, error.message)
        self.args = (told,)


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
        scheme, place, named = _read_url(url)
        self.model = _one_name(url, model, named)
        if scheme == "grpc":
            self._transport = GrpcTransport(place, self.model, max_message_bytes)
        else:
            self._transport = RestTransport(f"{scheme}://{place}", self.model)

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
        arrays, usual = _arrays(inputs)
        signature = usual if signature is None else signature
        return self._ask(
            lambda left: self._transport.predict(arrays, signature, version, label, tuple(outputs), left), timeout
        )

    def status(self, version: int | None = None, *, timeout: float | None = None) -> list[VersionStatus]:
        """What has become of the model's versions, the newest first. Raises RequestError."""
        found = self._ask(lambda left: self._transport.status(version, left), timeout)
        return sorted((VersionStatus(*each) for each in found), key=lambda each: -each.version)

    def close(self) -> None:
        """Closes the connections. The client cannot be used after it."""
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _ask(self, ask: Callable[[float], _T], timeout: float | None) -> _T:
        """Asks until there is an answer, the deadline, or a refusal that stays one."""
        timeout = self.timeout if timeout is None else timeout
        until, pause, tries = time.monotonic() + timeout, _FIRST_PAUSE, 0
        while True:
            tries += 1
            try:
                return ask(max(until - time.monotonic(), 0.001))
            except StatusError as error:
                rest = pause * random.uniform(0.5, 1.0)  # clients that failed together do not come back together
                if error.code != "UNAVAILABLE" or time.monotonic() + rest >= until:
                    raise RequestError(error, self._told(error, tries, timeout)) from error
            time.sleep(rest)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _told(self, error: StatusError, tries: int, timeout: float) -> str:
        where = f"{self.url}, model {self.model!r}"
        if error.code == "UNAVAILABLE":
            return (
                f"{where}: no answer in {tries} tries within {timeout:g} s: {error.message}\n"
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


def _one_name(url: str, model: str | None, named: str) -> str:
    if "/" in named or (model and named and model != named) or not (model or named):
        raise RecipeError(f"name one model: model=NAME or {url.split('/', 3)[0]}//host:port/NAME. Received: {url!r}")
    return model or named


def _arrays(inputs: Any) -> tuple[dict[str, np.ndarray], str]:
    """The inputs by name, and the signature that usually takes them."""
    if isinstance(inputs, Mapping):
        return {name: _array(value) for name, value in inputs.items()}, "serving_default"
    if isinstance(inputs, bytes):
        inputs = [inputs]
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "fiu" and inputs.ndim == 4:
        return {"image": inputs.astype(np.float32)}, "serving_default"
    if not isinstance(inputs, np.ndarray) and inputs and all(isinstance(each, bytes) for each in inputs):
        return {"image_bytes": _array(inputs)}, "predict_bytes"
    got = f"an array {inputs.dtype}{list(inputs.shape)}" if isinstance(inputs, np.ndarray) else type(inputs).__name__
    raise RecipeError(
        "images are an array (batch, height, width, channels), encoded files as a list of bytes, or arrays by input "
        f"name. Received: {got}"
    )


def _array(value: Any) -> np.ndarray:
    if isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
        return np.array(value, object)  # or numpy cuts zeros off the end
    return np.asarray(value)


# What TF Serving's HTTP codes meant before they were HTTP codes.
_CODES = {
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
_DTYPES = {
    "DT_FLOAT": "float32",
    "DT_DOUBLE": "float64",
    "DT_BOOL": "bool",
    "DT_STRING": "object",
    **{f"DT_{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


class RestTransport:
    """The REST API at `server`, "http://host:port", for one model."""

    def __init__(self, server: str, model: str):
        try:
            import urllib3
        except ImportError as error:
            raise RecipeError(f'http:// needs pip install "keras-committee[serving]": {error}') from error
        self._pool = urllib3.PoolManager(maxsize=16, retries=False)
        self._home = f"{server}/v1/models/{urllib.parse.quote(model, safe='')}"
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
        url = self._home + _version_path(version, label)
        body = {"signature_name": signature, "inputs": {name: _json(array) for name, array in inputs.items()}}
        values = self._called("POST", f"{url}:predict", timeout, json.dumps(body).encode())["outputs"]
        infos = self._outputs(url, signature, timeout)
        named = values if len(infos) > 1 else dict.fromkeys(infos, values)  # one output comes without its name
        arrays = {name: _array_client_rest(named[name], infos[name]["dtype"]) for name in sorted(named)}
        return _chosen(arrays, outputs)

    def status(self, version: int | None, timeout: float) -> list[tuple[int, str, str]]:
        answer = self._called("GET", self._home + _version_path(version, None), timeout)
        return [
            (int(each["version"]), each["state"], each["status"]["error_message"])
            for each in answer["model_version_status"]
        ]

    def close(self) -> None:
        self._pool.clear()

    def _outputs(self, url: str, signature: str, timeout: float) -> dict[str, Any]:
        """Names and dtypes of the outputs. A label may move, but a signature keeps its promise: asked for once."""
        if signature not in self._signatures.get(url, {}):
            metadata = self._called("GET", f"{url}/metadata", timeout)["metadata"]
            self._signatures[url] = metadata["signature_def"]["signature_def"]
        return self._signatures[url][signature]["outputs"]

    def _called(self, method: str, url: str, timeout: float, body: bytes | None = None) -> Any:
        import urllib3

        headers = {"Content-Type": "application/json"} if body else {}
        try:
            answer = self._pool.request(
                method, url, body=body, headers=headers, timeout=urllib3.Timeout(total=timeout), redirect=False
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise StatusError("DEADLINE_EXCEEDED", f"no answer within {timeout:.1f} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise StatusError("UNAVAILABLE", str(error)) from error
        return _read(answer.status, answer.data)


def _read(status: int, data: bytes) -> Any:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if status != 200:
        told = document.get("error") if isinstance(document, dict) else None
        raise StatusError(_CODES.get(status, "INTERNAL"), str(told or f"HTTP {status} without a reason"))
    if not isinstance(document, dict):
        raise StatusError("INTERNAL", "this is no TF Serving: its answer is no JSON object")
    return document


def _version_path(version: int | None, label: str | None) -> str:
    if version is not None:
        return f"/versions/{version}"
    return "" if label is None else f"/labels/{urllib.parse.quote(label, safe='')}"


def _json(array: np.ndarray) -> Any:
    if array.dtype.kind == "O":
        return _strings(array.tolist())
    return array.tolist()


def _strings(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(each) for each in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _array_client_rest(value: Any, dtype: str) -> np.ndarray:
    if dtype not in _DTYPES:
        raise StatusError("UNIMPLEMENTED", f"an output of {dtype} does not come over REST")
    return np.array(_bytes(value), object) if dtype == "DT_STRING" else np.array(value, _DTYPES[dtype])


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(each) for each in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def _chosen(arrays: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
    """REST always answers with all outputs: the choice is made here, in gRPC's words."""
    for name in outputs:
        if name not in arrays:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{{{','.join(sorted(arrays))}}}.",
            )
    return {name: arrays[name] for name in outputs or arrays}


_MOST = 2**31  # elements of an answer; its message is bounded anyway


class GrpcTransport:
    """One channel to `place`, "host:port", for one model."""

    def __init__(self, place: str, model: str, max_message_bytes: int):
        try:
            import grpc
            from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
        except ImportError as error:
            raise RecipeError(f'grpc:// needs pip install "keras-committee[serving]": {error}') from error
        self._channel = grpc.insecure_channel(place, _options(max_message_bytes))
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
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
        answer = _called(self._predictions.Predict, request, timeout)
        return {name: to_array(proto, _MOST) for name, proto in sorted(answer.outputs.items())}

    def status(self, version: int | None, timeout: float) -> list[tuple[int, str, str]]:
        from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

        request = status_pb2.GetModelStatusRequest(model_spec=self._spec(version, None))
        answer = _called(self._models.GetModelStatus, request, timeout)
        state = status_pb2.ModelVersionStatus.State.Name
        return [(each.version, state(each.state), each.status.error_message) for each in answer.model_version_status]

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


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.enable_retries", 0),  # the client has its own, with one deadline for all
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _called(method: Any, request: Any, timeout: float) -> Any:
    import grpc

    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise StatusError(error.code().name, error.details() or "") from error
