"""Which committee buys the most accuracy for its multiply-adds? Sections on cost, size and cascades."""

import itertools
from collections.abc import Sequence
from typing import Any

from keras_committee.evaluation.report.cost_plots import accuracy_against_mflops, exit_rates, gain_by_size
from keras_committee.evaluation.report.layout import (  # fmt: skip
    MFLOPS,
    Block,
    Section,
    Table,
    count,
    listing,
    mflops,
    percent,
    plural,
    points,
    spread,
)
from keras_committee.evaluation.report.run_data import Chosen, Point, Series, front, trade_points
from keras_committee.figures.style import Picture

_SCORES = ("accuracy", "nll", "ece", "brier")


def cost_section(series: Sequence[Series], chosen: Sequence[Chosen], split: str, examples: int) -> Section:
    """Accuracy against MFLOPs: every committee size of every architecture, and what was chosen."""
    best = front(trade_points(series, chosen))
    text = cost_sentence(series, chosen, split, examples)
    picture = Picture(
        "accuracy-against-mflops", text, lambda width: accuracy_against_mflops(series, chosen, best, split, width)
    )
    table = Table(
        columns=("committee", "subsets", "MFLOPs", "accuracy", "NLL", "ECE", "Brier", "front"),
        rows=(*_committee_rows(series, best), *_chosen_rows(chosen, best)),
        note=f"Mean ± standard deviation over the subsets of that size, on {examples:,} {split} images. {MFLOPS}"
        " The front was drawn after the fact, on the same images.",
    )
    return Section(
        name="cost", title="Accuracy against cost", blocks=(Block(sentence=text, pictures=(picture,), table=table),)
    )


def size_section(series: Sequence[Series]) -> Section | None:
    """What each further member gains; None where there are no committees."""
    several = [one for one in series if len(one.committees) > 1]
    if not several:
        return None
    text = size_sentence(several)
    table = Table(
        columns=("architecture", "members", "accuracy", "gained by the last one", "least .. most", "NLL"),
        rows=tuple(_gain_row(one, place) for one in several for place in range(len(one.committees))),
        numbers=1,
        note="The standard deviation tells how much the choice of members matters; subsets share members.",
    )
    picture = Picture("gain-by-size", text, lambda width: gain_by_size(series, width))
    return Section(
        name="size", title="What another member gains", blocks=(Block(sentence=text, pictures=(picture,), table=table),)
    )


def cascade_section(chosen: Sequence[Chosen]) -> Section | None:
    """Where the images leave each cascade; None where there is no cascade."""
    blocks = []
    for number, each in enumerate(cascade for cascade in chosen if cascade.exits):
        text = cascade_sentence(each)
        name = "exit-rates" if number == 0 else f"exit-rates-{number + 1}"
        pictures = (Picture(name, text, lambda width, each=each: exit_rates(each, width)),)
        blocks.append(Block(sentence=text, pictures=pictures, table=_exit_table(each), title=each.name))
    return Section(name="cascade", title="Where images leave the cascade", blocks=tuple(blocks)) if blocks else None


def members_section(members: Sequence[dict[str, Any]], split: str, examples: int) -> Section:
    """Every member by itself."""
    runs = len({member["run"] for member in members}) > 1
    accuracies = [member["accuracy"] for member in members]
    text = f"The one member is right on {percent(accuracies[0])} of the {split} images."
    if len(members) > 1:
        least, most = percent(min(accuracies)), percent(max(accuracies))
        text = f"Single members are right on {least} to {most} of the {split} images."
    table = Table(
        columns=(
            *(["run"] if runs else []),
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
                *([member["run"]] if runs else []),
                str(member["index"]),
                member["name"],
                f"{member['parameters']:,}",
                f"{member['mflops']:.2f}",
                *(f"{member[score]:.4f}" for score in _SCORES),
            )
            for member in members
        ),
        numbers=3 if runs else 2,
        note=f"On {examples:,} {split} images. {MFLOPS}",
    )
    return Section(name="members", title="The members", blocks=(Block(sentence=text, table=table),))


def cost_sentence(series: Sequence[Series], chosen: Sequence[Chosen], split: str, examples: int) -> str:
    """The best of each architecture, whether a larger network beats several smaller ones, and what was chosen."""
    said = [_best_of(one) for one in series if not one.mixed or len(series) == 1]
    said += [text for large in series if (text := rivals([one for one in series if not one.mixed], large))]
    said += [_chosen_sentence(each) for each in chosen]
    return " ".join(said) + f" All on {examples:,} {split} images."


def rivals(series: Sequence[Series], large: Series) -> str:
    """The best committee that costs no more than one large network: which is better? "" where there is none."""
    budget = large.single["mflops"]
    affordable = [
        (each["accuracy"]["mean"], each, one)
        for one in series
        for each in one.committees
        if one.name != large.name and each["size"] > 1 and each["mflops"] <= budget
    ]
    if large.mixed or not affordable:
        return ""
    accuracy, several, small = max(affordable, key=lambda each: each[0])
    ahead = accuracy - large.single["accuracy"]["mean"]
    verdict = "as accurate as" if abs(ahead) < 5e-4 else f"{points(abs(ahead))} {'above' if ahead > 0 else 'below'}"
    return (
        f"At no more than the cost of one {large.name} ({mflops(budget)}), {count(several['size'])} {small.name}"
        f" ({mflops(several['mflops'])}) are {verdict} it."
    )


def size_sentence(series: Sequence[Series]) -> str:
    """What the second member and the last one gain."""
    said = []
    for one in series:
        means = [each["accuracy"]["mean"] for each in one.committees]
        text = f"For {one.name} the second member gains {points(means[1] - means[0])}"
        if len(means) > 2:
            text += f", the {_ordinal(len(means))} {points(means[-1] - means[-2], 2)}"
        change = one.whole["nll"]["mean"] / one.single["nll"]["mean"] - 1
        said.append(f"{text}; NLL {'falls' if change < 0 else 'rises'} by {percent(abs(change), 0)}.")
    return " ".join(said)


def cascade_sentence(each: Chosen) -> str:
    """Where most images end, and what that saves."""
    first, last = each.exits[0], each.exits[-1]
    text = (
        f"{percent(first['rate'], 0)} of the images are answered by {plural(first['members'], 'member')}"
        f"{_right(first)}, {percent(last['rate'], 0)} need all {count(last['members'])}{_right(last)}."
    )
    return f"{text} {_chosen_sentence(each)}"


def _best_of(one: Series) -> str:
    if len(one.committees) == 1:
        return f"One {one.name} reaches {percent(one.single['accuracy']['mean'])} at {mflops(one.single['mflops'])}."
    whole, single = one.whole, one.single
    where = "above" if one.gain >= 0 else "below"
    return (
        f"{count(whole['size']).capitalize()} of {one.name} reach {percent(whole['accuracy']['mean'])} at"
        f" {mflops(whole['mflops'])}, {points(abs(one.gain))} (± {100 * 1.96 * one.gain_error:.1f}, 95 % interval"
        f" over the images) {where} one of them, which has {percent(single['accuracy']['mean'])} at"
        f" {mflops(single['mflops'])}."
    )


def _chosen_sentence(each: Chosen) -> str:
    accuracy = percent(each.scores["accuracy"])
    if each.kind == "committee":
        return f"The chosen committee ({_members(each)}) reaches {accuracy} at {mflops(each.mflops)}."
    ahead = each.scores["accuracy"] - each.full["accuracy"]
    verdict = "as accurate as" if abs(ahead) < 5e-5 else f"{points(abs(ahead), 2)} {'above' if ahead > 0 else 'below'}"
    return (
        f"The {each.name} ({_members(each)}) reaches {accuracy} at {mflops(each.mflops)} on average and at most"
        f" {mflops(each.worst_mflops)}: {verdict} all its members voting on every image, with"
        f" {each.full['mflops'] / each.mflops:.1f} times fewer multiply-adds."
    )


def _members(each: Chosen) -> str:
    groups = [(name, len(list(same))) for name, same in itertools.groupby(each.members)]
    return listing([f"{count(number)} {name}" for name, number in groups])


def _committee_rows(series: Sequence[Series], best: Sequence[Point]) -> list[tuple[str, ...]]:
    on_front = {(point.mflops, point.accuracy) for point in best}
    return [
        (
            f"{each['size']} x {one.name}",
            str(each["accuracy"]["subsets"]),
            f"{each['mflops']:.2f}",
            *(spread(each[score]) for score in _SCORES),
            "yes" if (each["mflops"], each["accuracy"]["mean"]) in on_front else "",
        )
        for one in series
        for each in one.committees
    ]


def _chosen_rows(chosen: Sequence[Chosen], best: Sequence[Point]) -> list[tuple[str, ...]]:
    names = {point.name for point in best}
    return [
        (
            each.name,
            "",
            f"{each.mflops:.2f}",
            *(f"{each.scores[score]:.4f}" for score in _SCORES),
            "yes" if each.name in names else "",
        )
        for each in chosen
    ]


def _gain_row(one: Series, place: int) -> tuple[str, ...]:
    each = one.committees[place]
    step = each["accuracy"]["mean"] - one.committees[place - 1]["accuracy"]["mean"] if place else None
    return (
        one.name,
        str(each["size"]),
        spread(each["accuracy"]),
        "" if step is None else f"{100 * step:+.2f} points",
        f"{each['accuracy']['min']:.4f} .. {each['accuracy']['max']:.4f}",
        spread(each["nll"]),
    )


def _exit_table(each: Chosen) -> Table:
    rows = [
        (str(exit_["members"]), percent(exit_["rate"]), *(_or_none(exit_[name]) for name in ("accuracy", "nll", "ece")))
        for exit_ in each.exits
    ]
    return Table(
        columns=("members asked", "images that end here", "accuracy of these", "NLL", "ECE"),
        rows=tuple(rows),
        numbers=0,
        note="Members in the order asked: " + ", ".join(each.members) + ".",
    )


def _or_none(value: float | None) -> str:
    return "no images" if value is None else f"{value:.4f}"


def _right(exit_: dict) -> str:
    return "" if exit_["accuracy"] is None else f" ({percent(exit_['accuracy'])} of them right)"


def _ordinal(number: int) -> str:
    return {3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"}.get(number, f"{number}th")
