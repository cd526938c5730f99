"""Sections on runs: training curves, stochastic depth, calibration, robustness and the run summary."""

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
from keras_committee.evaluation.training_summary import kept_epoch
from keras_committee.figures.curves import depth_curves, robustness_curves, training_curves
from keras_committee.figures.style import Picture
from keras_committee.run import training_seconds
from keras_committee.tables import format_duration

_CALIBRATION_LABELS = {
    "member_temperatures": "a temperature per member",
    "temperature": "one temperature",
    "weights": "fitted weights",
}


def training_curves_section(runs: Sequence[RunData]) -> Section | None:
    """Training curves of every run; None without histories."""
    blocks = tuple(_training_curves_block(run, len(runs) > 1) for run in runs if run.histories)
    return Section(name="training", title="Training", blocks=blocks) if blocks else None


def depth_section(runs: Sequence[RunData]) -> Section | None:
    """Savings of stochastic depth; None without it."""
    blocks = tuple(_depth_block(run, run.depth_stats, runs) for run in runs if run.depth_stats is not None)
    return Section(name="depth", title="Stochastic depth", blocks=blocks) if blocks else None


def training_curves_sentence(run: RunData) -> str:
    """Summarize the final accuracies of members and committee and the training speed."""
    last = [rows[-1] for rows in run.histories.values()]
    accuracy = [row["validation_accuracy"] for row in last]
    epochs = max(row["epoch"] for row in last)
    subject = "the member reaches" if len(last) == 1 else f"the {number_word(len(last))} members reach"
    mean_accuracy = format_percent(float(np.mean(accuracy)))
    text = f"After {count_with_noun(epochs, 'epoch')} {subject} a validation accuracy of {mean_accuracy}"
    if len(last) > 1:
        text += f" on average, with a range of {format_points(max(accuracy) - min(accuracy))}"
    if run.anytime_accuracy is not None:
        text += f"; their committee reaches {format_percent(run.anytime_accuracy[1][-1])}"
    speed = format_significant(_images_per_second(run))
    return f"{text}. Training speed: {speed} images per second (median over epochs and members)."


def depth_sentence(run: RunData, others: Sequence[RunData]) -> str:
    """Compare observed and expected depth, and the speed with runs of constant depth."""
    depth_stats = run.depth_stats
    if depth_stats is None:
        return ""
    reduction = depth_stats.expected_flops_reduction
    text = (
        f"On average {observed_depth(run):.1f} of {depth_stats.num_blocks} residual blocks ran per training step;"
        f" the expected depth of {depth_stats.expected_depth:.1f} saves"
        f" {'an unknown share' if reduction is None else format_percent(reduction)} of the multiply-adds."
    )
    for other in others:
        ratio = _images_per_second(run) / _images_per_second(other)
        saved = f"{format_percent(1 - 1 / ratio)} less time per epoch" if ratio > 1 else "no time saved"
        text += f" It trained {ratio:.2f} times as many images per second as {other.name} with constant depth: {saved}."
    return text


def observed_depth(run: RunData) -> float:
    """Return the residual blocks that ran per step, the mean over epochs and members."""
    rows = [row for rows in run.histories.values() for row in rows if "realised_depth" in row]
    return float(np.mean([row["realised_depth"] for row in rows]))


def _training_curves_block(run: RunData, several_runs: bool) -> Block:
    text = training_curves_sentence(run)
    name = f"training-{safe_file_name(run.name)}" if several_runs else "training"
    picture = Picture(name, text, lambda width: training_curves(run.histories, run.anytime_accuracy, width))
    columns = (
        "member",
        "epochs",
        "epoch kept",
        "training loss",
        "training accuracy",
        "validation accuracy",
        "NLL",
        "images/s",
    )
    table = Table(
        columns=columns,
        rows=tuple(_last_epoch_row(index, rows, run.restore_best) for index, rows in run.histories.items()),
        note="Last epoch, and the epoch whose weights were kept; images/s is the median over the epochs. Training"
        " accuracy is on augmented images.",
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
    """Check that `other` trains the same network with constant depth: same name and number of weights."""
    first_members = [
        [(row["name"], row["parameters"]) for row in candidate.evaluation["members"][:1]] for candidate in (run, other)
    ]
    return other.depth_stats is None and bool(other.histories) and first_members[0] == first_members[1]


def _images_per_second(run: RunData) -> float:
    return float(np.median([row["images_per_second"] for rows in run.histories.values() for row in rows]))


def _last_epoch_row(index: int, rows: list[dict[str, Any]], restore_best: str | None) -> tuple[str, ...]:
    last = rows[-1]
    return (
        str(index),
        str(last["epoch"]),
        str(kept_epoch(rows, restore_best)["epoch"]),
        f"{last['loss']:.4f}",
        f"{last['accuracy']:.4f}",
        f"{last['validation_accuracy']:.4f}",
        f"{last['validation_nll']:.4f}",
        f"{np.median([row['images_per_second'] for row in rows]):.0f}",
    )


def safe_file_name(name: str) -> str:
    """Replace characters that are unsuitable in a file name."""
    return (
        "".join(character if character.isalnum() or character in "-_." else "-" for character in name).strip("-.")
        or "run"
    )


def run_summary_section(runs: Sequence[RunData]) -> Section:
    """Recipe, parameters, versions, seeds, commit, machine and wall time of every run."""
    blocks = tuple(
        Block(
            sentence=_first_line(run.docstring),
            table=Table(columns=("", ""), rows=run_summary_rows(run), first_numeric_column=2),
            title=run.name if len(runs) > 1 else "",
        )
        for run in runs
    )
    return Section(name="summary", title="Run summaries" if len(runs) > 1 else "Run summary", blocks=blocks)


def run_summary_rows(run: RunData) -> tuple[tuple[str, str], ...]:
    """Return name and value of each property of a run."""
    environment, indices = run.environment, run.predictions.members
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items() if version)
    rows = [
        (
            "recipe",
            f"{environment['recipe']}{' (smoke run on a few batches)' if environment['smoke'] else ''}",
        ),
        ("command", environment["command"]),
        ("parameters", ", ".join(f"{parameter}={value!r}" for parameter, value in run.parameters.items())),
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
    duration = format_duration(seconds)
    return f"{duration}; {format_duration(members)} summed over the members" if members else duration


def _training_period(events: Sequence[dict[str, Any]]) -> str:
    times = [_event_time(event) for event in events if event["event"].startswith("training_")]
    return f"{times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC" if times else ""


def _restarts_and_failures(events: Sequence[dict[str, Any]]) -> str:
    starts = sum(event["event"] == "training_started" for event in events)
    failed = sum(event["event"] == "member_failed" for event in events)
    parts = [f"started {number_word(starts)} times"] if starts > 1 else []
    return "; ".join([*parts, f"{number_word(failed)} failed members"] if failed else parts)


def _seeds(seed: int | None, indices: Sequence[int]) -> str:
    return "" if seed is None else ", ".join(str(seed + index) for index in indices)


def _event_time(event: dict[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(event["time"])


def _first_line(docstring: str) -> str:
    return docstring.strip().split("\n")[0]


def calibration_section(runs: Sequence[RunData]) -> Section | None:
    """Effect of temperatures and weights for runs with a `calibration.json`."""
    blocks = tuple(
        _calibration_block(run.other_results["calibration"], run.name if len(runs) > 1 else "")
        for run in runs
        if "calibration" in run.other_results
    )
    return Section(name="calibration", title="Calibration", blocks=blocks) if blocks else None


def robustness_section(runs: Sequence[RunData]) -> Section | None:
    """Corrupted and out-of-distribution images for runs with a `robustness.json`."""
    several_runs = len(runs) > 1
    blocks = tuple(_robustness_block(run, several_runs) for run in runs if "robustness" in run.other_results)
    return Section(name="robustness", title="Robustness", blocks=blocks) if blocks else None


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
    """Summarize the accuracy on corrupted images and the detection of out-of-distribution images."""
    clean, mean = document["clean"], document["mean"]
    kinds = count_with_noun(len({row["kind"] for row in document["corruptions"]}), "corruption")
    text = (
        f"Accuracy on corrupted images: committee {format_percent(mean['committee']['accuracy'])}, mean member"
        f" {format_percent(_mean_member_accuracy(mean))}; on clean images"
        f" {format_percent(clean['committee']['accuracy'])} and {format_percent(_mean_member_accuracy(clean))}"
        f" (means over {kinds} and their severities)."
    )
    auroc_texts = [f"{ood['source']} {ood['confidence']['auroc']:.2f}" for ood in document["foreign"]]
    return text + (
        f" AUROC of detecting out-of-distribution images by the committee's confidence: {join_with_and(auroc_texts)}."
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
        note=f"Accuracy of the committee on {document['examples']:,} corrupted {document['split']} images.",
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
        f"A temperature of {committee['temperature']:.2f} for the committee changes its ECE from {before['ece']:.3f}"
        f" to {after['ece']:.3f} and its NLL from {before['nll']:.3f} to {after['nll']:.3f}; values above 1 reduce"
        f" confidence. Fitted on {fitted['examples']:,} {fitted['split']} images, measured on {measured['examples']:,}"
        f" {measured['split']} images."
    )
    rows = [("committee, uncalibrated", before)]
    rows += [
        (f"committee, {_CALIBRATION_LABELS.get(name, name)}", scores) for name, scores in committee["after"].items()
    ]
    for member in document["members"]:
        rows.append((f"member {member['index']}, uncalibrated", member["before"]))
        rows.append((f"member {member['index']}, temperature {member['temperature']:.2f}", member["after"]))
    return Block(sentence=text, table=_scores_table(rows), title=title)


def _scores_table(rows: Sequence[tuple[str, dict[str, float]]]) -> Table:
    names = ("nll", "ece", "adaptive_ece", "brier")
    return Table(
        columns=("predictor", "accuracy", "NLL", "ECE", "adaptive ECE", "Brier"),
        rows=tuple(
            (label, format_percent(scores["accuracy"]), *(f"{scores[name]:.4f}" for name in names))
            for label, scores in rows
        ),
    )
