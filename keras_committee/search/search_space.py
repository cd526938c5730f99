"""Between which values of its knobs may a recipe be varied?"""

import dataclasses
from typing import TYPE_CHECKING, Any

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile

if TYPE_CHECKING:
    import optuna

RESERVED_PARAMETERS = ("members", "seed")  # each proposal is one member with a seed of its own


@dataclasses.dataclass(frozen=True)
class ParameterRange:
    """The values of one knob.

    Attributes:
        parameter: Its name.
        values: The values to choose from; or the lowest and the highest.
        kind: `"choice"`, `"linear"` or `"log"`.
    """

    parameter: str
    values: tuple[Any, ...]
    kind: str

    def propose(self, trial: "optuna.Trial") -> Any:
        """A value that Optuna suggests."""
        if self.kind == "choice":
            # Optuna keeps choices as JSON has them, without tuples: it chooses the place.
            return self.values[trial.suggest_categorical(self.parameter, list(range(len(self.values))))]
        low, high = self.values
        suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
        return suggest(self.parameter, low, high, log=self.kind == "log")


def parse_ranges(recipe_file: RecipeFile, texts: list[str]) -> tuple[ParameterRange, ...]:
    """`"width=1:4"`, `"learning_rate=0.01:0.3:log"` or `"depth=16,22,28"`, each value typed as the knob is.

    Raises:
        RecipeError: If a knob is unknown, reserved or given twice, or a value is not of its type.
    """
    missing = [name for name in RESERVED_PARAMETERS if name not in recipe_file.defaults]
    if missing:
        raise RecipeError(f"{recipe_file.path} has no knob {missing[0]!r}; a search needs it for its members.")
    ranges = tuple(_parse_range(recipe_file, text) for text in texts)
    names = [parameter_range.parameter for parameter_range in ranges]
    duplicates = sorted({knob for knob in names if names.count(knob) > 1})
    if duplicates or not ranges:
        problem = (
            f"--search-space {duplicates[0]} is given twice"
            if duplicates
            else "a search needs a --search-space KNOB=LOW:HIGH"
        )
        raise RecipeError(f"{problem}.")
    return ranges


def _parse_range(recipe_file: RecipeFile, text: str) -> ParameterRange:
    name, _, values = text.partition("=")
    if not values:
        raise RecipeError(f"--search-space expects knob=low:high or knob=a,b,c. Received: {text!r}")
    if name in RESERVED_PARAMETERS:
        raise RecipeError(f"--search-space {name} cannot be: each proposal is one member with a seed of its own.")
    parts = values.split(":")
    kind = "choice" if len(parts) == 1 else "linear"
    if len(parts) == 3 and parts[2] == "log":
        kind, parts = "log", parts[:2]
    texts = values.split(",") if kind == "choice" else parts
    parsed_values = tuple(recipe_file.resolve([f"{name}={value.strip()}"])[name] for value in texts)
    if kind != "choice" and not _is_interval(parsed_values, kind):
        raise RecipeError(
            f"--search-space {name} expects two numbers, the lower first (log: above 0). Received: {values!r}"
        )
    return ParameterRange(name, parsed_values, kind)


def _is_interval(bounds: tuple[Any, ...], kind: str) -> bool:
    all_numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds)
    return len(bounds) == 2 and all_numbers and bounds[0] < bounds[1] and (kind == "linear" or bounds[0] > 0)
