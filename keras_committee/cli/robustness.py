"""`keras-committee robustness`: what is left of a committee on corrupted and on foreign images?"""

from pathlib import Path
from typing import Any

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, min_members_option, standard_options
from keras_committee.cli.output import forwarded_options, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.run import Run
from keras_committee.tables import print_table

# Those of data.corruptions.KINDS, which takes TensorFlow to import.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "defocus_blur", "glass_blur",
    "motion_blur", "zoom_blur", "snow", "fog", "brightness", "contrast", "saturate", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip


class _CommaSeparated(click.ParamType):
    """Several values between commas, each one of `choices`."""

    name = "several"

    def __init__(self, choices: tuple[str, ...]):
        self._choice = click.Choice(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._choice.convert(part.strip(), param, ctx) for part in value.split(",")))


@click.command()
@click.argument("run", type=click.Path(), shell_complete=options.complete_runs)
@click.option(
    "--corruptions",
    type=_CommaSeparated(CORRUPTIONS),
    metavar="KIND,...",
    help=f"All by default: {', '.join(CORRUPTIONS)}.",
)
@click.option(
    "--severities",
    type=_CommaSeparated(tuple("12345")),
    default="1,2,3,4,5",
    show_default=True,
    metavar="N,...",
    help="From 1, slight, to 5.",
)
@click.option(
    "--max-examples",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Of the test split at most.",
)
@click.option("--ood-dir", type=click.Path(path_type=Path), metavar="DIR", help="Images of anything else.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of noise and generated images."
)
@min_members_option
@json_option
@standard_options
def robustness(
    run: str,
    corruptions: tuple[str, ...] | None,
    severities: tuple[str, ...],
    max_examples: int,
    ood_dir: Path | None,
    seed: int,
    min_members: int | None,
    as_json: bool,
) -> None:
    """Measure RUN on corrupted images and on foreign ones.

    The former are those of its test split, spoilt as by Hendrycks & Dietterich (2019); the latter are noise, textures
    and the images of --ood-dir, which it should notice.
    """
    opened = Run.open(run)
    with opened.lock(), reserve_stdout_for_json(as_json):
        built = opened.recipe()
        from keras_committee import evaluation

        result = evaluation.robustness(
            opened,
            built,
            corruptions=corruptions or CORRUPTIONS,
            severities=[int(severity) for severity in severities],
            max_examples=max_examples,
            ood_dir=ood_dir,
            seed=seed,
            min_members=min_members,
        )
    if as_json:
        print_json(result)
        return
    _print_result(result)
    click.echo(f"{result['examples']} examples of test. All of it: {Path(run, 'robustness.json')}")
    print_next_steps("report", run, *forwarded_options(min_members))


def _print_result(result: dict[str, Any]) -> None:
    severities = sorted({row["severity"] for row in result["corruptions"]})
    columns = ["accuracy, committee (mean member)", *(f"severity {severity}" for severity in severities)]
    rows = [["as they are", _format_accuracy(result["clean"])]]
    for kind in dict.fromkeys(row["kind"] for row in result["corruptions"]):
        rows.append([kind, *(_format_accuracy(row) for row in result["corruptions"] if row["kind"] == kind)])
    rows.append(["mean of all corruptions", _format_accuracy(result["mean"])])
    print_table(columns, [row + [""] * (len(columns) - len(row)) for row in rows])
    measures = ("confidence", "mutual_information")
    cells = [
        [source_scores["source"], str(source_scores["examples"])]
        + [f"{source_scores[measure][score]:.3f}" for measure in measures for score in ("auroc", "fpr95")]
        for source_scores in result["foreign"]
    ]
    score_columns = [
        f"{score} by {measure}" for measure in ("confidence", "mutual information") for score in ("AUROC", "FPR95")
    ]
    print_table(["foreign images", "examples", *score_columns], cells)


def _format_accuracy(scores: dict[str, Any]) -> str:
    members = [member["accuracy"] for member in scores["members"]]
    return f"{scores['committee']['accuracy']:.1%} ({sum(members) / len(members):.1%})"
