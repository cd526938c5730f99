"""Sections on accuracy: cost, committee size, cascades and single members."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from keras_committee.costs import format_cost
from keras_committee.evaluation.report.cost_plots import accuracy_against_mflops, exit_rates, gain_by_size
from keras_committee.evaluation.report.layout import (  # fmt: skip
    MFLOPS_NOTE,
    Block,
    Section,
    Table,
    capitalize_first,
    count_with_noun,
    format_interval,
    format_mean_std,
    format_mflops,
    format_percent,
    format_points,
    join_with_and,
    number_word,
)
from keras_committee.evaluation.report.run_data import CostPoint, SelectedCommittee, Series, cost_points, pareto_front
from keras_committee.figures.style import Picture

_SCORES = ("accuracy", "nll", "ece", "brier")


def cost_section(series: Sequence[Series], selected: Sequence[SelectedCommittee], split: str, examples: int) -> Section:
    """Accuracy against MFLOPs for every committee size of every architecture, and for the selections."""
    front_points = pareto_front(cost_points(series, selected))
    text = cost_sentence(series, selected, split, examples)
    picture = Picture(
        "accuracy-against-mflops",
        text,
        lambda width: accuracy_against_mflops(series, selected, front_points, split, width),
    )
    pictures = (picture,) if front_points else ()  # there is a front as soon as a cost is known
    table = Table(
        columns=("committee", "subsets", "MFLOPs", "accuracy", "interval", "NLL", "ECE", "Brier", "front"),
        rows=(*_committee_rows(series, front_points, examples), *_selected_rows(selected, front_points, examples)),
        note=f"Mean ± standard deviation over the subsets of that size, on {examples:,} {split} images;"
        f" the interval is the 95 % interval of the accuracy over these images. {MFLOPS_NOTE}"
        " The Pareto front is computed on the same images.",
    )
    return Section(
        name="cost", title="Accuracy against cost", blocks=(Block(sentence=text, pictures=pictures, table=table),)
    )


def size_section(series: Sequence[Series]) -> Section | None:
    """Accuracy gained by each further member; None without committees."""
    multi_member = [architecture for architecture in series if len(architecture.committees) > 1]
    if not multi_member:
        return None
    text = size_sentence(multi_member)
    table = Table(
        columns=("architecture", "members", "accuracy", "gain of the last member", "min .. max", "NLL"),
        rows=tuple(_gain_row(one, index) for one in multi_member for index in range(len(one.committees))),
        first_numeric_column=1,
        note="The standard deviation is over subsets, which share members; it is not a standard error.",
    )
    picture = Picture("gain-by-size", text, lambda width: gain_by_size(series, width))
    return Section(
        name="size", title="Gain per member", blocks=(Block(sentence=text, pictures=(picture,), table=table),)
    )


def cascade_section(selected: Sequence[SelectedCommittee]) -> Section | None:
    """Exit rates of each cascade; None without cascades."""
    blocks = []
    for index, cascade in enumerate(cascade for cascade in selected if cascade.exits):
        text = cascade_sentence(cascade)
        name = "exit-rates" if index == 0 else f"exit-rates-{index + 1}"
        pictures = (Picture(name, text, lambda width, cascade=cascade: exit_rates(cascade, width)),)
        blocks.append(Block(sentence=text, pictures=pictures, table=_exit_table(cascade), title=cascade.name))
    return Section(name="cascade", title="Cascade exits", blocks=tuple(blocks)) if blocks else None


def members_section(members: Sequence[dict[str, Any]], split: str, examples: int) -> Section:
    """Scores of every member."""
    several_runs = len({member["run"] for member in members}) > 1
    has_top_5 = all("top_5_accuracy" in member for member in members)
    accuracies = [member["accuracy"] for member in members]
    text = f"The single member classifies {format_percent(accuracies[0])} of the {split} images correctly."
    if len(members) > 1:
        lowest, highest = format_percent(min(accuracies)), format_percent(max(accuracies))
        text = f"Single members classify {lowest} to {highest} of the {split} images correctly."
    table = Table(
        columns=(
            *(["run"] if several_runs else []),
            "member",
            "name",
            "parameters",
            "MFLOPs",
            "accuracy",
            "interval",
            *(["top-5"] if has_top_5 else []),
            "NLL",
            "ECE",
            "Brier",
        ),
        rows=tuple(
            (
                *([member["run"]] if several_runs else []),
                str(member["index"]),
                member["name"],
                f"{member['parameters']:,}",
                format_cost(member["mflops"]),
                f"{member['accuracy']:.4f}",
                format_interval(member["accuracy"], examples),
                *([f"{member['top_5_accuracy']:.4f}"] if has_top_5 else []),
                *(f"{member[score]:.4f}" for score in _SCORES[1:]),
            )
            for member in members
        ),
        first_numeric_column=3 if several_runs else 2,
        note=f"On {examples:,} {split} images, with the 95 % interval of the accuracy over them. {MFLOPS_NOTE}",
    )
    return Section(name="members", title="Members", blocks=(Block(sentence=text, table=table),))


def cost_sentence(series: Sequence[Series], selected: Sequence[SelectedCommittee], split: str, examples: int) -> str:
    """Summarize each architecture, larger networks against smaller committees, and the selections."""
    sentences = [
        _best_committee_sentence(architecture) for architecture in series if not architecture.mixed or len(series) == 1
    ]
    sentences += [text for large in series if (text := competitors([one for one in series if not one.mixed], large))]
    sentences += [_selected_sentence(committee) for committee in selected]
    return " ".join(sentences) + f" All on {examples:,} {split} images."


def competitors(series: Sequence[Series], large_architecture: Series) -> str:
    """Compare one large network with the best committee that costs no more; "" if there is none."""
    budget = large_architecture.single_member["mflops"]
    affordable = [
        (committee["accuracy"]["mean"], committee, architecture)
        for architecture in series
        for committee in architecture.committees
        if architecture.name != large_architecture.name and committee["size"] > 1 and committee["mflops"] <= budget
    ]
    if large_architecture.mixed or not affordable or math.isinf(budget):
        return ""
    accuracy, best_committee, small_architecture = max(affordable, key=lambda candidate: candidate[0])
    difference = accuracy - large_architecture.single_member["accuracy"]["mean"]
    verdict = (
        "as accurate as"
        if abs(difference) < 5e-4
        else f"{format_points(abs(difference))} {'above' if difference > 0 else 'below'}"
    )
    size = number_word(best_committee["size"])
    return (
        f"At no more than the cost of one {large_architecture.name} ({format_mflops(budget)}), {size}"
        f" {small_architecture.name} ({format_mflops(best_committee['mflops'])}) are {verdict} it."
    )


def size_sentence(series: Sequence[Series]) -> str:
    """Summarize the gain of the second and of the last member."""
    sentences = []
    for architecture in series:
        means = [committee["accuracy"]["mean"] for committee in architecture.committees]
        text = f"For {architecture.name} the second member gains {format_points(means[1] - means[0])}"
        if len(means) > 2:
            text += f", the {_ordinal(len(means))} {format_points(means[-1] - means[-2], 2)}"
        change = architecture.full_committee["nll"]["mean"] / architecture.single_member["nll"]["mean"] - 1
        sentences.append(f"{text}; NLL {'falls' if change < 0 else 'rises'} by {format_percent(abs(change), 0)}.")
    return " ".join(sentences)


def cascade_sentence(cascade: SelectedCommittee) -> str:
    """Summarize exit rates and savings of a cascade."""
    first, last = cascade.exits[0], cascade.exits[-1]
    first_members, last_members = count_with_noun(first["members"], "member"), number_word(last["members"])
    text = (
        f"{format_percent(first['rate'], 0)} of the images exit after {first_members}{_accuracy_note(first)},"
        f" {format_percent(last['rate'], 0)} after all {last_members}{_accuracy_note(last)}."
    )
    return f"{text} {_selected_sentence(cascade)}{_latency_sentence(cascade.latency)}"


def _best_committee_sentence(architecture: Series) -> str:
    full, single = architecture.full_committee, architecture.single_member
    single_accuracy, single_cost = format_percent(single["accuracy"]["mean"]), format_mflops(single["mflops"])
    if len(architecture.committees) == 1:
        return f"One {architecture.name} reaches {single_accuracy} at {single_cost}."
    direction = "above" if architecture.gain >= 0 else "below"
    best = max(
        architecture.committees, key=lambda committee: committee["accuracy"]["mean"]
    )  # the smallest of equal ones
    better = ""
    if best["accuracy"]["mean"] > full["accuracy"]["mean"]:
        count = count_with_noun(best["size"], "member")
        better = f" The best size is {count}, with {format_percent(best['accuracy']['mean'])}."
    return (
        f"{number_word(full['size']).capitalize()} {architecture.name} reach {format_percent(full['accuracy']['mean'])}"
        f" at {format_mflops(full['mflops'])}, {format_points(abs(architecture.gain))}"
        f" (± {100 * 1.96 * architecture.gain_error:.1f}, 95 % interval over the images) {direction} a single one,"
        f" which reaches {single_accuracy} at {single_cost}.{better}"
    )


def _selected_sentence(committee: SelectedCommittee) -> str:
    accuracy, cost = format_percent(committee.scores["accuracy"]), format_mflops(committee.mflops)
    if committee.kind == "committee":
        text = f"the selected committee ({_member_list(committee)}) reaches {accuracy} at {cost}."
        return f"No cascade was worth it: {text}" if committee.one_stage else capitalize_first(text)
    difference = committee.scores["accuracy"] - committee.full["accuracy"]
    verdict = (
        "as accurate as"
        if abs(difference) < 5e-5
        else f"{format_points(abs(difference), 2)} {'above' if difference > 0 else 'below'}"
    )
    if math.isinf(committee.worst_mflops):
        return f"The {committee.name} ({_member_list(committee)}) reaches {accuracy}: {verdict} all its members."
    return (
        f"The {committee.name} ({_member_list(committee)}) reaches {accuracy} at {cost} on average"
        f" and {format_mflops(committee.worst_mflops)} at most: {verdict} all its members on every image, with"
        f" {committee.full['mflops'] / committee.mflops:.1f} times fewer multiply-adds."
    )


def _latency_sentence(latency: dict[str, Any] | None) -> str:
    if latency is None:
        return ""
    machine = latency["machine"]
    return (
        f" In {latency['precision']} and batches of {latency['batch_size']} it took {latency['measured_ms']:.3g} ms per"
        f" image on {count_with_noun(machine['cores'], 'core')} of {machine['processor']} (predicted:"
        f" {latency['predicted_ms']['validation']:.3g} ms), the best committee {latency['committee_measured_ms']:.3g}"
        f" ms: {latency['committee_measured_ms'] / latency['measured_ms']:.2f} times as fast."
    )


def _member_list(committee: SelectedCommittee) -> str:
    groups = [(name, len(list(same))) for name, same in itertools.groupby(committee.members)]
    return join_with_and([f"{number_word(repeats)} {name}" for name, repeats in groups])


def _committee_rows(
    series: Sequence[Series], front_points: Sequence[CostPoint], examples: int
) -> list[tuple[str, ...]]:
    on_front = {(point.mflops, point.accuracy) for point in front_points}
    return [
        (
            f"{committee['size']} x {architecture.name}",
            str(committee["accuracy"]["subsets"]),
            format_cost(committee["mflops"]),
            format_mean_std(committee["accuracy"]),
            format_interval(committee["accuracy"]["mean"], examples),
            *(format_mean_std(committee[score]) for score in _SCORES[1:]),
            "yes" if (committee["mflops"], committee["accuracy"]["mean"]) in on_front else "",
        )
        for architecture in series
        for committee in architecture.committees
    ]


def _selected_rows(
    selected: Sequence[SelectedCommittee], front_points: Sequence[CostPoint], examples: int
) -> list[tuple[str, ...]]:
    names = {point.name for point in front_points}
    return [
        (
            committee.name,
            "",
            format_cost(committee.mflops),
            f"{committee.scores['accuracy']:.4f}",
            format_interval(committee.scores["accuracy"], examples),
            *(f"{committee.scores[score]:.4f}" for score in _SCORES[1:]),
            "yes" if committee.name in names else "",
        )
        for committee in selected
    ]


def _gain_row(architecture: Series, index: int) -> tuple[str, ...]:
    committee = architecture.committees[index]
    gain = committee["accuracy"]["mean"] - architecture.committees[index - 1]["accuracy"]["mean"] if index else None
    return (
        architecture.name,
        str(committee["size"]),
        format_mean_std(committee["accuracy"]),
        "" if gain is None else f"{100 * gain:+.2f} points",
        f"{committee['accuracy']['min']:.4f} .. {committee['accuracy']['max']:.4f}",
        format_mean_std(committee["nll"]),
    )


def _exit_table(cascade: SelectedCommittee) -> Table:
    rows = [
        (
            str(stage["members"]),
            format_percent(stage["rate"]),
            *(_format_score(stage[name]) for name in ("accuracy", "nll", "ece")),
        )
        for stage in cascade.exits
    ]
    return Table(
        columns=("members", "images that exit", "their accuracy", "NLL", "ECE"),
        rows=tuple(rows),
        first_numeric_column=0,
        note="Members in execution order: " + ", ".join(cascade.members) + ".",
    )


def _format_score(value: float | None) -> str:
    return "no images" if value is None else f"{value:.4f}"


def _accuracy_note(stage: dict) -> str:
    return "" if stage["accuracy"] is None else f" ({format_percent(stage['accuracy'])} of them correct)"


def _ordinal(number: int) -> str:
    return {3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"}.get(number, f"{number}th")
