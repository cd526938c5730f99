"""Search for new members of a committee."""

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_committee.api.options import between, is_integer, option, require
from keras_committee.api.results import Result, frame
from keras_committee.api.training import Parameters, RecipeSource, recipe_command, resolve_parameters
from keras_committee.costs import format_cost
from keras_committee.errors import RecipeError, pluralize
from keras_committee.files import expand_home
from keras_committee.keras_config import loading_backend
from keras_committee.search import Budget, parse_ranges
from keras_committee.step_display import displayed
from keras_committee.tables import Block, print_text, search_table

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingImports]


class Search(Result):
    """Members that a search trained: the document of `search --json`. `search["runs"]` are the runs to select from.

    Attributes:
        path: The folder of the search.
    """

    def __init__(self, document: Mapping[str, Any], path: Path, budget: Budget):
        super().__init__(document, path)
        self._budget = budget

    def blocks(self) -> Iterable[Block]:
        if self["members"]:
            yield search_table(self["members"])
        failed = len(self["members"]) - len(self["runs"])
        yield (
            f"Trained {pluralize(len(self['runs']), 'member')}{f' ({failed} failed)' if failed else ''} for"
            f" {format_cost(self['gflops'], '.4g')} GFLOPs in {self['minutes']:.1f} minutes; the budget of"
            f" {self._budget} is spent."
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas data frame of the members: parameters, cost, validation scores and gain.

        Raises:
            RecipeError: If pandas is not installed.
        """
        return frame("run", self["members"])


@displayed
def search(
    recipe: RecipeSource,
    /,
    search_space: Mapping[str, str] | Sequence[str],
    *,
    trials: int | None = None,
    budget_gflops: float | None = None,
    budget_minutes: float | None = None,
    out: str | Path | None = None,
    parameters: Parameters = (),
    command: str | None = None,
    **recipe_parameters: Any,
) -> Search:
    """Search for new members within a training budget.

    Optuna proposes recipe parameters, and each proposal is trained as one member, until the budget is spent. It may be
    interrupted; the same call again resumes, and one with a larger budget continues.

    Args:
        recipe: As in `train`. Its parameters `members` and `seed` are set by the search.
        search_space: Values of recipe parameters: `{"width": "1:4", "rate": "0.01:0.3:log", "depth": "16,22"}`, or
            texts `"width=1:4"`.
        trials: Maximum number of members to train, including those of earlier starts.
        budget_gflops: Maximum training cost of all members, in GFLOPs: 3 x FLOPs x images x epochs each.
        budget_minutes: Maximum training time of all members, in minutes.
        out: Folder of the search; None is `runs/NAME-search`.
        parameters: As in `train`.
        command: Command that resumes the search, for messages; None is the command line of these arguments.
        **recipe_parameters: As in `train`.

    Returns:
        The members; `select(search["runs"])` chooses among them.

    Raises:
        RecipeError: If the recipe, a parameter, the search space or the budget is invalid, or Optuna is missing.
        DataError: If the data cannot be read.
        RunError: If the folder belongs to another search, or is in use.
        Interrupted: If the search was interrupted.

    Example:
        >>> found = search("recipes/digits_wrn.py", {"width": "1:4"}, trials=8)
        >>> select(found["runs"])
    """
    budgets = {"trials": trials, "budget_gflops": budget_gflops, "budget_minutes": budget_minutes}
    if all(value is None for value in budgets.values()):
        raise RecipeError("a search requires --trials N, --budget-gflops X or --budget-minutes X.")
    require("trials", trials is None or is_integer(trials, 1), "a positive integer", trials)
    for name in ("budget_gflops", "budget_minutes"):
        require(name, budgets[name] is None or between(budgets[name], 0), "a number above 0", budgets[name])
    recipe_file, values = resolve_parameters(recipe, parameters, recipe_parameters)
    is_mapping = isinstance(search_space, Mapping)
    ranges = [f"{name}={text}" for name, text in search_space.items()] if is_mapping else list(search_space)
    parsed = parse_ranges(recipe_file, ranges)
    recipe_file.require_data_folders(values)
    if importlib.util.find_spec("optuna") is None:
        raise RecipeError("`search` requires Optuna. Install it with: pip install 'keras-committee[search]'")
    folder = expand_home(out or f"runs/{recipe_file.name}-search")
    with loading_backend():
        from keras_committee.search.driver import search as run_search

    budget = Budget(trials=trials or math.inf, gflops=budget_gflops or math.inf, minutes=budget_minutes or math.inf)
    given = {option(name): value for name, value in budgets.items() if value is not None}
    pairs = [("--out", folder), *((option("search_space"), text) for text in ranges), *given.items()]
    words = [word for pair in pairs for word in pair]
    # The run of the first proposal records a recipe that is a function.
    command = command or recipe_command("search", recipe_file, folder / "member-000", words, values)
    report = partial(print_text, err=True)
    document = run_search(recipe_file, values, parsed, budget, folder, command=command, report=report)
    return Search(document, folder, budget)
