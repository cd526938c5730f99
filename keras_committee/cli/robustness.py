"""`keras-committee robustness`: evaluate a run on corrupted and out-of-distribution images."""

from pathlib import Path
from typing import Any

import click

from keras_committee import api
from keras_committee.choices import CORRUPTIONS, SEVERITIES
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


class _CommaSeparated(click.ParamType):
    """Several of `choices`, separated by commas."""

    name = "comma-separated"

    def __init__(self, choices: tuple[str, ...]):
        self._choice = click.Choice(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._choice.convert(part.strip(), param, ctx) for part in value.split(",")))


@click.command()
@run_argument
@moved_data_option
@click.option(
    "--corruptions",
    type=_CommaSeparated(CORRUPTIONS),
    metavar="NAME,...",
    help=f"Corruptions to apply: {', '.join(CORRUPTIONS)}.",
    show_default="all",
)
@click.option(
    "--severities",
    type=_CommaSeparated(tuple(map(str, SEVERITIES))),
    default=",".join(map(str, SEVERITIES)),
    show_default=True,
    metavar="N,...",
    help="Severities of the corruptions, from 1 (mild) to 5 (severe).",
)
@click.option(
    "--max-examples",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Maximum number of test examples.",
)
@click.option("--ood-dir", type=HomePath(path_type=Path), metavar="DIR", help="Folder of out-of-distribution images.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the corruptions and of generated images.",
)
@min_members_option
@json_option
@standard_options
def robustness(
    run: str,
    overrides: tuple[str, ...],
    corruptions: tuple[str, ...] | None,
    severities: tuple[str, ...],
    max_examples: int,
    ood_dir: Path | None,
    seed: int,
    min_members: int | None,
    as_json: bool,
) -> None:
    """Evaluate a run on corrupted and OOD images.

    The test split of RUN is corrupted following ImageNet-C (Hendrycks & Dietterich, 2019). Out-of-distribution (OOD)
    images are generated noise and textures, and those of --ood-dir; the AUROC measures how well the committee's
    confidence separates them from test images. The result is written to RUN/robustness.json.
    """
    with reserve_stdout_for_json(as_json):
        result = api.Run(run).robustness(
            corruptions=corruptions or CORRUPTIONS,
            severities=[int(severity) for severity in severities],
            max_examples=max_examples,
            ood_dir=ood_dir,
            seed=seed,
            allow_incomplete=min_members,
            moved_data=overrides,
        )
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    print_text(f"Evaluated on {result['examples']:,} test examples. Details: {Path(run, 'robustness.json')}")
    print_next_steps("report", run, *forwarded_options(min_members))
