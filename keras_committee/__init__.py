"""Committees of small image classifiers, trained, evaluated and exported with Keras.

The public names are imported on first use: `import keras_committee` alone loads neither Keras nor TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_committee import data, flops, layers, metrics, models, schedules
    from keras_committee.errors import CommitteeError
    from keras_committee.models import Ensemble
    from keras_committee.recipe import Recipe

    __version__: str

__all__ = [
    "CommitteeError",
    "Ensemble",
    "Recipe",
    "__version__",
    "data",
    "flops",
    "layers",
    "metrics",
    "models",
    "schedules",
]

_HOMES = {"CommitteeError": "errors", "Ensemble": "models", "Recipe": "recipe"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'keras_committee' has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        return version("keras-committee")
    if name in _HOMES:
        return getattr(importlib.import_module(f"keras_committee.{_HOMES[name]}"), name)
    return importlib.import_module(f"keras_committee.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
