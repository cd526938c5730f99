"""Between which values of its knobs may a recipe be varied?"""

import dataclasses
from typing import TYPE_CHECKING, Any

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile

if TYPE_CHECKING:
    import optuna

RESERVED = ("members", "seed")  # each proposal is one member with a seed of its own


@dataclasses.dataclass(frozen=True)
class Range:
    """The values of one knob.

    Attributes:
        knob: Its name.
        values: The values to choose from; or the lowest and the highest.
        kind: `"choice"`, `"linear"` or `"log"`.
    """

    knob: str
    values: tuple[Any, ...]
    kind: str

    def propose(self, trial: "optuna.Trial") -> Any:
        """A value that Optuna suggests."""
        if self.kind == "choice":
            # Optuna keeps choices as JSON has them, without tuples: it chooses the place.
            return self.values[trial.suggest_categorical(self.knob, list(range(len(self.values))))]
        low, high = self.values
        suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
        return suggest(self.knob, low, high, log=self.kind == "log")


def parse_ranges(recipe_file: RecipeFile, texts: list[str]) -> tuple[Range, ...]:
    """`"width=1:4"`, `"learning_rate=0.01:0.3:log"` or `"depth=16,22,28"`, each value typed as the knob is.

    Raises:
        RecipeError: If a knob is unknown, reserved or given twice, or a value is not of its type.
    """
    missing = [knob for knob in RESERVED if knob not in recipe_file.defaults]
    if missing:
        raise RecipeError(f"{recipe_file.path} has no knob {missing[0]!r}; a search needs it for its members.")
    ranges = tuple(_parse(recipe_file, text) for text in texts)
    knobs = [each.knob for each in ranges]
    double = sorted({knob for knob in knobs if knobs.count(knob) > 1})
    if double or not ranges:
        wrong = f"--range {double[0]} is given twice" if double else "a search needs a --range KNOB=LOW:HIGH"
        raise RecipeError(f"{wrong}.")
    return ranges


def _parse(recipe_file: RecipeFile, text: str) -> Range:
    knob, _, values = text.partition("=")
    if not values:
        raise RecipeError(f"--range expects knob=low:high or knob=a,b,c. Received: {text!r}")
    if knob in RESERVED:
        raise RecipeError(f"--range {knob} cannot be: each proposal is one member with a seed of its own.")
    parts = values.split(":")
    kind = "choice" if len(parts) == 1 else "linear"
    if len(parts) == 3 and parts[2] == "log":
        kind, parts = "log", parts[:2]
    texts = values.split(",") if kind == "choice" else parts
    typed = tuple(recipe_file.resolve([f"{knob}={each.strip()}"])[knob] for each in texts)
    if kind != "choice" and not _is_interval(typed, kind):
        raise RecipeError(f"--range {knob} expects two numbers, the lower first (log: above 0). Received: {values!r}")
    return Range(knob, typed, kind)


def _is_interval(typed: tuple[Any, ...], kind: str) -> bool:
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in typed)
    return len(typed) == 2 and numbers and typed[0] < typed[1] and (kind == "linear" or typed[0] > 0)
