"""What does accuracy cost? The paper's figure, and what is gained with each further member."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keras_committee.evaluation.report.run_data import Chosen, Point, Series
from keras_committee.figures.style import FRONT, INK, NARROW, PAPER, QUIET, Label, colour, marker, place, round_numbers

TIMES = "\N{MULTIPLICATION SIGN}"


def accuracy_against_mflops(
    series: Sequence[Series], chosen: Sequence[Chosen], front: Sequence[Point], split: str, width: float
) -> Figure:
    """Accuracy over the logarithm of MFLOPs: single networks hollow, committees filled, cascades as stars."""
    narrow = width <= NARROW
    figure = Figure((width, 4.6 if narrow else 5.0))
    axes = figure.subplots()
    _draw_front(axes, front)
    for number, one in enumerate(series):
        _draw_series(axes, one, _ink(one, number), marker(number))
    for each in chosen:
        _draw_chosen(axes, each)
    _scale(axes, [*_ends(series), *((each.mflops, 100 * each.scores["accuracy"]) for each in chosen)])
    axes.set_xlabel(f"MFLOPs for one image (2 {TIMES} multiply-adds / 1e6), logarithmic")
    axes.set_title(f"{split} accuracy, %", loc="left", fontsize=8.5, color=QUIET)
    _key(figure, chosen, any(len(one.committees) > 1 for one in series), 2 if narrow else 4)
    _label(axes, series, chosen, front, narrow)
    return figure


def gain_by_size(series: Sequence[Series], width: float) -> Figure:
    """Two panels over the size of the committee: accuracy gained over one member in points, and NLL."""
    narrow = width <= NARROW
    figure = Figure((width, 5.2 if narrow else 3.1))
    left, right = figure.subplots(2, 1, sharex=True) if narrow else figure.subplots(1, 2)
    several = [(number, one) for number, one in enumerate(series) if len(one.committees) > 1]
    for number, one in several:
        sizes = [each["size"] for each in one.committees]
        gains = [100 * (each["accuracy"]["mean"] - one.single["accuracy"]["mean"]) for each in one.committees]
        style = {"color": _ink(one, number), "marker": marker(number), "markersize": 5, "linewidth": 1.4}
        left.errorbar(sizes, gains, [100 * each["accuracy"]["std"] for each in one.committees], elinewidth=1, **style)
        losses = [each["nll"] for each in one.committees]
        right.errorbar(
            sizes, [loss["mean"] for loss in losses], [loss["std"] for loss in losses], elinewidth=1, **style
        )
    _finish_sizes(left, right, several, narrow)
    return figure


def exit_rates(chosen: Chosen, width: float) -> Figure:
    """One bar, cut into the shares of the images that end at each stage."""
    figure = Figure((width, 1.3))
    axes = figure.subplots()
    start = 0.0
    for number, each in enumerate(chosen.exits):
        rate = 100 * each["rate"]
        axes.barh(0, rate, left=start, height=0.6, color=colour(0), alpha=1 / (1 + 0.8 * number), linewidth=0)
        if rate > (16 if width <= NARROW else 8):
            light = number == 0
            members = f"{each['members']} member{'s' if each['members'] > 1 else ''}"
            axes.text(start + rate / 2, 0, f"{members}\n{rate:.0f} %", ha="center", va="center",
                      color=PAPER if light else INK, fontsize=8)  # fmt: skip
        start += rate
    axes.set(xlim=(0, 100), ylim=(-0.4, 0.4), yticks=[])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("images that are answered after so many members, %")
    return figure


def _ink(series: Series, number: int) -> str:
    return QUIET if series.mixed else colour(number)


def _draw_front(axes: Axes, front: Sequence[Point]) -> None:
    axes.plot(
        [point.mflops for point in front], [100 * point.accuracy for point in front],
        color=FRONT, linewidth=9, solid_joinstyle="round", solid_capstyle="round", zorder=1,
    )  # fmt: skip


def _draw_series(axes: Axes, one: Series, ink: str, shape: str) -> None:
    costs = [each["mflops"] for each in one.committees]
    means = [100 * each["accuracy"]["mean"] for each in one.committees]
    errors = [100 * each["accuracy"]["std"] for each in one.committees]
    axes.plot(costs, means, color=ink, linewidth=1.4, zorder=3)
    axes.errorbar(costs, means, errors, fmt="none", ecolor=ink, elinewidth=1.1, capsize=0, zorder=3)
    axes.plot(costs[1:], means[1:], shape, color=ink, markersize=6.5, markeredgecolor=PAPER, zorder=4)
    axes.plot(
        costs[:1], means[:1], shape, color=PAPER, markersize=6.5, markeredgecolor=ink, markeredgewidth=1.6, zorder=4
    )


def _draw_chosen(axes: Axes, each: Chosen) -> None:
    shape, size = ("*", 14) if each.kind == "cascade" else ("X", 9)
    axes.plot(
        [each.mflops], [100 * each.scores["accuracy"]], shape, color=INK, markersize=size, markeredgecolor=PAPER,
        markeredgewidth=1.0, zorder=5,
    )  # fmt: skip


def _places(series: Sequence[Series]) -> list[tuple[float, float]]:
    return [(each["mflops"], 100 * each["accuracy"]["mean"]) for one in series for each in one.committees]


def _ends(series: Sequence[Series]) -> list[tuple[float, float]]:
    """Where the error bars end."""
    committees = [each for one in series for each in one.committees]
    scores = [(each["mflops"], each["accuracy"]) for each in committees]
    return [(cost, 100 * (score["mean"] + sign * score["std"])) for cost, score in scores for sign in (-1, 1)]


def _scale(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    costs, accuracies = zip(*points, strict=True)
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.35, max(costs) * 1.45)
    margin = max(0.12 * (max(accuracies) - min(accuracies)), 0.3)
    axes.set_ylim(min(accuracies) - margin, min(max(accuracies) + margin, 100.5))
    round_numbers(axes.xaxis, *axes.get_xlim())


def _key(figure: Figure, chosen: Sequence[Chosen], committees: bool, columns: int) -> None:
    hollow = Line2D([], [], marker="o", color=PAPER, markeredgecolor=QUIET, markeredgewidth=1.6, markersize=6)
    filled = Line2D([], [], marker="o", color=QUIET, markeredgecolor=PAPER, markersize=6.5, linewidth=1.4)
    star = Line2D([], [], marker="*", color=INK, markeredgecolor=PAPER, markersize=12, linewidth=0)
    cross = Line2D([], [], marker="X", color=INK, markeredgecolor=PAPER, markersize=8, linewidth=0)
    front = Line2D([], [], color=FRONT, linewidth=7)
    kinds = {each.kind for each in chosen}
    rows = [
        (hollow, "one network", True),
        (filled, "committee, ± std over its subsets" if columns > 2 else "committee ± std", committees),
        (star, "cascade, average cost", "cascade" in kinds),
        (cross, "chosen committee", "committee" in kinds),
        (front, "Pareto front", True),
    ]
    handles, names, _ = zip(*(row for row in rows if row[2]), strict=True)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, labelcolor=QUIET, handlelength=1.5)


def _label(
    axes: Axes, series: Sequence[Series], chosen: Sequence[Chosen], front: Sequence[Point], narrow: bool
) -> None:
    labels = [
        Label(
            x=each.mflops, y=100 * each.scores["accuracy"], text=each.name, colour=INK, weight="bold",
            first=("above left", "left", "above"),
        )
        for each in chosen
    ]  # fmt: skip
    labels += [
        Label(
            x=x,
            y=y,
            text=one.name,
            colour=_ink(one, number),
            size=9,
            weight="bold",
            first=("below right", "below", "right"),
        )
        for number, one in enumerate(series)
        for x, y in _places([one])[:1]
    ]
    labels += [
        Label(
            x=x,
            y=y,
            text=f"{TIMES}{each['size']}",
            colour=_ink(one, number),
            size=8,
            first=("above left", "above", "below right"),
        )
        for number, one in enumerate(series)
        for each, (x, y) in list(zip(one.committees, _places([one]), strict=True))[:: -1 if narrow else 1]
        if each["size"] > 1 and (not narrow or each["size"] in (2, 4, 8, len(one.committees)))
    ]
    points = [*_places(series), *((each.mflops, 100 * each.scores["accuracy"]) for each in chosen)]
    place(axes, labels, points, [_places([one]) for one in series if len(one.committees) > 1])


def _finish_sizes(left: Axes, right: Axes, several: Sequence[tuple[int, Series]], narrow: bool) -> None:
    left.set_title("accuracy gained over one member, points", loc="left", fontsize=8.5, color=QUIET)
    right.set_title("NLL (lower is better)", loc="left", fontsize=8.5, color=QUIET)
    most = max(len(one.committees) for _, one in several)
    for axes in (left, right):
        axes.set_xlim(0.6, most + 0.4 + 0.25 * most)
        axes.set_xticks(range(1, most + 1))
        axes.set_xlabel("members of the committee")
    if narrow:
        left.set_xlabel("")
    names = [
        Label(
            x=one.committees[-1]["size"], y=100 * (one.whole["accuracy"]["mean"] - one.single["accuracy"]["mean"]),
            text=one.name, colour=_ink(one, number), weight="bold", first=("right",),
        )
        for number, one in several
    ]  # fmt: skip
    place(left, names, *_drawn(left))
    losses = [
        dataclasses.replace(label, y=one.whole["nll"]["mean"]) for label, (_, one) in zip(names, several, strict=True)
    ]
    place(right, losses, *_drawn(right))


def _drawn(axes: Axes) -> tuple[list, list]:
    """The points and the lines of axes, for labels to keep clear of."""
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    return [tuple(point) for line in lines for point in line], lines
