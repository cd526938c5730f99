"""Which committee buys the most accuracy for its multiply-adds? Sections on cost, size and cascades."""

import itertools
from collections.abc import Sequence
from typing import Any

from keras_committee.evaluation.report.cost_plots import accuracy_against_mflops, exit_rates, gain_by_size
from keras_committee.evaluation.report.layout import (  # fmt: skip
    MFLOPS_NOTE,
    Block,
    Section,
    Table,
    count_with_noun,
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
    """Accuracy against MFLOPs: every committee size of every architecture, and what was chosen."""
    front_points = pareto_front(cost_points(series, selected))
    text = cost_sentence(series, selected, split, examples)
    picture = Picture(
        "accuracy-against-mflops",
        text,
        lambda width: accuracy_against_mflops(series, selected, front_points, split, width),
    )
    table = Table(
        columns=("committee", "subsets", "MFLOPs", "accuracy", "NLL", "ECE", "Brier", "front"),
        rows=(*_committee_rows(series, front_points), *_selected_rows(selected, front_points)),
        note=f"Mean ± standard deviation over the subsets of that size, on {examples:,} {split} images. {MFLOPS_NOTE}"
        " The front was drawn after the fact, on the same images.",
    )
    return Section(
        name="cost", title="Accuracy against cost", blocks=(Block(sentence=text, pictures=(picture,), table=table),)
    )


def size_section(series: Sequence[Series]) -> Section | None:
    """What each further member gains; None where there are no committees."""
    multi_member = [architecture for architecture in series if len(architecture.committees) > 1]
    if not multi_member:
        return None
    text = size_sentence(multi_member)
    table = Table(
        columns=("architecture", "members", "accuracy", "gained by the last one", "least .. most", "NLL"),
        rows=tuple(_gain_row(one, index) for one in multi_member for index in range(len(one.committees))),
        first_numeric_column=1,
        note="The standard deviation tells how much the choice of members matters; subsets share members.",
    )
    picture = Picture("gain-by-size", text, lambda width: gain_by_size(series, width))
    return Section(
        name="size", title="What another member gains", blocks=(Block(sentence=text, pictures=(picture,), table=table),)
    )


def cascade_section(selected: Sequence[SelectedCommittee]) -> Section | None:
    """Where the images leave each cascade; None where there is no cascade."""
    blocks = []
    for index, cascade in enumerate(cascade for cascade in selected if cascade.exits):
        text = cascade_sentence(cascade)
        name = "exit-rates" if index == 0 else f"exit-rates-{index + 1}"
        pictures = (Picture(name, text, lambda width, each=cascade: exit_rates(each, width)),)
        blocks.append(Block(sentence=text, pictures=pictures, table=_exit_table(cascade), title=cascade.name))
    return Section(name="cascade", title="Where images leave the cascade", blocks=tuple(blocks)) if blocks else None


def members_section(members: Sequence[dict[str, Any]], split: str, examples: int) -> Section:
    """Every member by itself."""
    several_runs = len({member["run"] for member in members}) > 1
    accuracies = [member["accuracy"] for member in members]
    text = f"The one member is right on {format_percent(accuracies[0])} of the {split} images."
    if len(members) > 1:
        lowest, highest = format_percent(min(accuracies)), format_percent(max(accuracies))
        text = f"Single members are right on {lowest} to {highest} of the {split} images."
    table = Table(
        columns=(
            *(["run"] if several_runs else []),
            "member",
            "name",
            "parameters",
            "MFLOPs",
            "accuracy",
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
                f"{member['mflops']:.2f}",
                *(f"{member[score]:.4f}" for score in _SCORES),
            )
            for member in members
        ),
        first_numeric_column=3 if several_runs else 2,
        note=f"On {examples:,} {split} images. {MFLOPS_NOTE}",
    )
    return Section(name="members", title="The members", blocks=(Block(sentence=text, table=table),))


def cost_sentence(series: Sequence[Series], selected: Sequence[SelectedCommittee], split: str, examples: int) -> str:
    """The best of each architecture, whether a larger network beats several smaller ones, and what was chosen."""
    sentences = [
        _best_committee_sentence(architecture) for architecture in series if not architecture.mixed or len(series) == 1
    ]
    sentences += [text for large in series if (text := competitors([one for one in series if not one.mixed], large))]
    sentences += [_selected_sentence(committee) for committee in selected]
    return " ".join(sentences) + f" All on {examples:,} {split} images."


def competitors(series: Sequence[Series], large_architecture: Series) -> str:
    """The best committee that costs no more than one large network: which is better? "" where there is none."""
    budget = large_architecture.single_member["mflops"]
    affordable = [
        (committee["accuracy"]["mean"], committee, architecture)
        for architecture in series
        for committee in architecture.committees
        if architecture.name != large_architecture.name and committee["size"] > 1 and committee["mflops"] <= budget
    ]
    if large_architecture.mixed or not affordable:
        return ""
    accuracy, best_committee, small_architecture = max(affordable, key=lambda each: each[0])
    difference = accuracy - large_architecture.single_member["accuracy"]["mean"]
    verdict = (
        "as accurate as"
        if abs(difference) < 5e-4
        else f"{format_points(abs(difference))} {'above' if difference > 0 else 'below'}"
    )
    return (
        f"At no more than the cost of one {large_architecture.name} ({format_mflops(budget)}), {number_word(best_committee['size'])} {small_architecture.name}"
        f" ({format_mflops(best_committee['mflops'])}) are {verdict} it."
    )


def size_sentence(series: Sequence[Series]) -> str:
    """What the second member and the last one gain."""
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
    """Where most images end, and what that saves."""
    first, last = cascade.exits[0], cascade.exits[-1]
    text = (
        f"{format_percent(first['rate'], 0)} of the images are answered by {count_with_noun(first['members'], 'member')}"
        f"{_accuracy_note(first)}, {format_percent(last['rate'], 0)} need all {number_word(last['members'])}{_accuracy_note(last)}."
    )
    return f"{text} {_selected_sentence(cascade)}"


def _best_committee_sentence(architecture: Series) -> str:
    if len(architecture.committees) == 1:
        return f"One {architecture.name} reaches {format_percent(architecture.single_member['accuracy']['mean'])} at {format_mflops(architecture.single_member['mflops'])}."
    full_committee, single_member = architecture.full_committee, architecture.single_member
    direction = "above" if architecture.gain >= 0 else "below"
    return (
        f"{number_word(full_committee['size']).capitalize()} of {architecture.name} reach {format_percent(full_committee['accuracy']['mean'])} at"
        f" {format_mflops(full_committee['mflops'])}, {format_points(abs(architecture.gain))} (± {100 * 1.96 * architecture.gain_error:.1f}, 95 % interval"
        f" over the images) {direction} one of them, which has {format_percent(single_member['accuracy']['mean'])} at"
        f" {format_mflops(single_member['mflops'])}."
    )


def _selected_sentence(committee: SelectedCommittee) -> str:
    accuracy = format_percent(committee.scores["accuracy"])
    if committee.kind == "committee":
        return (
            f"The chosen committee ({_member_list(committee)}) reaches {accuracy} at {format_mflops(committee.mflops)}."
        )
    difference = committee.scores["accuracy"] - committee.full["accuracy"]
    verdict = (
        "as accurate as"
        if abs(difference) < 5e-5
        else f"{format_points(abs(difference), 2)} {'above' if difference > 0 else 'below'}"
    )
    return (
        f"The {committee.name} ({_member_list(committee)}) reaches {accuracy} at {format_mflops(committee.mflops)} on average and at most"
        f" {format_mflops(committee.worst_mflops)}: {verdict} all its members voting on every image, with"
        f" {committee.full['mflops'] / committee.mflops:.1f} times fewer multiply-adds."
    )


def _member_list(committee: SelectedCommittee) -> str:
    groups = [(name, len(list(same))) for name, same in itertools.groupby(committee.members)]
    return join_with_and([f"{number_word(repeats)} {name}" for name, repeats in groups])


def _committee_rows(series: Sequence[Series], front_points: Sequence[CostPoint]) -> list[tuple[str, ...]]:
    on_front = {(point.mflops, point.accuracy) for point in front_points}
    return [
        (
            f"{committee['size']} x {architecture.name}",
            str(committee["accuracy"]["subsets"]),
            f"{committee['mflops']:.2f}",
            *(format_mean_std(committee[score]) for score in _SCORES),
            "yes" if (committee["mflops"], committee["accuracy"]["mean"]) in on_front else "",
        )
        for architecture in series
        for committee in architecture.committees
    ]


def _selected_rows(selected: Sequence[SelectedCommittee], front_points: Sequence[CostPoint]) -> list[tuple[str, ...]]:
    names = {point.name for point in front_points}
    return [
        (
            committee.name,
            "",
            f"{committee.mflops:.2f}",
            *(f"{committee.scores[score]:.4f}" for score in _SCORES),
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
        columns=("members asked", "images that end here", "accuracy of these", "NLL", "ECE"),
        rows=tuple(rows),
        first_numeric_column=0,
        note="Members in the order asked: " + ", ".join(cascade.members) + ".",
    )


def _format_score(value: float | None) -> str:
    return "no images" if value is None else f"{value:.4f}"


def _accuracy_note(stage: dict) -> str:
    return "" if stage["accuracy"] is None else f" ({format_percent(stage['accuracy'])} of them right)"


def _ordinal(number: int) -> str:
    return {3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"}.get(number, f"{number}th")
