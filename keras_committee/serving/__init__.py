"""How does a committee answer requests, and what must TF Serving find on disk?"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_committee.tfserving.client import Client

__all__ = ["Client"]

_HOMES = {"Client": "client"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'keras_committee.serving' has no attribute {name!r}")
    return getattr(importlib.import_module(f"keras_committee.serving.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
