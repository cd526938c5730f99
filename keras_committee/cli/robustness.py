"""`keras-committee robustness`: evaluate a run on corrupted and out-of-distribution images."""

from pathlib import Path
from statistics import fmean
from typing import Any

import click

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
from keras_committee.image_header import find_image_files
from keras_committee.keras_config import loading_backend
from keras_committee.run import lock_runs
from keras_committee.tables import print_table, print_text

_OOD_SCORES = ("auroc", "fpr95")


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
    with reserve_stdout_for_json(as_json), lock_runs([run], overrides) as (opened,):
        opened.require_members(min_members)
        if ood_dir is not None:
            find_image_files(ood_dir)
        with loading_backend():
            from keras_committee import evaluation

        recipe = opened.recipe()
        result = evaluation.robustness(
            opened,
            recipe,
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
    print_text(f"Evaluated on {result['examples']:,} test examples. Details: {Path(run, 'robustness.json')}")
    print_next_steps("report", run, *forwarded_options(min_members))


def _print_result(result: dict[str, Any]) -> None:
    corruptions = result["corruptions"]
    severities = sorted({row["severity"] for row in corruptions})
    rows = [["none", *[""] * len(severities), *_accuracy_cells([result["clean"]])]]
    for kind in dict.fromkeys(row["kind"] for row in corruptions):
        rows.append(_corruption_cells(kind, [row for row in corruptions if row["kind"] == kind], severities))
    rows.append(_corruption_cells("mean", corruptions, severities))
    note = "Accuracy of the committee by severity, and on average over the severities, in %. "
    print_table(["corruption", *map(str, severities), "mean", "mean member"], rows, note)
    ood_rows = [
        [scores["source"], str(scores["examples"])]
        + [f"{scores[measure][score]:.3f}" for measure in ("confidence", "mutual_information") for score in _OOD_SCORES]
        for scores in result["foreign"]
    ]
    if ood_rows:
        columns = [f"{score.upper()} {measure}" for measure in ("confidence", "MI") for score in _OOD_SCORES]
        note = "Detection of OOD images by the confidence of the committee and by mutual information (MI). "
        print_table(["OOD images", "examples", *columns], ood_rows, note)


def _corruption_cells(name: str, rows: list[dict[str, Any]], severities: list[int]) -> list[str]:
    """Return the name, the accuracy of the committee by severity, and the means of committee and members."""
    by_severity = [[row for row in rows if row["severity"] == severity] for severity in severities]
    return [name, *(_accuracy_cells(group)[0] for group in by_severity), *_accuracy_cells(rows)]


def _accuracy_cells(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the mean accuracy of the committee and that of its members, in %; blanks without rows."""
    if not rows:
        return "", ""
    committee = fmean(row["committee"]["accuracy"] for row in rows)
    member = fmean(member["accuracy"] for row in rows for member in row["members"])
    return f"{100 * committee:.1f}", f"{100 * member:.1f}"
