"""`keras-committee select`: select the best committee or cascade."""

import dataclasses
import math
from pathlib import Path

import click

from keras_committee.choices import OBJECTIVES, SEARCH_METHODS, SELECTION_HEADS
from keras_committee.cli.options import (
    HomePath,
    allow_duplicate_weights_option,
    json_option,
    min_members_option,
    moved_data_option,
    runs_argument,
    standard_options,
)
from keras_committee.cli.output import print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.run import lock_runs
from keras_committee.tables import print_selection, print_text


@click.command()
@runs_argument
@moved_data_option
@click.option(
    "--max-mflops",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Maximum cost per image, in MFLOPs; for a cascade, on average.",
)
@click.option(
    "--max-latency",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Maximum measured time per image, in milliseconds.",
)
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Minimum accuracy, from 0 to 1. Without a budget, selects the cheapest that reaches it.",
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="accuracy",
    show_default=True,
    help="Metric to optimize.",
)
@click.option(
    "--search-method", type=click.Choice(SEARCH_METHODS), default="auto", show_default=True, help="Search algorithm."
)
@click.option(
    "--head",
    type=click.Choice(SELECTION_HEADS),
    default="geometric_mean",
    show_default=True,
    help="Layer that combines the members' predictions.",
)
@click.option(
    "--cascade", is_flag=True, help="Select a cascade, which runs later members only if earlier ones lack confidence."
)
@click.option(
    "--max-accuracy-drop",
    type=click.FloatRange(0),
    metavar="POINTS",
    help="Largest accuracy loss allowed for the cascade, in percentage points.",
)
@click.option(
    "--out",
    type=HomePath(),
    metavar="FILE",
    help="Write the selection to FILE.",
    show_default="selection.json in the first RUN",
)
@min_members_option
@allow_duplicate_weights_option
@json_option
@standard_options
def select(
    runs: tuple[str, ...],
    overrides: tuple[str, ...],
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
    """Select the best committee or cascade.

    The members come from all RUNs. Selection uses the validation split; accuracy is reported on the test split with
    95 % confidence intervals.
    """
    _check_options(max_mflops, max_latency, min_accuracy, objective, cascade, max_accuracy_drop)
    with reserve_stdout_for_json(as_json), lock_runs(runs, overrides) as opened:
        file = Path(out) if out else opened[0].path / "selection.json"
        from keras_committee import evaluation

        pool = evaluation.load_pool(opened, min_members=min_members, allow_duplicate_weights=allow_duplicate_weights)
        max_cost = max_mflops or max_latency or math.inf
        goal = evaluation.Objective(metric=objective, max_cost=max_cost, min_accuracy=min_accuracy or 0.0)
        if cascade:
            selection = evaluation.select_cascade(
                pool, goal, file, search_method=search_method, head=head, max_accuracy_drop=max_accuracy_drop or 0.0
            )
        else:
            latencies = evaluation.member_latencies(pool) if max_latency else None
            selection = evaluation.select(pool, goal, file, search_method=search_method, head=head, latencies=latencies)
        selection.write(file)
        opened[0].append_event("selected", kind=selection.kind, members=len(selection.members), file=str(file))
    document = {"file": str(file), "kind": selection.kind, **dataclasses.asdict(selection)}
    if as_json:
        print_json(document)
        return
    print_selection(document)
    _print_summary(document, runs, file)


def _check_options(max_mflops, max_latency, min_accuracy, objective, cascade, max_accuracy_drop) -> None:
    drop = max_accuracy_drop is not None
    conflicts = {
        "--max-mflops and --max-latency cannot be combined": max_mflops and max_latency,
        "--max-latency cannot be combined with --cascade; use --max-mflops": max_latency and cascade,
        "--max-accuracy-drop requires --cascade": drop and not cascade,
        "--max-accuracy-drop cannot be combined with --objective": drop and objective != "accuracy",
        "--max-accuracy-drop cannot be combined with --max-mflops or --min-accuracy": (
            drop and (max_mflops or min_accuracy)
        ),
        "--max-mflops and --min-accuracy cannot be combined with --cascade; give one": (
            cascade and max_mflops and min_accuracy
        ),
        "--min-accuracy with --cascade cannot be combined with --objective": (
            cascade and min_accuracy and objective != "accuracy"
        ),
    }
    for message, conflict in conflicts.items():
        if conflict:
            raise click.UsageError(f"{message}.")


def _print_summary(document: dict, runs: tuple[str, ...], file: Path) -> None:
    report = document["report"]
    gain = report["best_member"]["gain"]["accuracy"]
    print_text(f"Test accuracy compared with the best member: {_percentage_points(gain)}.")
    if "cascade" in report and len(document["stages"]) > 1:
        cost_ratio, difference = report["cascade"]["times_cheaper"], report["cascade"]["difference"]["accuracy"]
        print_text(
            f"Test accuracy compared with the best committee: {_percentage_points(difference)}, with"
            f" {cost_ratio['value']:.2f} times fewer multiply-adds [{cost_ratio['low']:.2f}, {cost_ratio['high']:.2f}]."
        )
    print_text(f"Diversity: {report['diversity']['statement']}")
    print_text(
        f"Searched {report['candidates']:,} committees ({report['method']}), Pareto optimal: {len(report['front'])}."
    )
    print_text(f"Details: {file}")
    print_next_steps("export", runs[0], "--selection", str(file))


def _percentage_points(difference: dict[str, float]) -> str:
    value, low, high = (f"{100 * difference[key]:+.2f}" for key in ("value", "low", "high"))
    return f"{value} percentage points [{low}, {high}]"
