"""`keras-committee select`: select the best committee or cascade."""

from pathlib import Path
from typing import Any

import click

from keras_committee import api
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
from keras_committee.precision import EXPORT_PRECISIONS
from keras_committee.tables import print_blocks, print_text

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
    help="Let each member also compete on views of the image: mirror, shifts[=PIXELS].",
    show_default="the image alone",
)
@click.option(
    "--temperatures", is_flag=True, help="Divide each member's logits by its temperature, as calibrate fits it."
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
    views: str | None,
    temperatures: bool,
    out: str | None,
    min_members: int | None,
    allow_duplicate_weights: bool,
    as_json: bool,
) -> None:
    """Select the best committee or cascade.

    The members come from all RUNs. Selection uses the validation split; accuracy is reported on the test split with
    95 % confidence intervals.
    """
    with reserve_stdout_for_json(as_json):
        result = api.select(
            runs,
            cascade=cascade,
            max_mflops=max_mflops,
            max_latency=max_latency,
            min_accuracy=min_accuracy,
            objective=objective,
            max_accuracy_drop=max_accuracy_drop,
            max_risk=max_risk,
            batch_size=batch_size,
            precision=precision,
            search_method=search_method,
            head=head,
            views=() if views is None else views,
            temperatures=temperatures,
            out=out,
            allow_incomplete=min_members,
            allow_duplicate_weights=allow_duplicate_weights,
            moved_data=overrides,
        )
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    _print_summary(result.document, runs, result.path)


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
