"""Web page of the local server, which classifies images and shows each member's prediction for the same pixels.

One file without external resources. It sends requests only to the REST API of its own server; its
Content-Security-Policy enforces this.
"""

import base64
import functools
import hashlib
import re
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.server.manager import Manager
from keras_committee.tfserving.tf_protocol import StatusError


def routes(manager: Manager, limits: Limits) -> list[Route]:
    """Return Starlette's routes: the page at /, and the models and the limit that it needs at /page/models."""
    html = resources.files(__name__).joinpath("index.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_security_policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    def page(_request: Request) -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    def models(_request: Request) -> JSONResponse:
        document = {"models": list_models(manager), "max_body_bytes": limits.max_body_bytes}
        return JSONResponse(document, headers={"Cache-Control": "no-store"})

    return [Route("/", page, methods=["GET"]), Route("/page/models", models, methods=["GET"])]


def list_models(manager: Manager) -> list[dict[str, Any]]:
    """Return the name, the available versions (newest first) and the labels of each model."""
    return [
        {
            "name": config.name,
            "versions": [str(version) for version in _available_versions(manager, config.name)],
            "labels": {label: str(version) for label, version in sorted(config.labels.items())},
        }
        for config in sorted(manager.configs(), key=lambda config: config.name)
    ]


@functools.cache
def content_security_policy(html: str) -> str:
    """Return a Content-Security-Policy that allows the page's own script and style, and requests to its server."""
    script, style = (_hashes(html, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(html: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _available_versions(manager: Manager, name: str) -> list[int]:
    try:
        return [status.version for status in manager.statuses(name) if status.state == "AVAILABLE"]
    except StatusError:
        return []
