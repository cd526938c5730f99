"""`keras-committee select`: which committee, or cascade, of the members of some runs is to be shipped?"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from keras_committee.cli import options
from keras_committee.cli.options import (
    allow_duplicate_weights_option,
    json_option,
    min_members_option,
    standard_options,
)
from keras_committee.cli.output import print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.run import Run
from keras_committee.tables import print_selection

_METHODS = ["auto", "exhaustive", "greedy", "evolutionary"]
_HEADS = ["geometric_mean", "arithmetic_mean", "majority_vote"]


@click.command()
@click.argument(
    "runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(), shell_complete=options.complete_runs
)
@click.option("--max-mflops", type=click.FloatRange(0, min_open=True), metavar="X", help="Budget; a cascade's average.")
@click.option("--max-latency", type=click.FloatRange(0, min_open=True), metavar="MS", help="Budget of measured time.")
@click.option("--min-accuracy", type=click.FloatRange(0, 1), metavar="X", help="Alone: the cheapest that reaches it.")
@click.option(
    "--objective",
    type=click.Choice(["accuracy", "nll", "brier"]),
    default="accuracy",
    show_default=True,
    help="What is to be best.",
)
@click.option("--search-method", type=click.Choice(_METHODS), default="auto", show_default=True, help="Of looking.")
@click.option(
    "--head", type=click.Choice(_HEADS), default="geometric_mean", show_default=True, help="Of the committee."
)
@click.option("--cascade", is_flag=True, help="Ask the next member only while those so far are unsure.")
@click.option(
    "--max-accuracy-drop", type=click.FloatRange(0), metavar="POINTS", help="What --cascade may lose of accuracy."
)
@click.option("--out", type=click.Path(), metavar="FILE", help="selection.json of the first run by default.")
@min_members_option
@allow_duplicate_weights_option
@json_option
@standard_options
def select(
    runs: tuple[str, ...],
    max_mflops: float | None,
    max_latency: float | None,
    min_accuracy: float | None,
    objective: str,
    search_method: str,
    head: str,
    cascade: bool,
    max_accuracy_drop: float | None,
    out: str | None,
    min_members: int | None,
    allow_duplicate_weights: bool,
    as_json: bool,
) -> None:
    """Choose the best committee, or cascade, of the members of RUNs.

    It is chosen on the validation split; what it is worth is told on the test split.
    """
    _check_options(max_mflops, max_latency, min_accuracy, objective, cascade, max_accuracy_drop)
    opened = [Run.open(run) for run in runs]
    file = Path(out) if out else opened[0].path / "selection.json"
    with _hold_locks(opened), reserve_stdout_for_json(as_json):
        from keras_committee import evaluation

        pool = evaluation.load_pool(opened, min_members=min_members, allow_duplicate_weights=allow_duplicate_weights)
        max_cost = max_mflops or max_latency or math.inf
        goal = evaluation.Objective(metric=objective, max_cost=max_cost, min_accuracy=min_accuracy or 0.0)
        if cascade:
            chosen = evaluation.select_cascade(
                pool, goal, file, search_method=search_method, head=head, max_accuracy_drop=max_accuracy_drop or 0.0
            )
        else:
            latencies = evaluation.member_latencies(pool) if max_latency else None
            chosen = evaluation.select(pool, goal, file, search_method=search_method, head=head, latencies=latencies)
        chosen.write(file)
        opened[0].append_event("selected", kind=chosen.kind, members=len(chosen.members), file=str(file))
    document = {"file": str(file), "kind": chosen.kind, **dataclasses.asdict(chosen)}
    if as_json:
        print_json(document)
        return
    print_selection(document)
    _print_summary(document, runs, file)


def _check_options(max_mflops, max_latency, min_accuracy, objective, cascade, target_drop) -> None:
    conflicts = {
        "--max-mflops and --max-latency are two budgets: give one": max_mflops and max_latency,
        "--max-latency bounds a committee; bound a --cascade by --max-mflops": max_latency and cascade,
        "--max-accuracy-drop is for a --cascade": target_drop is not None and not cascade,
        "--max-accuracy-drop is of accuracy: leave out --objective": target_drop is not None
        and objective != "accuracy",
        "--max-accuracy-drop and a budget are two goals: give one": target_drop is not None
        and (max_mflops or min_accuracy),
        "a --cascade takes --max-mflops or --min-accuracy, not both": cascade and max_mflops and min_accuracy,
        "--min-accuracy of a --cascade is its target: leave out --objective": (
            cascade and min_accuracy and objective != "accuracy"
        ),
    }
    for message, conflict in conflicts.items():
        if conflict:
            raise click.UsageError(f"{message}.")


@contextlib.contextmanager
def _hold_locks(runs: Sequence[Run]) -> Iterator[None]:
    """Owns all of them; one that is given twice once, so that the pool can say so."""
    with contextlib.ExitStack() as stack:
        for run in {run.path.resolve(): run for run in runs}.values():
            stack.enter_context(run.lock())
        yield


def _print_summary(document: dict, runs: tuple[str, ...], file: Path) -> None:
    report = document["report"]
    gain = report["best_member"]["gain"]["accuracy"]
    click.echo(f"Over the best member: {_percentage_points(gain)} on test.")
    if "cascade" in report:
        cost_ratio, difference = report["cascade"]["times_cheaper"], report["cascade"]["difference"]["accuracy"]
        click.echo(
            f"Against the best committee: {_percentage_points(difference)} on test, at {cost_ratio['value']:.2f} times fewer "
            f"multiply-adds [{cost_ratio['low']:.2f}, {cost_ratio['high']:.2f}]."
        )
    click.echo(f"Diversity: {report['diversity']['statement']}")
    click.echo(
        f"{report['candidates']:,} committees looked at ({report['method']}), {len(report['front'])} on the front."
    )
    click.echo(f"All of it: {file}")
    print_next_steps("export", runs[0], "--selection", str(file))


def _percentage_points(difference: dict[str, float]) -> str:
    value, low, high = (f"{100 * difference[key]:+.2f}" for key in ("value", "low", "high"))
    return f"{value} points of accuracy [{low}, {high}]"
