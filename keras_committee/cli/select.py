"""`keras-committee select`: select the best committee or cascade."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from keras_committee.keras_config import loading_backend
from keras_committee.precision import EXPORT_PRECISIONS, export_precision
from keras_committee.progress import step
from keras_committee.run import lock_runs
from keras_committee.selection import View, views_to_try
from keras_committee.tables import print_selection, print_text

if TYPE_CHECKING:
    from keras_committee.stage_time import StageTimeModel

_LATENCY = "latency"


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
    help="Maximum measured time per image, in milliseconds; for a cascade, on average.",
)
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Minimum accuracy, from 0 to 1. Without a budget, selects the cheapest that reaches it.",
)
@click.option(
    "--objective",
    type=click.Choice((*OBJECTIVES, _LATENCY)),
    default="accuracy",
    show_default=True,
    help="Metric to optimize; latency is the measured time at an accuracy.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    help="Images per request in measurements of time.",
    show_default="32 with --cascade, else 1",
)
@click.option(
    "--precision",
    type=click.Choice(EXPORT_PRECISIONS),
    help="Precision of the export whose time is measured for a cascade. auto: bfloat16 if this machine multiplies "
    "matrices in it.",
    show_default="float32",
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
    "--max-risk",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="With --cascade: count only the answers that can be accepted at this error rate, and pass on only images near "
    "that decision.",
)
@click.option(
    "--views",
    metavar="VIEW[,VIEW]",
    callback=lambda _context, _parameter, value: _parse_views(value),
    help="Let each member also compete on views of the image: mirror, shifts[=PIXELS].",
    show_default="the image alone",
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
    batch_size: int | None,
    precision: str | None,
    search_method: str,
    head: str,
    cascade: bool,
    max_accuracy_drop: float | None,
    max_risk: float | None,
    views: tuple[View, ...],
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
    if max_risk is not None and (not cascade or min_accuracy or objective not in ("accuracy", _LATENCY)):
        raise click.UsageError("--max-risk requires --cascade, without --min-accuracy and --objective nll or brier.")
    by_time = bool(max_latency) or objective == _LATENCY
    if batch_size and not by_time:
        raise click.UsageError("--batch-size requires --max-latency or --objective latency.")
    if precision and not (by_time and cascade):
        raise click.UsageError("--precision requires --cascade and --max-latency or --objective latency.")
    batch_size = batch_size or (32 if cascade else 1)
    with reserve_stdout_for_json(as_json), lock_runs(runs, overrides) as opened:
        file = Path(out) if out else opened[0].path / "selection.json"
        for run in opened:
            run.require_members(min_members)
        with loading_backend():
            from keras_committee import evaluation

        compute_precision = export_precision(precision or "float32") if by_time and cascade else "float32"
        pool = evaluation.load_pool(
            opened, min_members=min_members, allow_duplicate_weights=allow_duplicate_weights, views=views
        )
        max_cost = max_mflops or max_latency or math.inf
        metric = "accuracy" if objective == _LATENCY else objective
        goal = evaluation.Objective(metric=metric, max_cost=max_cost, min_accuracy=min_accuracy or 0.0)
        time_model = _measure_stages(pool, batch_size, compute_precision) if cascade and by_time else None
        with step(f"selecting a {'cascade' if cascade else 'committee'}"):
            if cascade:
                selection = evaluation.select_cascade(
                    *(pool, goal, file),
                    search_method=search_method,
                    head=head,
                    max_accuracy_drop=max_accuracy_drop or 0.0,
                    time_model=time_model,
                    max_risk=max_risk,
                )
            else:
                latencies = evaluation.member_latencies(pool, batch_size) if by_time else None
                selection = evaluation.select(
                    pool, goal, file, search_method=search_method, head=head, latencies=latencies
                )
        if time_model is not None:
            selection.report["cascade"]["latency"] |= _measure_cascade(pool, selection, compute_precision)
        selection.write(file)
        opened[0].append_event("selected", kind=selection.kind, members=len(selection.members), file=str(file))
    document = {"file": str(file), "kind": selection.kind, **dataclasses.asdict(selection)}
    if as_json:
        print_json(document)
        return
    print_selection(document)
    _print_summary(document, runs, file)


def _parse_views(text: str | None) -> tuple[View, ...]:
    """Return the views of `--views`, such as `mirror,shifts=2`. Raises click.BadParameter."""
    if text is None:
        return ()
    names = dict(part.strip().partition("=")[::2] for part in text.split(","))
    pixels = names.pop("shifts", None)
    if names not in ({}, {"mirror": ""}) or not (pixels or "1").isdecimal() or int(pixels or 1) < 1:
        raise click.BadParameter(f"must be mirror, shifts or shifts=PIXELS, or both with a comma. Received: {text!r}.")
    return views_to_try(mirror=bool(names), shifts=0 if pixels is None else int(pixels or 1))


def _check_options(max_mflops, max_latency, min_accuracy, objective, cascade, max_accuracy_drop) -> None:
    drop = max_accuracy_drop is not None
    conflicts = {
        "--max-mflops and --max-latency cannot be combined": max_mflops and max_latency,
        "--max-latency cannot be combined with --objective latency; give --min-accuracy instead": (
            max_latency and objective == _LATENCY
        ),
        "--max-mflops cannot be combined with --objective latency": max_mflops and objective == _LATENCY,
        "--objective latency requires --cascade or --min-accuracy": (
            objective == _LATENCY and not cascade and not min_accuracy
        ),
        "--max-latency and --min-accuracy cannot be combined with --cascade; give one": (
            cascade and max_latency and min_accuracy
        ),
        "--max-accuracy-drop requires --cascade": drop and not cascade,
        "--max-accuracy-drop cannot be combined with --objective": drop and objective not in ("accuracy", _LATENCY),
        "--max-accuracy-drop cannot be combined with --max-mflops, --max-latency or --min-accuracy": (
            drop and (max_mflops or max_latency or min_accuracy)
        ),
        "--max-mflops and --min-accuracy cannot be combined with --cascade; give one": (
            cascade and max_mflops and min_accuracy
        ),
        "--min-accuracy with --cascade cannot be combined with --objective": (
            cascade and min_accuracy and objective not in ("accuracy", _LATENCY)
        ),
    }
    for message, conflict in conflicts.items():
        if conflict:
            raise click.UsageError(f"{message}.")


def _load_models(members):
    """Return the models of pool members, each file loaded once."""
    from keras_committee.export.export_members import load_models
    from keras_committee.member_dir import MemberDir

    files = [MemberDir(member.run, member.index).model for member in members]
    return load_models(files, [member.view for member in members])


def _measure_stages(pool, batch_size: int, precision: str) -> "StageTimeModel":
    """Measure the time of exported graphs of the pool's members on this machine."""
    from keras_committee.export import graph_time
    from keras_committee.stage_time import StageTimeModel

    members = pool.with_known_costs().members
    models = _load_models(members)
    graphs = graph_time.measure_stages(models, [member.architecture for member in members], batch_size, precision)
    return StageTimeModel(graphs, batch_size)


def _measure_cascade(pool, selection, precision: str) -> dict[str, Any]:
    """Measure the selected cascade and its committee; return the times in milliseconds per image, and the machine."""
    from keras_committee.export import graph_time

    report = selection.report["cascade"]
    models = _load_models([pool.members[position] for position in pool.positions(selection.members)])
    committee = _load_models([pool.members[pool.position_of(entry)] for entry in report["committee"]["members"]])
    shares = report["latency"]["shares"]
    continuing = [later / max(share, 1e-9) for share, later in itertools.pairwise(shares)]
    sizes = [stage.members for stage in selection.stages]
    measured, committee_measured = graph_time.measure_cascade(
        *(models, sizes, continuing, committee, report["latency"]["batch_size"], precision)
    )
    return {
        "measured_ms": measured,
        "committee_measured_ms": committee_measured,
        "precision": precision,
        "machine": graph_time.describe_machine(),
    }


def _print_latency(latency: dict[str, Any]) -> None:
    machine = latency["machine"]
    print_text(
        f"Measured in batches of {latency['batch_size']} in {latency['precision']} on {machine['cores']} cores:"
        f" {latency['measured_ms']:.3g} ms per image (predicted {latency['predicted_ms']['validation']:.3g}),"
        f" the best committee {latency['committee_measured_ms']:.3g} ms"
        f" (predicted {latency['committee_predicted_ms']:.3g}):"
        f" {latency['committee_measured_ms'] / latency['measured_ms']:.2f} times as fast."
    )


def _print_coverage(cascade: dict[str, Any]) -> None:
    print_text(
        f"At an error rate of {100 * cascade['max_risk']:g} %, {100 * cascade['coverage']['test']:.1f} % of the test"
        f" answers can be accepted, of the best committee's {100 * cascade['committee_coverage']['test']:.1f} %. To"
        f" promise the error rate: calibrate --max-risk {cascade['max_risk']:g}."
    )


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
    if "max_risk" in report.get("cascade", {}):
        _print_coverage(report["cascade"])
    if "latency" in report.get("cascade", {}):
        _print_latency(report["cascade"]["latency"])
    print_text(f"Diversity: {report['diversity']['statement']}")
    print_text(
        f"Searched {report['candidates']:,} committees ({report['method']}), Pareto optimal: {len(report['front'])}."
    )
    print_text(f"Details: {file}")
    print_next_steps("export", runs[0], "--selection", str(file), *_export_precision_arguments(report))


def _export_precision_arguments(report: dict) -> list[str]:
    """Return the arguments of `export` for the precision whose time was measured; none for the default."""
    precision = report.get("cascade", {}).get("latency", {}).get("precision", "float32")
    return [] if precision == "float32" else ["--precision", precision]


def _percentage_points(difference: dict[str, float]) -> str:
    value, low, high = (f"{100 * difference[key]:+.2f}" for key in ("value", "low", "high"))
    return f"{value} percentage points [{low}, {high}]"
