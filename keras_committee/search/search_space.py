"""The search space: recipe parameters and the values that a search may choose."""

import dataclasses
from typing import TYPE_CHECKING, Any

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile

if TYPE_CHECKING:
    import optuna

_RESERVED_PARAMETERS = ("members", "seed")  # each proposal is one member with its own seed


@dataclasses.dataclass(frozen=True)
class ParameterRange:
    """The values of one recipe parameter.

    Attributes:
        parameter: Name of the parameter.
        values: The possible values of a `"choice"`; else the lowest and the highest value.
        kind: `"choice"`, `"linear"` or `"log"`.
    """

    parameter: str
    values: tuple[Any, ...]
    kind: str

    def suggest(self, trial: "optuna.Trial") -> Any:
        """Return the value that Optuna suggests for `trial`."""
        if self.kind == "choice":
            # Optuna stores choices as JSON, which has no tuples, so it chooses an index.
            return self.values[trial.suggest_categorical(self.parameter, list(range(len(self.values))))]
        low, high = self.values
        suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
        return suggest(self.parameter, low, high, log=self.kind == "log")

    def suggested(self, trial: "optuna.trial.FrozenTrial") -> Any:
        """Return the value that was suggested for an earlier `trial`."""
        value = trial.params[self.parameter]
        return self.values[value] if self.kind == "choice" else value


def parse_ranges(recipe_file: RecipeFile, texts: list[str]) -> tuple[ParameterRange, ...]:
    """Parse the ranges of a search space.

    Args:
        recipe_file: The recipe; values are converted to the types of its defaults.
        texts: Ranges such as `"width=1:4"`, `"learning_rate=0.01:0.3:log"` or `"depth=16,22,28"`.

    Raises:
        RecipeError: If a parameter is unknown, reserved or repeated, or a value does not have its type.
    """
    missing = [name for name in _RESERVED_PARAMETERS if name not in recipe_file.defaults]
    if missing:
        raise RecipeError(f"{recipe_file.path} has no parameter {missing[0]!r}, which a search requires.")
    if not texts:
        raise RecipeError("a search requires at least one --search-space NAME=LOW:HIGH.")
    ranges = tuple(_parse_range(recipe_file, text) for text in texts)
    names = [parameter_range.parameter for parameter_range in ranges]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(f"--search-space {repeated[0]} must be given only once.")
    return ranges


def _parse_range(recipe_file: RecipeFile, text: str) -> ParameterRange:
    name, _, values = text.partition("=")
    if not values:
        raise RecipeError(f"--search-space must be NAME=LOW:HIGH or NAME=A,B,C. Received: {text!r}")
    if name in _RESERVED_PARAMETERS:
        raise RecipeError(f"--search-space cannot vary {name}: each proposal is one member with its own seed.")
    parts = values.split(":")
    kind = "choice" if len(parts) == 1 else "linear"
    if len(parts) == 3 and parts[2] == "log":
        kind, parts = "log", parts[:2]
    texts = values.split(",") if kind == "choice" else parts
    parsed_values = tuple(recipe_file.resolve([f"{name}={value.strip()}"])[name] for value in texts)
    if kind != "choice" and not _is_interval(parsed_values, kind):
        raise RecipeError(
            f"--search-space {name} must be two numbers, the lower one first (for log, above 0). Received: {values!r}"
        )
    return ParameterRange(name, parsed_values, kind)


def _is_interval(bounds: tuple[Any, ...], kind: str) -> bool:
    all_numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds)
    return len(bounds) == 2 and all_numbers and bounds[0] < bounds[1] and (kind == "linear" or bounds[0] > 0)
