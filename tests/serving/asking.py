"""How is a request of the conformance suite written down, and what must come back?

`row` is the line of the written rules that a case belongs to. Where TF Serving refuses
nothing and the stand-in does, or where the words are our own, `ours` is set: another server is not asked it.
"""

import base64
import dataclasses
import io
import json

import numpy as np
from PIL import Image

H, K, T, I = (f"/v1/models/{name}" for name in ("half_plus_two", "kinds", "two", "image"))  # noqa: E741
PLAIN = "not formatted correctly. 'signature_name' key must be a string value."


@dataclasses.dataclass(frozen=True)
class Case:
    row: str
    request: str  # "POST /v1/..."
    body: str | bytes | None
    status: int
    answer: object = None  # the JSON document of a good answer; floats may differ by 1e-6
    error: str = ""  # a part of the message
    text: str = ""  # a part of the body as it is sent
    ours: bool = False

    def __str__(self):
        body = "" if self.body is None else str(self.body)[:40]
        return f"{self.row} {self.request} {body}".encode("ascii", "backslashreplace").decode()


def good(row, path, body, answer=None, **more):
    return Case(row, f"POST {path}", body if isinstance(body, bytes) else json.dumps(body), 200, answer, **more)


def bad(row, path, body, error, status=400, **more):
    body = body if isinstance(body, str | bytes) else json.dumps(body)
    return Case(row, f"POST {path}", body, status, error=error, **more)


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


def png(color, size=8):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(color, size=8):
    return np.broadcast_to(np.array(color), (size, size, 3)).tolist()


RED, TEAL = (255, 0, 0), (0, 51, 204)
ROWS = {"instances": [1.0, 2.0, 5.0]}
ANSWER = {"predictions": [2.5, 3.0, 4.5]}
SEEN = {
    "predictions": [{"label": "red", "probabilities": [1, 0, 0]}, {"label": "blue", "probabilities": [0, 0.2, 0.8]}]
}
STATUS = {
    "model_version_status": [
        {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
}
