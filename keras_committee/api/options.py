"""Checks of the arguments that are options of the commands, with one message for both."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_committee.api.results import SelectedCommittee
from keras_committee.errors import RecipeError
from keras_committee.files import expand_home

MovedData = Mapping[str, str | Path] | Sequence[str]


def option(name: str) -> str:
    """Return the option of an argument: `"--max-risk"` for `"max_risk"`."""
    return f"--{name.replace('_', '-')}"


def require(name: str, is_valid: Any, expected: str, value: Any) -> None:
    """Raise RecipeError unless the value of an option is valid."""
    if not is_valid:
        raise RecipeError(f"{option(name)} must be {expected}. Received: {value!r}")


def between(value: Any, low: float, high: float = math.inf) -> bool:
    """Return whether a value is a number above `low` and below `high`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def is_integer(value: Any, low: int) -> bool:
    """Return whether a value is an integer of at least `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise RecipeError unless a value is one of the choices."""
    named = ", ".join(repr(choice) for choice in choices if choice is not None)
    require(name, value in choices, f"one of {named}", value)


def check_conflicts(conflicts: Mapping[str, Any]) -> None:
    """Raise RecipeError for the first message whose condition holds."""
    for message, conflict in conflicts.items():
        if conflict:
            raise RecipeError(f"{message}.")


def set_options(moved_data: MovedData) -> list[str]:
    """Return new paths of the data as `--set` takes them."""
    if isinstance(moved_data, Mapping):
        return [f"{name}={os.fspath(path)}" for name, path in moved_data.items()]
    return list(moved_data)


def selection_path(selection: str | Path | SelectedCommittee | None) -> Path | None:
    """Return the file of a selection."""
    if isinstance(selection, SelectedCommittee):
        return selection.path
    return None if selection is None else expand_home(selection)
