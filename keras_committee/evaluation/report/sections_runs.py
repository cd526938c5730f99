"""How did the members learn, and what did stochastic depth save? Sections on the histories of training."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_committee.evaluation.report.layout import (
    Block,
    Section,
    Table,
    count,
    figures,
    listing,
    percent,
    plural,
    points,
)
from keras_committee.evaluation.report.run_data import Gates, Source
from keras_committee.figures.curves import depth, robustness, training
from keras_committee.figures.style import Picture


def learning_section(sources: Sequence[Source]) -> Section | None:
    """Training curves of every run; None where no run has a history."""
    blocks = tuple(_learning_block(source, len(sources) > 1) for source in sources if source.histories)
    return Section(name="learning", title="Training", blocks=blocks) if blocks else None


def depth_section(sources: Sequence[Source]) -> Section | None:
    """What stochastic depth saved; None where no run has it."""
    blocks = tuple(_depth_block(source, source.gates, sources) for source in sources if source.gates is not None)
    return Section(name="depth", title="Time saved by stochastic depth", blocks=blocks) if blocks else None


def learning_sentence(source: Source) -> str:
    """Where the members end, how far apart, and where their committee ends."""
    last = [rows[-1] for rows in source.histories.values()]
    accuracy = [row["validation_accuracy"] for row in last]
    epochs = max(row["epoch"] for row in last)
    who = "the member ends" if len(last) == 1 else f"the {count(len(last))} members end"
    text = f"After {plural(epochs, 'epoch')} {who} at {percent(float(np.mean(accuracy)))} of the validation images"
    if len(last) > 1:
        text += f", {points(max(accuracy) - min(accuracy))} apart"
    if source.so_far is not None:
        text += f"; together they get {percent(source.so_far[1][-1])} right"
    return f"{text}. They trained at {figures(_speed(source))} images a second (median over epochs and members)."


def depth_sentence(source: Source, others: Sequence[Source]) -> str:
    """Expected and realised depth, and the speed beside a run of constant depth, where there is one."""
    gates = source.gates
    if gates is None:
        return ""
    text = (
        f"Of {gates.blocks} residual blocks {realised(source):.1f} ran in a mean training step;"
        f" {gates.expected_depth:.1f} are expected, which leaves out"
        f" {percent(gates.expected_saving)} of the multiply-adds."
    )
    for other in others:
        ratio = _speed(source) / _speed(other)
        saved = f"{percent(1 - 1 / ratio)} of the time of an epoch saved" if ratio > 1 else "no time saved"
        text += f" It trained at {ratio:.2f} times the images a second of {other.name}, of constant depth: {saved}."
    return text


def realised(source: Source) -> float:
    """Residual blocks that ran in a step, the mean over epochs and members."""
    rows = [row for rows in source.histories.values() for row in rows if "realised_depth" in row]
    return float(np.mean([row["realised_depth"] for row in rows]))


def _learning_block(source: Source, several: bool) -> Block:
    text = learning_sentence(source)
    name = f"training-{file_name(source.name)}" if several else "training"
    picture = Picture(name, text, lambda width: training(source.histories, source.so_far, width))
    columns = ("member", "epochs", "training loss", "training accuracy", "validation accuracy", "NLL", "images/s")
    table = Table(
        columns=columns,
        rows=tuple(_last_row(index, rows) for index, rows in source.histories.items()),
        note="The last epoch; images/s is the median over the epochs. Training accuracy is taken on augmented images.",
    )
    return Block(sentence=text, pictures=(picture,), table=table, title=source.name if several else "")


def _depth_block(source: Source, gates: Gates, sources: Sequence[Source]) -> Block:
    others = [other for other in sources if _is_constant_twin(source, other)]
    text = depth_sentence(source, others)
    histories = {each.name: each.histories for each in (source, *others)}
    picture = Picture(
        f"depth-{file_name(source.name)}",
        text,
        lambda width: depth(histories, gates.blocks, gates.expected_depth, width),
    )
    rows = [
        (str(index), f"{np.mean([row['realised_depth'] for row in rows]):.2f}", f"{gates.expected_depth:.2f}",
         f"{np.median([row['images_per_second'] for row in rows]):.0f}")
        for index, rows in source.histories.items()
    ]  # fmt: skip
    table = Table(columns=("member", "blocks that ran", "expected", "images/s"), rows=tuple(rows))
    return Block(sentence=text, pictures=(picture,), table=table, title=source.name if len(sources) > 1 else "")


def _is_constant_twin(source: Source, other: Source) -> bool:
    """Whether `other` has the same members but for the skipping: same name, same number of weights."""
    told = [[(row["name"], row["parameters"]) for row in each.evaluation["members"][:1]] for each in (source, other)]
    return other.gates is None and bool(other.histories) and told[0] == told[1]


def _speed(source: Source) -> float:
    return float(np.median([row["images_per_second"] for rows in source.histories.values() for row in rows]))


def _last_row(index: int, rows: list[dict[str, Any]]) -> tuple[str, ...]:
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


def file_name(name: str) -> str:
    """`name` as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "run"


def card_section(sources: Sequence[Source]) -> Section:
    """Recipe, knobs, versions, seeds, commit, machine and wall time of every run."""
    blocks = tuple(
        Block(
            sentence=_first_line(source.doc),
            table=Table(columns=("", ""), rows=card_rows(source), numbers=2),
            title=source.name if len(sources) > 1 else "",
        )
        for source in sources
    )
    return Section(name="card", title="Run cards" if len(sources) > 1 else "Run card", blocks=blocks)


def card_rows(source: Source) -> tuple[tuple[str, str], ...]:
    """What the run folder says of how it was trained."""
    environment, indices = source.environment, source.votes.members
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items() if version)
    rows = [
        (
            "recipe",
            f"{environment['recipe']}{' (smoke run: a trial on a few batches)' if environment['smoke'] else ''}",
        ),
        ("command", environment["command"]),
        ("knobs", ", ".join(f"{knob}={value!r}" for knob, value in source.knobs.items())),
        ("members", f"{', '.join(map(str, indices))}; combined by {source.evaluation['head'].replace('_', ' ')}"),
        ("missing members", ", ".join(map(str, source.evaluation.get("missing") or []))),
        ("seeds", _seeds(environment.get("seed"), indices)),
        ("versions", versions),
        ("commit", environment.get("commit") or "unknown"),
        ("machine", f"{environment['platform']}, {environment['cpus']} CPU cores"),
        ("trained", _when(source.events)),
        ("wall time", _wall_time(source.events)),
        ("interruptions", _interruptions(source.events)),
    ]
    return tuple((name, value) for name, value in rows if value)


def wall_seconds(events: Sequence[dict[str, Any]]) -> float | None:
    """Seconds that the run was being trained: from each start to its end, or to its last sign of life where killed."""
    total, begun, last = 0.0, None, None
    for event in events:
        if event["event"] == "training_started":
            total += (last - begun).total_seconds() if begun and last else 0.0
            begun = last = _time(event)
        elif begun and event["event"].startswith(("member_", "training_")):
            last = _time(event)
        if begun and event["event"] in ("training_finished", "training_stopped", "training_failed"):
            total, begun = total + (_time(event) - begun).total_seconds(), None
    if begun and last:
        total += (last - begun).total_seconds()
    return total if any(event["event"] == "training_started" for event in events) else None


def _wall_time(events: Sequence[dict[str, Any]]) -> str:
    seconds = wall_seconds(events)
    if seconds is None:
        return ""
    members = sum(event.get("seconds", 0.0) for event in events if event["event"] == "member_finished")
    return f"{_duration(seconds)}; the members took {_duration(members)} in sum" if members else _duration(seconds)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _when(events: Sequence[dict[str, Any]]) -> str:
    times = [_time(event) for event in events if event["event"].startswith("training_")]
    return f"{times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC" if times else ""


def _interruptions(events: Sequence[dict[str, Any]]) -> str:
    starts = sum(event["event"] == "training_started" for event in events)
    failed = sum(event["event"] == "member_failed" for event in events)
    told = [f"started {count(starts)} times"] if starts > 1 else []
    return "; ".join([*told, f"{count(failed)} failures of members"] if failed else told)


def _seeds(seed: int | None, indices: Sequence[int]) -> str:
    return "" if seed is None else ", ".join(str(seed + index) for index in indices)


def _time(event: dict[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(event["time"])


def _first_line(doc: str) -> str:
    return doc.strip().split("\n")[0]


_AFTER = {
    "member_temperatures": "a temperature for each member",
    "temperature": "one temperature",
    "weights": "fitted weights",
}


def calibration_section(sources: Sequence[Source]) -> Section | None:
    """What temperatures and weights change, of the runs that have a `calibration.json`."""
    blocks = tuple(
        _calibration(source.added["calibration"], source.name if len(sources) > 1 else "")
        for source in sources
        if "calibration" in source.added
    )
    return Section(name="calibration", title="After calibration", blocks=blocks) if blocks else None


def robustness_section(sources: Sequence[Source]) -> Section | None:
    """What worse and foreign images do, of the runs that have a `robustness.json`."""
    several = len(sources) > 1
    blocks = tuple(_robustness(source, several) for source in sources if "robustness" in source.added)
    return Section(name="robustness", title="On worse and on foreign images", blocks=blocks) if blocks else None


def severities(document: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """Mean accuracy of the members and of their committee by severity, over the kinds of corruption; 0 is clean."""
    rows = document["corruptions"]
    by_severity = {0: [document["clean"]]}
    for row in sorted(rows, key=lambda row: row["severity"]):
        by_severity.setdefault(row["severity"], []).append(row)
    return {
        severity: (
            _mean([_mean_member(each) for each in some]),
            _mean([each["committee"]["accuracy"] for each in some]),
        )
        for severity, some in by_severity.items()
    }


def _robustness(source: Source, several: bool) -> Block:
    document = source.added["robustness"]
    text = robustness_sentence(document)
    name = f"robustness-{file_name(source.name)}" if several else "robustness"
    picture = Picture(name, text, lambda width: robustness(severities(document), width))
    return Block(sentence=text, pictures=(picture,), table=_kinds_table(document), title=source.name if several else "")


def robustness_sentence(document: dict[str, Any]) -> str:
    """How much accuracy corruptions cost, and whether foreign images are noticed."""
    clean, mean = document["clean"], document["mean"]
    text = (
        f"On corrupted images the committee is right on {percent(mean['committee']['accuracy'])}, a member on"
        f" {percent(_mean_member(mean))}, of {percent(clean['committee']['accuracy'])} and"
        f" {percent(_mean_member(clean))} on the images as they are (means over"
        f" {plural(len({row['kind'] for row in document['corruptions']}), 'kind')} of corruption and their severities)."
    )
    told = [f"{each['source']} {each['confidence']['auroc']:.2f}" for each in document["foreign"]]
    return text + (f" AUROC of telling foreign images by the committee's confidence: {listing(told)}." if told else "")


def _kinds_table(document: dict[str, Any]) -> Table:
    rows = document["corruptions"]
    levels = sorted({row["severity"] for row in rows})
    accuracies = {(row["kind"], row["severity"]): row["committee"]["accuracy"] for row in rows}
    return Table(
        columns=("corruption", *(f"severity {level}" for level in levels)),
        rows=tuple(
            (kind.replace("_", " "), *(percent(accuracies[kind, level]) for level in levels))
            for kind in dict.fromkeys(row["kind"] for row in rows)
        ),
        note=f"Accuracy of the committee on {document['examples']:,} {document['split']} images, corrupted.",
    )


def _mean_member(scores: dict[str, Any]) -> float:
    return _mean([member["accuracy"] for member in scores["members"]])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _calibration(document: dict[str, Any], title: str) -> Block:
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
    rows += [(f"committee, {_AFTER.get(name, name)}", scores) for name, scores in committee["after"].items()]
    for member in document["members"]:
        rows.append((f"member {member['index']} as it is", member["before"]))
        rows.append((f"member {member['index']}, temperature {member['temperature']:.2f}", member["after"]))
    return Block(sentence=text, table=_scores_table(rows), title=title)


def _scores_table(rows: Sequence[tuple[str, dict[str, float]]]) -> Table:
    names = ("nll", "ece", "adaptive_ece", "brier")
    return Table(
        columns=("who", "accuracy", "NLL", "ECE", "adaptive ECE", "Brier"),
        rows=tuple((who, percent(each["accuracy"]), *(f"{each[name]:.4f}" for name in names)) for who, each in rows),
    )
