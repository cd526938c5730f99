"""`keras-committee search`: which members of varied recipes are worth a budget of training?"""

import importlib.util
import math
from pathlib import Path

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, set_option, standard_options
from keras_committee.cli.output import only_json, print_json, say_next
from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.search import Budget, parse_ranges

_RANGE = "width=1:4, learning_rate=0.01:0.3:log or depth=16,22,28; may be given again for other knobs."


@click.command()
@click.argument("recipe", type=click.Path(), shell_complete=options.recipes)
@click.option("--range", "ranges", metavar="KNOB=VALUES", multiple=True, required=True, help=_RANGE)
@click.option("--out", "folder", metavar="DIR", help="The search's folder; runs/RECIPE-search by default.")
@click.option("--total-gflops-images", type=click.FloatRange(0, min_open=True), metavar="X", help="GFLOPs of training.")
@click.option("--budget-minutes", type=click.FloatRange(0, min_open=True), metavar="X", help="Minutes of training.")
@set_option
@json_option
@standard_options
@click.pass_obj
def search(
    settings: dict,
    recipe: str,
    ranges: tuple[str, ...],
    folder: str | None,
    total_gflops_images: float | None,
    budget_minutes: float | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train members of varied recipes until a budget is spent.

    Optuna proposes the knobs of RECIPE. The same command again goes on where it was. Training costs 3 x MFLOPs x images
    x epochs.
    """
    if total_gflops_images is None and budget_minutes is None:
        raise click.UsageError("A search needs a budget: --total-gflops-images X or --budget-minutes N.")
    recipe_file = RecipeFile.read(recipe)
    parsed = parse_ranges(recipe_file, list(ranges))
    knobs = recipe_file.resolve(list(overrides))
    if importlib.util.find_spec("optuna") is None:
        raise RecipeError("search needs Optuna, which is not installed: pip install 'keras-committee[search]'.")
    with only_json(as_json):
        from keras_committee.search.driver import search as run_search

        budget = Budget(gflops_images=total_gflops_images or math.inf, minutes=budget_minutes or math.inf)
        out = Path(folder or f"runs/{recipe_file.name}-search")
        result = run_search(recipe_file, knobs, parsed, budget, out, command=settings["command"], tell=click.echo)
    if as_json:
        print_json(result)
        return
    spent = f"{result['gflops_images']:.4g} GFLOPs and {result['minutes']:.1f} minutes of training"
    click.echo(f"{len(result['runs'])} members for {spent}; the budget of {budget} is spent.")
    if result["runs"]:
        say_next("select", *result["runs"])
