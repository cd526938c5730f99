"""`keras-committee calibrate`: fit temperatures and member weights, and promise a coverage or an error rate."""

from pathlib import Path

import click

from keras_committee import api
from keras_committee.choices import SET_METHODS
from keras_committee.cli.options import (
    HomePath,
    json_option,
    min_members_option,
    moved_data_option,
    run_argument,
    standard_options,
)
from keras_committee.cli.output import forwarded_options, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.tables import print_blocks, print_text


@click.command()
@run_argument
@moved_data_option
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="Promise that prediction sets hold the true class with at least this probability.",
)
@click.option(
    "--method",
    type=click.Choice(SET_METHODS),
    default=None,
    show_default="lac",
    help="Prediction sets: lac, the smallest; aps, never empty; raps, aps with fewer large sets.",
)
@click.option("--per-class", is_flag=True, help="Promise the coverage for the images of each class.")
@click.option(
    "--max-risk",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="Promise that accepted answers have at most this error rate, with a certainty of 95 %.",
)
@click.option(
    "--selection",
    type=HomePath(),
    metavar="FILE",
    help="Committee or cascade of the promise, which is added to FILE.",
    show_default="selection.json in RUN, or else all members",
)
@min_members_option
@json_option
@standard_options
def calibrate(
    run: str,
    overrides: tuple[str, ...],
    coverage: float | None,
    method: str | None,
    per_class: bool,
    max_risk: float | None,
    selection: str | None,
    min_members: int | None,
    as_json: bool,
) -> None:
    """Fit temperatures and member weights on validation data.

    Both are fitted on the validation split of RUN, for each member and for the committee, and evaluated on its test
    split. The result is written to RUN/calibration.json.

    With --coverage or --max-risk the validation split is divided from then on: one half to choose with, and one half to
    make promises on. The rules of the promise are added to the selection file.
    """
    with reserve_stdout_for_json(as_json):
        result = api.Run(run).calibrate(
            coverage=coverage,
            method=method,
            per_class=per_class,
            max_risk=max_risk,
            selection=selection,
            allow_incomplete=min_members,
            moved_data=overrides,
        )
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    print_text(
        f"Fitted on {result['fitted_on']['examples']:,} validation examples, evaluated on"
        f" {result['measured_on']['examples']:,} test examples. Details: {result.path}"
    )
    if result["promise"] is not None:
        print_next_steps("export", run, "--selection", selection or str(Path(run, "selection.json")))
    else:
        print_next_steps("report", run, *forwarded_options(min_members))
