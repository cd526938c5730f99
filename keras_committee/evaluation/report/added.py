"""What was measured beside the evaluation: calibration, and robustness to worse images?"""

from collections.abc import Sequence
from typing import Any

from keras_committee.evaluation.report.section import Block, Section, Table, figures, percent
from keras_committee.evaluation.report.sources import Source

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
    """Every figure of a `robustness.json`, of the runs that have one."""
    blocks = tuple(
        Block(
            sentence="Measured by `keras-committee evaluate` on worse and on foreign images.",
            table=Table(columns=("what", "value"), rows=tuple(flat(source.added["robustness"])), numbers=1),
            title=source.name if len(sources) > 1 else "",
        )
        for source in sources
        if "robustness" in source.added
    )
    return Section(name="robustness", title="On worse and on foreign images", blocks=blocks) if blocks else None


def flat(document: Any, path: str = "") -> list[tuple[str, str]]:
    """The numbers and words in a JSON document, each under its path; lists of more than eight are left out."""
    if isinstance(document, dict):
        return [
            row for key, value in document.items() for row in flat(value, f"{path} {key}".strip().replace("_", " "))
        ]
    if isinstance(document, list):
        short = document if len(document) <= 8 else []
        return [row for place, value in enumerate(short) for row in flat(value, f"{path} {_place(value, place)}")]
    if isinstance(document, float):
        return [(path, figures(document, 4))]
    return [(path, "" if document is None else str(document))]


def _place(value: Any, place: int) -> str:
    return f"#{value['index']}" if isinstance(value, dict) and "index" in value else f"#{place}"


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
