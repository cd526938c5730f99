"""TensorFlow Serving: a client, configuration files, sessions of SavedModels and a local server for development.

Nothing here depends on committees: of keras_committee it imports `errors` and `files` only. The client needs no
TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_committee.tfserving.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'keras_committee.tfserving' has no attribute {name!r}")
    return importlib.import_module("keras_committee.tfserving.client").Client


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
