"""`keras-committee robustness`: what is left of a committee on corrupted and on foreign images?"""

from pathlib import Path
from typing import Any

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, min_members_option, standard_options
from keras_committee.cli.output import carried, only_json, print_json, say_next
from keras_committee.run import Run
from keras_committee.tables import print_table

# Those of data.corruptions.KINDS, which takes TensorFlow to import.
KINDS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "defocus_blur", "glass_blur",
    "motion_blur", "zoom_blur", "snow", "fog", "brightness", "contrast", "saturate", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip


class _Several(click.ParamType):
    """Several values between commas, each one of `choices`."""

    name = "several"

    def __init__(self, choices: tuple[str, ...]):
        self._choice = click.Choice(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._choice.convert(part.strip(), param, ctx) for part in value.split(",")))


@click.command()
@click.argument("run", type=click.Path(), shell_complete=options.runs)
@click.option("--kinds", type=_Several(KINDS), metavar="KIND,...", help=f"All by default: {', '.join(KINDS)}.")
@click.option(
    "--severities",
    type=_Several(tuple("12345")),
    default="1,2,3,4,5",
    show_default=True,
    metavar="N,...",
    help="From 1, slight, to 5.",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Of the test split at most.",
)
@click.option("--foreign", type=click.Path(path_type=Path), metavar="DIR", help="Images of anything else.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of noise and generated images."
)
@min_members_option
@json_option
@standard_options
def robustness(
    run: str,
    kinds: tuple[str, ...] | None,
    severities: tuple[str, ...],
    examples: int,
    foreign: Path | None,
    seed: int,
    min_members: int | None,
    as_json: bool,
) -> None:
    """Measure RUN on corrupted images and on foreign ones.

    The former are those of its test split, spoilt as by Hendrycks & Dietterich (2019); the latter are noise, textures
    and the images of --foreign, which it should notice.
    """
    opened = Run.open(run)
    with opened.lock(), only_json(as_json):
        built = opened.recipe()
        from keras_committee import evaluation

        result = evaluation.robustness(
            opened,
            built,
            kinds=kinds or KINDS,
            severities=[int(severity) for severity in severities],
            examples=examples,
            folder=foreign,
            seed=seed,
            min_members=min_members,
        )
    if as_json:
        print_json(result)
        return
    _print(result)
    click.echo(f"{result['examples']} examples of test. All of it: {Path(run, 'robustness.json')}")
    say_next("report", run, *carried(min_members))


def _print(result: dict[str, Any]) -> None:
    severities = sorted({row["severity"] for row in result["corruptions"]})
    columns = ["accuracy, committee (mean member)", *(f"severity {severity}" for severity in severities)]
    rows = [["as they are", _accuracy(result["clean"])]]
    for kind in dict.fromkeys(row["kind"] for row in result["corruptions"]):
        rows.append([kind, *(_accuracy(row) for row in result["corruptions"] if row["kind"] == kind)])
    rows.append(["mean of all corruptions", _accuracy(result["mean"])])
    print_table(columns, [row + [""] * (len(columns) - len(row)) for row in rows])
    measures = ("confidence", "mutual_information")
    cells = [
        [each["source"], str(each["examples"])]
        + [f"{each[measure][score]:.3f}" for measure in measures for score in ("auroc", "fpr95")]
        for each in result["foreign"]
    ]
    by = [f"{score} by {measure}" for measure in ("confidence", "mutual information") for score in ("AUROC", "FPR95")]
    print_table(["foreign images", "examples", *by], cells)


def _accuracy(scores: dict[str, Any]) -> str:
    members = [member["accuracy"] for member in scores["members"]]
    return f"{scores['committee']['accuracy']:.1%} ({sum(members) / len(members):.1%})"
