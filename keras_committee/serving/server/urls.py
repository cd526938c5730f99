"""What does a path under /v1/ ask for?"""

import dataclasses
import re
from urllib.parse import unquote

from keras_committee.tfserving.tf_protocol import StatusError

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
