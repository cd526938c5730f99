"""How did the members learn, and what did stochastic depth save? Sections on the histories of training."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_committee.evaluation.report.layout import (
    Block,
    Section,
    Table,
    count_with_noun,
    format_percent,
    format_points,
    format_significant,
    join_with_and,
    number_word,
)
from keras_committee.evaluation.report.run_data import RunData, StochasticDepthStats
from keras_committee.figures.curves import depth_curves, robustness_curves, training_curves
from keras_committee.figures.style import Picture
from keras_committee.run import training_seconds


def training_curves_section(runs: Sequence[RunData]) -> Section | None:
    """Training curves of every run; None where no run has a history."""
    blocks = tuple(_training_curves_block(run, len(runs) > 1) for run in runs if run.histories)
    return Section(name="learning", title="Training", blocks=blocks) if blocks else None


def depth_section(runs: Sequence[RunData]) -> Section | None:
    """What stochastic depth saved; None where no run has it."""
    blocks = tuple(_depth_block(run, run.depth_stats, runs) for run in runs if run.depth_stats is not None)
    return Section(name="depth", title="Time saved by stochastic depth", blocks=blocks) if blocks else None


def training_curves_sentence(run: RunData) -> str:
    """Where the members end, how far apart, and where their committee ends."""
    last = [rows[-1] for rows in run.histories.values()]
    accuracy = [row["validation_accuracy"] for row in last]
    epochs = max(row["epoch"] for row in last)
    subject = "the member ends" if len(last) == 1 else f"the {number_word(len(last))} members end"
    text = f"After {count_with_noun(epochs, 'epoch')} {subject} at {format_percent(float(np.mean(accuracy)))} of the validation images"
    if len(last) > 1:
        text += f", {format_points(max(accuracy) - min(accuracy))} apart"
    if run.anytime_accuracy is not None:
        text += f"; together they get {format_percent(run.anytime_accuracy[1][-1])} right"
    return f"{text}. They trained at {format_significant(_images_per_second(run))} images a second (median over epochs and members)."


def depth_sentence(run: RunData, others: Sequence[RunData]) -> str:
    """Expected and realised depth, and the speed beside a run of constant depth, where there is one."""
    depth_stats = run.depth_stats
    if depth_stats is None:
        return ""
    text = (
        f"Of {depth_stats.num_blocks} residual blocks {observed_depth(run):.1f} ran in a mean training step;"
        f" {depth_stats.expected_depth:.1f} are expected, which leaves out"
        f" {format_percent(depth_stats.expected_flops_reduction)} of the multiply-adds."
    )
    for other in others:
        ratio = _images_per_second(run) / _images_per_second(other)
        saved = f"{format_percent(1 - 1 / ratio)} of the time of an epoch saved" if ratio > 1 else "no time saved"
        text += f" It trained at {ratio:.2f} times the images a second of {other.name}, of constant depth: {saved}."
    return text


def observed_depth(run: RunData) -> float:
    """Residual blocks that ran in a step, the mean over epochs and members."""
    rows = [row for rows in run.histories.values() for row in rows if "realised_depth" in row]
    return float(np.mean([row["realised_depth"] for row in rows]))


def _training_curves_block(run: RunData, several_runs: bool) -> Block:
    text = training_curves_sentence(run)
    name = f"training-{safe_file_name(run.name)}" if several_runs else "training"
    picture = Picture(name, text, lambda width: training_curves(run.histories, run.anytime_accuracy, width))
    columns = ("member", "epochs", "training loss", "training accuracy", "validation accuracy", "NLL", "images/s")
    table = Table(
        columns=columns,
        rows=tuple(_last_epoch_row(index, rows) for index, rows in run.histories.items()),
        note="The last epoch; images/s is the median over the epochs. Training accuracy is taken on augmented images.",
    )
    return Block(sentence=text, pictures=(picture,), table=table, title=run.name if several_runs else "")


def _depth_block(run: RunData, depth_stats: StochasticDepthStats, runs: Sequence[RunData]) -> Block:
    others = [other for other in runs if _is_constant_depth_counterpart(run, other)]
    text = depth_sentence(run, others)
    histories = {plotted_run.name: plotted_run.histories for plotted_run in (run, *others)}
    picture = Picture(
        f"depth-{safe_file_name(run.name)}",
        text,
        lambda width: depth_curves(histories, depth_stats.num_blocks, depth_stats.expected_depth, width),
    )
    rows = [
        (str(index), f"{np.mean([row['realised_depth'] for row in rows]):.2f}", f"{depth_stats.expected_depth:.2f}",
         f"{np.median([row['images_per_second'] for row in rows]):.0f}")
        for index, rows in run.histories.items()
    ]  # fmt: skip
    table = Table(columns=("member", "blocks that ran", "expected", "images/s"), rows=tuple(rows))
    return Block(sentence=text, pictures=(picture,), table=table, title=run.name if len(runs) > 1 else "")


def _is_constant_depth_counterpart(run: RunData, other: RunData) -> bool:
    """Whether `other` has the same members but for the skipping: same name, same number of weights."""
    first_members = [
        [(row["name"], row["parameters"]) for row in candidate.evaluation["members"][:1]] for candidate in (run, other)
    ]
    return other.depth_stats is None and bool(other.histories) and first_members[0] == first_members[1]


def _images_per_second(run: RunData) -> float:
    return float(np.median([row["images_per_second"] for rows in run.histories.values() for row in rows]))


def _last_epoch_row(index: int, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    last = rows[-1]
    return (
        str(index),
        str(last["epoch"]),
        f"{last['loss']:.4f}",
        f"{last['accuracy']:.4f}",
        f"{last['validation_accuracy']:.4f}",
        f"{last['validation_nll']:.4f}",
        f"{np.median([row['images_per_second'] for row in rows]):.0f}",
    )


def safe_file_name(name: str) -> str:
    """`name` as a part of a file's name."""
    return (
        "".join(character if character.isalnum() or character in "-_." else "-" for character in name).strip("-.")
        or "run"
    )


def run_summary_section(runs: Sequence[RunData]) -> Section:
    """Recipe, knobs, versions, seeds, commit, machine and wall time of every run."""
    blocks = tuple(
        Block(
            sentence=_first_line(run.docstring),
            table=Table(columns=("", ""), rows=run_summary_rows(run), first_numeric_column=2),
            title=run.name if len(runs) > 1 else "",
        )
        for run in runs
    )
    return Section(name="card", title="Run cards" if len(runs) > 1 else "Run card", blocks=blocks)


def run_summary_rows(run: RunData) -> tuple[tuple[str, str], ...]:
    """What the run folder says of how it was trained."""
    environment, indices = run.environment, run.predictions.members
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items() if version)
    rows = [
        (
            "recipe",
            f"{environment['recipe']}{' (smoke run: a trial on a few batches)' if environment['smoke'] else ''}",
        ),
        ("command", environment["command"]),
        ("knobs", ", ".join(f"{parameter}={value!r}" for parameter, value in run.parameters.items())),
        ("members", f"{', '.join(map(str, indices))}; combined by {run.evaluation['head'].replace('_', ' ')}"),
        ("missing members", ", ".join(map(str, run.evaluation.get("missing") or []))),
        ("seeds", _seeds(environment.get("seed"), indices)),
        ("versions", versions),
        ("commit", environment.get("commit") or "unknown"),
        ("machine", f"{environment['platform']}, {environment['cpus']} CPU cores"),
        ("trained", _training_period(run.events)),
        ("wall time", _wall_time(run.events)),
        ("interruptions", _restarts_and_failures(run.events)),
    ]
    return tuple((name, value) for name, value in rows if value)


def _wall_time(events: Sequence[dict[str, Any]]) -> str:
    seconds = training_seconds(events)
    if seconds is None:
        return ""
    members = sum(event.get("seconds", 0.0) for event in events if event["event"] == "member_finished")
    return f"{_duration(seconds)}; the members took {_duration(members)} in sum" if members else _duration(seconds)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _training_period(events: Sequence[dict[str, Any]]) -> str:
    times = [_event_time(event) for event in events if event["event"].startswith("training_")]
    return f"{times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC" if times else ""


def _restarts_and_failures(events: Sequence[dict[str, Any]]) -> str:
    starts = sum(event["event"] == "training_started" for event in events)
    failed = sum(event["event"] == "member_failed" for event in events)
    parts = [f"started {number_word(starts)} times"] if starts > 1 else []
    return "; ".join([*parts, f"{number_word(failed)} failures of members"] if failed else parts)


def _seeds(seed: int | None, indices: Sequence[int]) -> str:
    return "" if seed is None else ", ".join(str(seed + index) for index in indices)


def _event_time(event: dict[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(event["time"])


def _first_line(docstring: str) -> str:
    return docstring.strip().split("\n")[0]


_CALIBRATION_LABELS = {
    "member_temperatures": "a temperature for each member",
    "temperature": "one temperature",
    "weights": "fitted weights",
}


def calibration_section(runs: Sequence[RunData]) -> Section | None:
    """What temperatures and weights change, of the runs that have a `calibration.json`."""
    blocks = tuple(
        _calibration_block(run.other_results["calibration"], run.name if len(runs) > 1 else "")
        for run in runs
        if "calibration" in run.other_results
    )
    return Section(name="calibration", title="After calibration", blocks=blocks) if blocks else None


def robustness_section(runs: Sequence[RunData]) -> Section | None:
    """What worse and foreign images do, of the runs that have a `robustness.json`."""
    several_runs = len(runs) > 1
    blocks = tuple(_robustness_block(run, several_runs) for run in runs if "robustness" in run.other_results)
    return Section(name="robustness", title="On worse and on foreign images", blocks=blocks) if blocks else None


def accuracy_by_severity(document: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """Mean accuracy of the members and of their committee by severity, over the kinds of corruption; 0 is clean."""
    rows = document["corruptions"]
    by_severity = {0: [document["clean"]]}
    for row in sorted(rows, key=lambda row: row["severity"]):
        by_severity.setdefault(row["severity"], []).append(row)
    return {
        severity: (
            _mean([_mean_member_accuracy(row) for row in group]),
            _mean([each["committee"]["accuracy"] for each in group]),
        )
        for severity, group in by_severity.items()
    }


def _robustness_block(run: RunData, several_runs: bool) -> Block:
    document = run.other_results["robustness"]
    text = robustness_sentence(document)
    name = f"robustness-{safe_file_name(run.name)}" if several_runs else "robustness"
    picture = Picture(name, text, lambda width: robustness_curves(accuracy_by_severity(document), width))
    return Block(
        sentence=text, pictures=(picture,), table=_corruption_table(document), title=run.name if several_runs else ""
    )


def robustness_sentence(document: dict[str, Any]) -> str:
    """How much accuracy corruptions cost, and whether foreign images are noticed."""
    clean, mean = document["clean"], document["mean"]
    text = (
        f"On corrupted images the committee is right on {format_percent(mean['committee']['accuracy'])}, a member on"
        f" {format_percent(_mean_member_accuracy(mean))}, of {format_percent(clean['committee']['accuracy'])} and"
        f" {format_percent(_mean_member_accuracy(clean))} on the images as they are (means over"
        f" {count_with_noun(len({row['kind'] for row in document['corruptions']}), 'kind')} of corruption and their severities)."
    )
    auroc_texts = [f"{ood['source']} {ood['confidence']['auroc']:.2f}" for ood in document["foreign"]]
    return text + (
        f" AUROC of telling foreign images by the committee's confidence: {join_with_and(auroc_texts)}."
        if auroc_texts
        else ""
    )


def _corruption_table(document: dict[str, Any]) -> Table:
    rows = document["corruptions"]
    levels = sorted({row["severity"] for row in rows})
    accuracies = {(row["kind"], row["severity"]): row["committee"]["accuracy"] for row in rows}
    return Table(
        columns=("corruption", *(f"severity {level}" for level in levels)),
        rows=tuple(
            (kind.replace("_", " "), *(format_percent(accuracies[kind, level]) for level in levels))
            for kind in dict.fromkeys(row["kind"] for row in rows)
        ),
        note=f"Accuracy of the committee on {document['examples']:,} {document['split']} images, corrupted.",
    )


def _mean_member_accuracy(scores: dict[str, Any]) -> float:
    return _mean([member["accuracy"] for member in scores["members"]])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _calibration_block(document: dict[str, Any], title: str) -> Block:
    committee, before = document["committee"], document["committee"]["before"]
    after = committee["after"]["temperature"]
    fitted, measured = document["fitted_on"], document["measured_on"]
    text = (
        f"One temperature of {committee['temperature']:.2f} for the committee changes its ECE from {before['ece']:.3f}"
        f" to {after['ece']:.3f} and its NLL from {before['nll']:.3f} to {after['nll']:.3f}; above 1 it makes answers"
        f" less sure. Fitted on {fitted['examples']:,} {fitted['split']} images, measured on {measured['examples']:,}"
        f" {measured['split']} images."
    )
    rows = [("committee as it is", before)]
    rows += [
        (f"committee, {_CALIBRATION_LABELS.get(name, name)}", scores) for name, scores in committee["after"].items()
    ]
    for member in document["members"]:
        rows.append((f"member {member['index']} as it is", member["before"]))
        rows.append((f"member {member['index']}, temperature {member['temperature']:.2f}", member["after"]))
    return Block(sentence=text, table=_scores_table(rows), title=title)


def _scores_table(rows: Sequence[tuple[str, dict[str, float]]]) -> Table:
    names = ("nll", "ece", "adaptive_ece", "brier")
    return Table(
        columns=("who", "accuracy", "NLL", "ECE", "adaptive ECE", "Brier"),
        rows=tuple(
            (label, format_percent(scores["accuracy"]), *(f"{scores[name]:.4f}" for name in names))
            for label, scores in rows
        ),
    )
