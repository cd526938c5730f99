"""What does one need to know to train a run again? Its card."""

import datetime
from collections.abc import Sequence
from typing import Any

from keras_committee.evaluation.report.section import Block, Section, Table, count
from keras_committee.evaluation.report.sources import Source


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
