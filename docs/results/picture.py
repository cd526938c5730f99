"""The picture of the front page: accuracy against multiply-adds, from the recorded results beside this file.

python docs/results/picture.py docs/figure1.png
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from keras_committee.figures.style import BACKGROUND, SERIES_COLORS

RESULTS = Path(__file__).parent


def draw(figure1: dict, evaluation: dict, selection: dict) -> Figure:
    """Return the figure.

    Args:
        figure1: `figure1.json` of `benchmarks/figure1.py`.
        evaluation: `evaluation.json` of the speed nets.
        selection: Selection file of their cascade.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained", facecolor=BACKGROUND)
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=SERIES_COLORS)
    for width, result in figure1["widths"].items():
        committees = [(row["mflops"], row["accuracy"], row["std"]) for row in result["rows"]]
        cascades = [(row["mflops"], row["accuracy"]) for row in result["cascades"]]
        _draw_committees(axes, committees, cascades, f"WRN-16-{width}, 1 to {len(committees)} members")
    committees = [
        (row["mflops"], row["accuracy"]["mean"], row["accuracy"].get("std") or 0.0) for row in evaluation["committees"]
    ]
    report = selection["report"]
    cascades = [(report["mflops"], report["test"]["accuracy"]["value"])]
    _draw_committees(axes, committees, cascades, f"speed net, 1 to {len(committees)} members")
    axes.plot([], [], "^", color="gray", markerfacecolor="none", label="cascades (mean cost)")
    axes.set_xscale("log")
    axes.set_xlabel("MFLOPs per image (2 x multiply-adds / 1e6)")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _draw_committees(axes, committees, cascades, label):
    mflops, accuracy, deviation = np.array(committees).T
    (line,) = axes.plot(mflops, 100 * accuracy, "o-", markersize=4, label=label)
    low, high = 100 * (accuracy - deviation), 100 * (accuracy + deviation)
    axes.fill_between(mflops, low, high, color=line.get_color(), alpha=0.15)
    cost, accuracies = np.array(cascades).T
    axes.plot(cost, 100 * accuracies, "^", color=line.get_color(), markersize=7, markerfacecolor="none")


def main(file: str) -> None:
    names = "figure1.json", "cifar_fast/evaluation.json", "cifar_fast/selection_with_views.json"
    draw(*(json.loads((RESULTS / name).read_text()) for name in names)).savefig(file, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1])
