"""`keras-committee evaluate`: how good are the members of a run, and its committees?"""

from pathlib import Path

import click

from keras_committee.cli import options
from keras_committee.cli.options import (
    allow_twins_option,
    json_option,
    min_members_option,
    split_option,
    standard_options,
)
from keras_committee.cli.output import carried, only_json, print_json, say_next
from keras_committee.run import Run
from keras_committee.tables import print_evaluation


@click.command()
@click.argument("run", type=click.Path(), shell_complete=options.runs)
@split_option
@min_members_option
@allow_twins_option
@click.option("--latency", "timed", is_flag=True, help="Measure how long each member takes, for 1 and 32 images.")
@json_option
@standard_options
def evaluate(run: str, split: str, min_members: int | None, allow_twins: bool, timed: bool, as_json: bool) -> None:
    """Measure the members of RUN, and its committees of every size."""
    opened = Run.open(run)
    with opened.lock(), only_json(as_json):
        built = opened.recipe()
        from keras_committee import evaluation

        result = evaluation.evaluate(
            opened, built, split=split, min_members=min_members, allow_twins=allow_twins, timed=timed
        )
    if as_json:
        print_json(result)
        return
    print_evaluation(result)
    click.echo(f"{result['examples']} examples of {split}. All of it: {Path(run, 'evaluation.json')}")
    following = "select" if len(result["members"]) > 1 else "report"  # of one member there is nothing to choose
    say_next(following, run, *carried(min_members, allow_twins))
