"""`keras-committee calibrate`: fit temperatures and member weights, and promise a coverage or an error rate."""

from pathlib import Path
from typing import Any

import click

from keras_committee.choices import SET_METHODS
from keras_committee.cli.options import (
    HomePath,
    json_option,
    min_members_option,
    moved_data_option,
    run_argument,
    standard_options,
)
from keras_committee.cli.output import forwarded_options, print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.errors import pluralize
from keras_committee.keras_config import loading_backend
from keras_committee.run import lock_runs
from keras_committee.selection import Selection
from keras_committee.tables import format_accuracy, print_table, print_text


@click.command()
@run_argument
@moved_data_option
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="Promise that prediction sets hold the true class with at least this probability.",
)
@click.option(
    "--method",
    type=click.Choice(SET_METHODS),
    default=None,
    show_default="lac",
    help="Prediction sets: lac, the smallest; aps, never empty; raps, aps with fewer large sets.",
)
@click.option("--per-class", is_flag=True, help="Promise the coverage for the images of each class.")
@click.option(
    "--max-risk",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="Promise that accepted answers have at most this error rate, with a certainty of 95 %.",
)
@click.option(
    "--selection",
    type=HomePath(),
    metavar="FILE",
    help="Committee or cascade of the promise, which is added to FILE.",
    show_default="selection.json in RUN, or else all members",
)
@min_members_option
@json_option
@standard_options
def calibrate(
    run: str,
    overrides: tuple[str, ...],
    coverage: float | None,
    method: str | None,
    per_class: bool,
    max_risk: float | None,
    selection: str | None,
    min_members: int | None,
    as_json: bool,
) -> None:
    """Fit temperatures and member weights on validation data.

    Both are fitted on the validation split of RUN, for each member and for the committee, and evaluated on its test
    split. The result is written to RUN/calibration.json.

    With --coverage or --max-risk the validation split is divided from then on: one half to choose with, and one half to
    make promises on. The rules of the promise are added to the selection file.
    """
    is_promise = coverage is not None or max_risk is not None
    _check_options(coverage, method, per_class, selection, is_promise)
    default_file = Path(run, "selection.json")
    file = Path(selection) if selection else default_file
    chosen = Selection.read(file) if is_promise and (selection or default_file.exists()) else None
    with reserve_stdout_for_json(as_json), lock_runs(_runs_of(run, chosen, file), overrides) as (opened, *others):
        opened.require_members(min_members)
        with loading_backend():
            from keras_committee import evaluation

        recipe, promise = opened.recipe(), None
        if is_promise:
            goal = evaluation.PromiseGoal(
                coverage=coverage, method=method or "lac", per_class=per_class, max_risk=max_risk
            )
            chosen, promise = evaluation.make_promise([opened, *others], goal, file, chosen, min_members=min_members)
        result = evaluation.calibrate(opened, recipe, min_members=min_members, promise=promise)
    if as_json:
        print_json(result)
        return
    _print_result(result)
    if chosen is not None and promise is not None:
        _print_promise(chosen, promise, file)
    print_text(
        f"Fitted on {result['fitted_on']['examples']:,} validation examples, evaluated on"
        f" {result['measured_on']['examples']:,} test examples. Details: {Path(run, 'calibration.json')}"
    )
    if promise is not None:
        print_next_steps("export", run, "--selection", str(file))
    else:
        print_next_steps("report", run, *forwarded_options(min_members))


def _check_options(
    coverage: float | None, method: str | None, per_class: bool, selection: str | None, is_promise: bool
) -> None:
    conflicts = {
        "--method requires --coverage": method is not None and coverage is None,
        "--per-class requires --coverage": per_class and coverage is None,
        "--selection requires --coverage or --max-risk": selection is not None and not is_promise,
    }
    for message, conflict in conflicts.items():
        if conflict:
            raise click.UsageError(f"{message}.")


def _runs_of(run: str, selection: Selection | None, file: Path) -> list[str]:
    """Return the run, and the other runs of the members of a selection."""
    members = selection.members if selection is not None else ()
    others = {Path(file.parent, member.run).resolve(): str(Path(file.parent, member.run)) for member in members}
    others.pop(Path(run).resolve(), None)
    return [run, *others.values()]


def _print_promise(selection: Selection, promise: dict[str, Any], file: Path) -> None:
    test = promise["test"]
    on_test = f"On {test['examples']:,} test images"
    print_text(
        f"Promise for the {selection.kind} of {pluralize(len(selection.members), 'member')} in {file}, on"
        f" {promise['examples']:,} validation images that nothing was chosen with:"
    )
    if sets := promise["sets"]:
        interval, scope = promise["coverage_interval"], "of each class " if len(sets["thresholds"]) > 1 else ""
        print_text(
            f"  {sets['method'].upper()} sets hold the true class of new images {scope}with a probability of at least"
            f" {sets['coverage']:g}; with so many images, 95 % of such promises cover {interval['low']:.4f} to"
            f" {interval['high']:.4f}. {on_test}: {format_accuracy(test['coverage'], test['coverage_interval'])},"
            f" {test['mean_set_size']:.3f} classes per set."
        )
    if acceptance := promise["acceptance"]:
        fit = promise["acceptance_fit"]
        observed = "no answer is accepted"
        if test["risk"] is not None:
            error = format_accuracy(test["risk"], test["risk_interval"])
            observed = f"{100 * test['accepted']:.1f} % are accepted, with an error rate of {error}"
        print_text(
            f"  Answers with a confidence of at least {acceptance['threshold']:.6g} have an error rate of at most"
            f" {acceptance['max_risk']:g} with a certainty of {100 * acceptance['certainty']:g} %:"
            f" {100 * fit['coverage']:.1f} % of the answers. {on_test} {observed}."
        )
    for note in promise["notes"]:
        print_text(f"{note}\n")


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
