"""How does a program ask a committee that is served, by TF Serving or by its stand-in?

with Client("grpc://127.0.0.1:8500", model="digits") as client:
    client.predict(images)["label"]                    # float32 (batch, height, width, 3)
    client.predict([path.read_bytes()], label="canary")  # JPEG or PNG, decoded by the server
"""

import dataclasses
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from keras_committee.errors import RecipeError
from keras_committee.serving.status import StatusError

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
            from keras_committee.serving.client_grpc import GrpcTransport

            self._transport = GrpcTransport(place, self.model, max_message_bytes)
        else:
            from keras_committee.serving.client_rest import RestTransport

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
