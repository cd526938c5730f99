"""`keras-committee search`: search for new members within a training budget."""

import click

from keras_committee import api
from keras_committee.cli.options import HomePath, json_option, recipe_argument, set_option, standard_options
from keras_committee.cli.output import print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.tables import print_blocks


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
    with reserve_stdout_for_json(as_json):
        result = api.search(
            recipe,
            ranges,
            trials=trials,
            budget_gflops=budget_gflops,
            budget_minutes=budget_minutes,
            out=search_dir,
            parameters=overrides,
            command=settings["command"],
        )
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    if result["runs"]:
        print_next_steps("select", *result["runs"])
