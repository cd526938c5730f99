"""`keras-committee report`: write an HTML report on one or more runs."""

import os
from pathlib import Path

import click

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
from keras_committee.cli.output import (
    forwarded_options,
    print_json,
    print_message,
    print_next_steps,
    reserve_stdout_for_json,
)
from keras_committee.keras_config import loading_backend
from keras_committee.run import Run, lock_runs
from keras_committee.tables import print_text


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
@split_option
@min_members_option
@allow_duplicate_weights_option
@json_option
@standard_options
def report(
    runs: tuple[str, ...], overrides: tuple[str, ...], out: str | None, selections: tuple[str, ...],
    split: str | None, min_members: int | None,
    allow_duplicate_weights: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write an HTML report on one or more runs.

    The report shows accuracy against cost, calibration, diversity, mistakes and training curves of RUNs. Missing
    predictions and evaluations are computed first. The page is self-contained; its figures are also written as PNG
    files and as TensorBoard images.
    """
    with reserve_stdout_for_json(as_json), lock_runs(list(dict.fromkeys(runs)), overrides) as opened:
        folder = Path(out) if out else _default_folder(opened)
        for run in opened:
            run.require_members(min_members)
        with loading_backend():
            from keras_committee.evaluation.report import write_report

        files = [Path(selection) for selection in selections]
        written = write_report(
            opened, folder, files, split=split, min_members=min_members, allow_duplicate_weights=allow_duplicate_weights
        )
    if as_json:
        print_json(
            {
                "report": str(written.page),
                "runs": [str(run.path) for run in opened],
                "figures": [str(figure) for figure in written.pictures],
                "tensorboard": str(written.tensorboard),
                "sentences": written.sentences,
            }
        )
        return
    print_text(f"{written.sentences['cost']}\n")
    print_message(f"Report: {written.page}")
    print_next_steps(*_next_command(opened, selections, forwarded_options(min_members, allow_duplicate_weights)))


def _default_folder(runs: list[Run]) -> Path:
    """Return RUN/report for one run, and `report` in the common parent folder for several."""
    if len(runs) == 1:
        return runs[0].path / "report"
    return Path(os.path.commonpath([run.path.absolute().parent for run in runs])) / "report"


def _next_command(runs: list[Run], selections: tuple[str, ...], options: list[str]) -> list[str]:
    paths = [str(run.path) for run in runs]
    return ["export", paths[0], "--selection", selections[0]] if selections else ["select", *paths, *options]
