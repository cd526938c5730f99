"""`keras-committee describe`: print the parameters, cost and memory of a recipe."""

import click

from keras_committee import api
from keras_committee.cli.options import json_option, recipe_argument, set_option, standard_options
from keras_committee.cli.output import print_json, reserve_stdout_for_json
from keras_committee.tables import print_blocks


@click.command()
@recipe_argument
@set_option
@click.option("--measure", is_flag=True, help="Measure the training speed of this machine, too; it loads the data.")
@json_option
@standard_options
def describe(recipe: str, overrides: tuple[str, ...], measure: bool, as_json: bool) -> None:
    """Print the parameters, cost and memory of a recipe.

    For each member of RECIPE: weights, MFLOPs, expected depth and savings under stochastic depth, and estimated memory.
    """
    with reserve_stdout_for_json(as_json):
        result = api.describe(recipe, parameters=overrides, measure=measure)
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
