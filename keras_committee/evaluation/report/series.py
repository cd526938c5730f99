"""Which committees are compared: those of each architecture, of each size, and those that were chosen?"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """The committees of one architecture, of every size.

    Attributes:
        name: The architecture: the name that its members share.
        members: Their places among all members of the report, ascending.
        committees: As in `evaluation.json`, by rising size.
        parameters: Of one member, trainable; the mean where they differ.
        mixed: Whether these are committees of a run whose members differ.
        gain: How much more often the committee of all is right than its mean member, a difference of shares.
        gain_error: Its standard error over the examples, each compared with itself.
    """

    name: str
    members: tuple[int, ...]
    committees: tuple[dict[str, Any], ...]
    parameters: float
    mixed: bool = False
    gain: float = 0.0
    gain_error: float = 0.0

    @property
    def single(self) -> dict[str, Any]:
        return self.committees[0]

    @property
    def whole(self) -> dict[str, Any]:
        return self.committees[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """A committee or cascade from a `selection.json`, measured on the votes of this report.

    Attributes:
        name: What the report calls it.
        kind: "committee" or "cascade".
        members: Names of its members, in the order asked.
        mflops: Average MFLOPs of an image.
        worst_mflops: MFLOPs of an image that every stage is asked about.
        scores: Accuracy, NLL, ECE and Brier.
        exits: For each stage of a cascade: members, rate, accuracy, nll, ece; the last three None where no image ended.
        full: Accuracy and MFLOPs of all its members always voting.
    """

    name: str
    kind: str
    members: tuple[str, ...]
    mflops: float
    worst_mflops: float
    scores: dict[str, float]
    exits: tuple[dict[str, Any], ...] = ()
    full: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One thing that can be shipped, in the picture of accuracy against cost."""

    name: str
    mflops: float
    accuracy: float


def architectures(names: Sequence[str]) -> tuple[str, ...]:
    """The architecture of each member of a run.

    It is the member's name, but for members that are merely numbered: "linear_0" and "linear_1" are both "linear".
    """
    stems = {re.sub(r"[_-]?\d+$", "", name) for name in names}
    numbered = len(names) > 1 and len(set(names)) == len(names) and len(stems) == 1 and "" not in stems
    return tuple(stems) * len(names) if numbered else tuple(names)


def trade_points(series: Sequence[Series], chosen: Sequence[Chosen]) -> list[Point]:
    """Every committee in the picture; one of several subsets stands at their mean."""
    points = [
        Point(name=_named(each["size"], one), mflops=each["mflops"], accuracy=each["accuracy"]["mean"])
        for one in series
        for each in one.committees
    ]
    return points + [Point(name=each.name, mflops=each.mflops, accuracy=each.scores["accuracy"]) for each in chosen]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: by rising cost, each more accurate than all cheaper ones."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.mflops, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def _named(size: int, series: Series) -> str:
    return series.name if size == 1 and not series.mixed else f"{size} x {series.name}"
