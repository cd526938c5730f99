"""`keras-committee calibrate`: fit temperatures and member weights."""

from pathlib import Path
from typing import Any

import click

from keras_committee.cli.options import (
    json_option,
    min_members_option,
    moved_data_option,
    run_argument,
    standard_options,
)
from keras_committee.cli.output import forwarded_options, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.keras_config import loading_backend
from keras_committee.run import lock_runs
from keras_committee.tables import format_accuracy, print_table, print_text


@click.command()
@run_argument
@moved_data_option
@min_members_option
@json_option
@standard_options
def calibrate(run: str, overrides: tuple[str, ...], min_members: int | None, as_json: bool) -> None:
    """Fit temperatures and member weights on validation data.

    Both are fitted on the validation split of RUN, for each member and for the committee, and evaluated on its test
    split. The result is written to RUN/calibration.json.
    """
    with reserve_stdout_for_json(as_json), lock_runs([run], overrides) as (opened,):
        opened.require_members(min_members)
        with loading_backend():
            from keras_committee import evaluation

        recipe = opened.recipe()
        result = evaluation.calibrate(opened, recipe, min_members=min_members)
    if as_json:
        print_json(result)
        return
    _print_result(result)
    print_text(
        f"Fitted on {result['fitted_on']['examples']:,} validation examples, evaluated on"
        f" {result['measured_on']['examples']:,} test examples. Details: {Path(run, 'calibration.json')}"
    )
    print_next_steps("report", run, *forwarded_options(min_members))


def _print_result(result: dict[str, Any]) -> None:
    committee = result["committee"]
    after_labels = {
        "member_temperatures": "one per member",
        "temperature": f"{committee['temperature']:.3f}",
        "weights": "1, weighted",
    }
    rows = []
    for member in result["members"]:
        rows.append([f"member {member['index']}", "1", *_score_cells(member["before"])])
        rows.append(["", f"{member['temperature']:.3f}", *_score_cells(member["after"])])
    rows.append(["committee", "1", *_score_cells(committee["before"])])
    rows += [["", after_labels[name], *_score_cells(after)] for name, after in committee["after"].items()]
    weights = " ".join(f"{weight:.3f}" for weight in committee["weights"])
    note = f"Accuracy with its 95 % interval over the images. Head: {result['head'].replace('_', ' ')}. "
    print_table(["", "temperature", "accuracy", "NLL", "ECE"], rows, f"{note}Fitted weights: {weights}. ")
    for warning in result["notes"]:
        print_text(f"{warning}\n")


def _score_cells(scores: dict[str, Any]) -> list[str]:
    accuracy = format_accuracy(scores["accuracy"], scores["accuracy_interval"])
    return [accuracy, f"{scores['nll']:.4f}", f"{scores['ece']:.4f}"]
