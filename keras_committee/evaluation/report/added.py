"""What was measured beside the evaluation: calibration, and robustness to worse images?"""

from collections.abc import Sequence
from typing import Any

from keras_committee.evaluation.report.learning import file_name
from keras_committee.evaluation.report.section import Block, Section, Table, listing, percent, plural
from keras_committee.evaluation.report.sources import Source
from keras_committee.figures.curves import robustness
from keras_committee.figures.ink import Picture

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
