"""`keras-committee evaluate`: score the members of a run and its committees of every size."""

from pathlib import Path

import click

from keras_committee import api
from keras_committee.cli.options import (
    allow_duplicate_weights_option,
    json_option,
    min_members_option,
    moved_data_option,
    run_argument,
    split_option,
    standard_options,
)
from keras_committee.cli.output import forwarded_options, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.tables import print_blocks, print_text


@click.command()
@run_argument
@moved_data_option
@split_option
@min_members_option
@allow_duplicate_weights_option
@click.option("--label-errors", is_flag=True, help="List the images whose label is probably wrong.")
@click.option("--measure-latency", is_flag=True, help="Measure the latency of each member on 1 and 32 images.")
@json_option
@standard_options
def evaluate(
    run: str,
    overrides: tuple[str, ...],
    split: str | None,
    min_members: int | None,
    allow_duplicate_weights: bool,
    label_errors: bool,
    measure_latency: bool,
    as_json: bool,
) -> None:
    """Evaluate the members and committees of a run.

    Scores every member of RUN and its committees of every size. The result is written to RUN/evaluation.json.
    """
    with reserve_stdout_for_json(as_json):
        result = api.Run(run).evaluate(
            split=split,
            allow_incomplete=min_members,
            allow_duplicate_weights=allow_duplicate_weights,
            label_errors=label_errors,
            measure_latency=measure_latency,
            moved_data=overrides,
        )
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    misclassified = result["misclassified"]
    file = Path(run, "evaluation.json")
    print_text(f"Misclassified images, {misclassified['images']:,}: {Path(run, misclassified['file'])}")
    if found := result.get("label_errors"):
        note = "" if found["out_of_sample"] else ", of which few are found, as the members were trained on these images"
        print_text(f"Images with a suspicious label, {found['images']:,}: {Path(run, found['file'])}{note}")
    print_text(f"Evaluated on {result['examples']:,} {result['split']} examples. Details: {file}")
    next_command = "select" if len(result["members"]) > 1 else "report"  # one member leaves nothing to select
    print_next_steps(next_command, run, *forwarded_options(min_members, allow_duplicate_weights))
