"""`keras-committee search`: which members of varied recipes are worth a budget of training?"""

import importlib.util
import math
from pathlib import Path

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, set_option, standard_options
from keras_committee.cli.output import print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.search import Budget, parse_ranges

_RANGE_HELP = "width=1:4, learning_rate=0.01:0.3:log or depth=16,22,28; may be given again for other knobs."


@click.command()
@click.argument("recipe", type=click.Path(), shell_complete=options.complete_recipes)
@click.option("--search-space", "ranges", metavar="KNOB=VALUES", multiple=True, required=True, help=_RANGE_HELP)
@click.option("--out", "search_dir", metavar="DIR", help="The search's folder; runs/RECIPE-search by default.")
@click.option("--budget-gflops", type=click.FloatRange(0, min_open=True), metavar="X", help="GFLOPs of training.")
@click.option("--budget-minutes", type=click.FloatRange(0, min_open=True), metavar="X", help="Minutes of training.")
@set_option
@json_option
@standard_options
@click.pass_obj
def search(
    settings: dict,
    recipe: str,
    ranges: tuple[str, ...],
    search_dir: str | None,
    budget_gflops: float | None,
    budget_minutes: float | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train members of varied recipes until a budget is spent.

    Optuna proposes the knobs of RECIPE. The same command again goes on where it was. Training costs 3 x MFLOPs x images
    x epochs.
    """
    if budget_gflops is None and budget_minutes is None:
        raise click.UsageError("A search needs a budget: --budget-gflops X or --budget-minutes N.")
    recipe_file = RecipeFile.read(recipe)
    search_space = parse_ranges(recipe_file, list(ranges))
    parameters = recipe_file.resolve(list(overrides))
    if importlib.util.find_spec("optuna") is None:
        raise RecipeError("search needs Optuna, which is not installed: pip install 'keras-committee[search]'.")
    with reserve_stdout_for_json(as_json):
        from keras_committee.search.driver import search as run_search

        budget = Budget(gflops=budget_gflops or math.inf, minutes=budget_minutes or math.inf)
        out = Path(search_dir or f"runs/{recipe_file.name}-search")
        result = run_search(
            recipe_file, parameters, search_space, budget, out, command=settings["command"], report=click.echo
        )
    if as_json:
        print_json(result)
        return
    spent = f"{result['gflops_images']:.4g} GFLOPs and {result['minutes']:.1f} minutes of training"
    click.echo(f"{len(result['runs'])} members for {spent}; the budget of {budget} is spent.")
    if result["runs"]:
        print_next_steps("select", *result["runs"])
