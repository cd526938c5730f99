"""`keras-committee report`: which committee is worth its cost, on one page?"""

import contextlib
import os
from pathlib import Path

import click

from keras_committee.cli import options
from keras_committee.cli.options import (
    allow_duplicate_weights_option,
    json_option,
    min_members_option,
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
from keras_committee.run import Run


@click.command()
@click.argument(
    "runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(), shell_complete=options.complete_runs
)
@click.option("--out", type=click.Path(), metavar="DIR", help="Folder of the report; RUN/report of a single run.")
@click.option(
    "--selection",
    "selections",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="What `select` wrote; may be given repeatedly.",
)
@split_option
@min_members_option
@allow_duplicate_weights_option
@json_option
@standard_options
def report(
    runs: tuple[str, ...], out: str | None, selections: tuple[str, ...], split: str, min_members: int | None,
    allow_duplicate_weights: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write one page on RUNs: what accuracy costs, and why.

    It shows accuracy against cost, calibration, diversity, mistakes and the course of training. What is missing of
    votes and evaluations is computed first. The page needs nothing but itself; the same pictures lie beside it as PNG
    files, and in its folder `tensorboard`.
    """
    opened = [Run.open(run) for run in dict.fromkeys(runs)]
    folder = Path(out) if out else _default_folder(opened)
    with contextlib.ExitStack() as locks, reserve_stdout_for_json(as_json):
        for run in opened:
            locks.enter_context(run.lock())
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
                "pictures": [str(picture) for picture in written.pictures],
                "tensorboard": str(written.tensorboard),
                "sentences": written.sentences,
            }
        )
        return
    print_message(f"{written.sentences['cost']}\n\nReport: {written.page}")
    print_next_steps(*_next_command(opened, selections, forwarded_options(min_members, allow_duplicate_weights)))


def _default_folder(runs: list[Run]) -> Path:
    """That of the one run, or beside several."""
    if len(runs) == 1:
        return runs[0].path / "report"
    return Path(os.path.commonpath([run.path.absolute().parent for run in runs])) / "report"


def _next_command(runs: list[Run], selections: tuple[str, ...], options: list[str]) -> list[str]:
    paths = [str(run.path) for run in runs]
    return ["export", paths[0], "--selection", selections[0]] if selections else ["select", *paths, *options]
