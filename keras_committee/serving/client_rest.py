"""How is a server asked over REST?"""

import base64
import json
import urllib.parse
from typing import Any

import numpy as np

from keras_committee.errors import RecipeError
from keras_committee.serving.status import StatusError

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
        arrays = {name: _array(named[name], infos[name]["dtype"]) for name in sorted(named)}
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


def _array(value: Any, dtype: str) -> np.ndarray:
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
