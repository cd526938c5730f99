"""`keras-committee report`: write an HTML report on one or more runs."""

import click

from keras_committee import api
from keras_committee.cli.options import (
    HomePath,
    allow_duplicate_weights_option,
    json_option,
    min_members_option,
    moved_data_option,
    runs_argument,
    split_option,
    standard_options,
)
from keras_committee.cli.output import forwarded_options, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.tables import print_blocks


@click.command()
@runs_argument
@moved_data_option
@click.option(
    "--out",
    type=HomePath(),
    metavar="DIR",
    help="Write the report to DIR.",
    show_default="RUN/report, or report/ beside several runs",
)
@click.option(
    "--selection",
    "selections",
    multiple=True,
    type=HomePath(),
    metavar="FILE",
    help="Selection file written by `select`. May be repeated.",
)
@click.option("--model-card", is_flag=True, help="Also write README.md, a model card for the Hugging Face hub.")
@split_option
@min_members_option
@allow_duplicate_weights_option
@json_option
@standard_options
def report(
    runs: tuple[str, ...], overrides: tuple[str, ...], out: str | None, selections: tuple[str, ...],
    model_card: bool, split: str | None, min_members: int | None,
    allow_duplicate_weights: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write an HTML report on one or more runs.

    The report shows accuracy against cost, calibration, diversity, mistakes and training curves of RUNs. Missing
    predictions and evaluations are computed first. The page is self-contained; its figures are also written as PNG
    files and as TensorBoard images.
    """
    with reserve_stdout_for_json(as_json):
        result = api.report(
            runs,
            out=out,
            selection=selections,
            model_card=model_card,
            split=split,
            allow_incomplete=min_members,
            allow_duplicate_weights=allow_duplicate_weights,
            moved_data=overrides,
        )
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    options = forwarded_options(min_members, allow_duplicate_weights)
    next_step = (
        ["export", runs[0], "--selection", selections[0]] if selections else ["select", *result["runs"], *options]
    )
    print_next_steps(*next_step)
