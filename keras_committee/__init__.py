"""Committees of small image classifiers, trained, evaluated and exported with Keras.

The public names are imported on first use: `import keras_committee` alone loads neither Keras nor TensorFlow.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_committee import data, flops, layers, metrics, models, schedules
    from keras_committee.api import (
        ExportedModel,
        Predictions,
        Run,
        SelectedCommittee,
        describe,
        export,
        import_models,
        load_export,
        push,
        report,
        search,
        select,
        train,
    )
    from keras_committee.errors import CommitteeError
    from keras_committee.models import Ensemble
    from keras_committee.recipe import Recipe, Teacher

    __version__: str

__all__ = [
    "CommitteeError",
    "Ensemble",
    "ExportedModel",
    "Predictions",
    "Recipe",
    "Run",
    "SelectedCommittee",
    "Teacher",
    "__version__",
    "data",
    "describe",
    "export",
    "flops",
    "import_models",
    "layers",
    "load_export",
    "metrics",
    "models",
    "push",
    "report",
    "schedules",
    "search",
    "select",
    "train",
]

_API = (
    "ExportedModel",
    "Predictions",
    "Run",
    "SelectedCommittee",
    "describe",
    "export",
    "import_models",
    "load_export",
    "push",
    "report",
    "search",
    "select",
    "train",
)
_HOMES = {
    "CommitteeError": "errors",
    "Ensemble": "models",
    "Recipe": "recipe",
    "Teacher": "recipe",
    **dict.fromkeys(_API, "api"),
}


class _Package(types.ModuleType):
    """This package, whose `export` and `search` are functions also after its subpackages of the names were imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in ("export", "search") and isinstance(value, types.ModuleType)):  # set by the import system
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


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
