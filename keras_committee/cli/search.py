"""`keras-committee search`: search for new members within a training budget."""

import importlib.util
import math
from pathlib import Path

import click

from keras_committee.cli.options import HomePath, json_option, recipe_argument, set_option, standard_options
from keras_committee.cli.output import print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.costs import format_cost
from keras_committee.errors import RecipeError
from keras_committee.keras_config import loading_backend
from keras_committee.recipe_file import RecipeFile
from keras_committee.search import Budget, parse_ranges
from keras_committee.tables import print_search, print_text


@click.command()
@recipe_argument
@click.option(
    "--search-space",
    "ranges",
    metavar="NAME=VALUES",
    multiple=True,
    required=True,
    help="Values of a recipe parameter: width=1:4, learning_rate=0.01:0.3:log or depth=16,22,28. May be repeated.",
)
@click.option(
    "--out",
    "search_dir",
    type=HomePath(),
    metavar="DIR",
    help="Search folder.",
    show_default="runs/RECIPE-search",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    help="Maximum number of members to train, including those of earlier starts.",
)
@click.option(
    "--budget-gflops",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Maximum training cost of all members, in GFLOPs.",
)
@click.option(
    "--budget-minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Maximum training time of all members, in minutes.",
)
@set_option
@json_option
@standard_options
@click.pass_obj
def search(
    settings: dict,
    recipe: str,
    ranges: tuple[str, ...],
    search_dir: str | None,
    trials: int | None,
    budget_gflops: float | None,
    budget_minutes: float | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search for new members within a training budget.

    Optuna proposes parameters of RECIPE, and each proposal is trained as one member, until --trials members are trained
    or a budget is spent. One member costs 3 x MFLOPs x images x epochs. To resume an interrupted search, run the same
    command again; to continue a finished one, raise --trials or the budget.
    """
    if trials is None and budget_gflops is None and budget_minutes is None:
        raise click.UsageError("a search requires --trials N, --budget-gflops X or --budget-minutes X.")
    recipe_file = RecipeFile.read(recipe)
    search_space = parse_ranges(recipe_file, list(ranges))
    parameters = recipe_file.resolve(list(overrides))
    recipe_file.require_data_folders(parameters)
    if importlib.util.find_spec("optuna") is None:
        raise RecipeError("`search` requires Optuna. Install it with: pip install 'keras-committee[search]'")
    with reserve_stdout_for_json(as_json):
        with loading_backend():
            from keras_committee.search.driver import search as run_search

        budget = Budget(trials=trials or math.inf, gflops=budget_gflops or math.inf, minutes=budget_minutes or math.inf)
        out = Path(search_dir or f"runs/{recipe_file.name}-search")
        result = run_search(
            recipe_file, parameters, search_space, budget, out, command=settings["command"], report=print_text
        )
    if as_json:
        print_json(result)
        return
    if result["members"]:
        print_search(result["members"])
    count = len(result["runs"])
    failed = len(result["members"]) - count
    print_text(
        f"Trained {count} member{'' if count == 1 else 's'}{f' ({failed} failed)' if failed else ''} for"
        f" {format_cost(result['gflops'], '.4g')} GFLOPs in {result['minutes']:.1f} minutes; the budget of"
        f" {budget} is spent."
    )
    if result["runs"]:
        print_next_steps("select", *result["runs"])
