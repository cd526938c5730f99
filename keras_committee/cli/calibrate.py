"""`keras-committee calibrate`: fit temperatures and member weights."""

from pathlib import Path
from typing import Any

import click

from keras_committee.cli.options import json_option, min_members_option, run_argument, standard_options
from keras_committee.cli.output import forwarded_options, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.run import Run
from keras_committee.tables import print_table

_SCORES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "adaptive_ece": "adaptive ECE", "brier": "Brier"}


@click.command()
@run_argument
@min_members_option
@json_option
@standard_options
def calibrate(run: str, min_members: int | None, as_json: bool) -> None:
    """Fit temperatures and member weights on validation data.

    Both are fitted on the validation split of RUN, for each member and for the committee, and evaluated on its test
    split. The result is written to RUN/calibration.json.
    """
    opened = Run.open(run)
    with opened.lock(), reserve_stdout_for_json(as_json):
        recipe = opened.recipe()
        from keras_committee import evaluation

        result = evaluation.calibrate(opened, recipe, min_members=min_members)
    if as_json:
        print_json(result)
        return
    _print_result(result)
    click.echo(
        f"Fitted on {result['fitted_on']['examples']:,} validation examples, evaluated on"
        f" {result['measured_on']['examples']:,} test examples. Details: {Path(run, 'calibration.json')}"
    )
    print_next_steps("report", run, *forwarded_options(min_members))


def _print_result(result: dict[str, Any]) -> None:
    committee = result["committee"]
    weights = " ".join(f"{weight:.3f}" for weight in committee["weights"])
    temperatures = {
        "member_temperatures": "one per member",
        "temperature": f"{committee['temperature']:.3f}",
        "weights": "1",
    }
    rows = []
    for member in result["members"]:
        rows.append([f"member {member['index']}", "1", *_score_cells(member["before"])])
        rows.append(["", f"{member['temperature']:.3f}", *_score_cells(member["after"])])
    rows.append([f"committee, {result['head']}", "1", *_score_cells(committee["before"])])
    for name, after in committee["after"].items():
        label = f"weights {weights}" if name == "weights" else ""
        rows.append([label, temperatures[name], *_score_cells(after)])
    print_table(["", "temperature", *_SCORES.values()], rows)


def _score_cells(scores: dict[str, float]) -> list[str]:
    return [f"{scores[name]:.4f}" for name in _SCORES]
