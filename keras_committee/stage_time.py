"""Time of the stages of a cascade in the exported graph, fitted to measurements."""

import dataclasses
from collections.abc import Sequence

import numpy as np

_FEW = 2  # measured numbers of images, the smallest ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedGraph:
    """Measured time of a graph.

    Attributes:
        architectures: Architectures of the members that run side by side, as in `PoolMember`.
        rows: Numbers of images per call.
        milliseconds: Median time of a call for each of `rows`.
        second_stage: Architectures of the members of a second stage, which all images reach.
    """

    architectures: tuple[str, ...]
    rows: tuple[int, ...]
    milliseconds: tuple[float, ...]
    second_stage: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LinearTime:
    """Time of a call in milliseconds: `fixed + per_row * rows`."""

    fixed: float
    per_row: float

    def __add__(self, other: "LinearTime") -> "LinearTime":
        return LinearTime(self.fixed + other.fixed, self.per_row + other.per_row)


class StageTimeModel:
    """Time of a stage: a fixed part of each call, and a part for each image that reaches it.

    Members of a stage run side by side, on idle cores; their time is the sum of their times alone, multiplied by a
    factor that was measured for each number of members. A later stage also gathers its images and scatters its outputs;
    the fixed part of that may be negative, since the time of a graph alone includes that of a request. Time grows more
    steeply over the first images, so the time of later stages, which few images reach, follows the two smallest
    measured numbers of images.

    Args:
        graphs: Each architecture alone, groups of members, and one graph of two stages. Only the first are required.
        batch_size: Number of images per request.
    """

    def __init__(self, graphs: Sequence[TimedGraph], batch_size: int):
        self.graphs, self.batch_size = tuple(graphs), batch_size
        one_stage = [graph for graph in graphs if not graph.second_stage]
        alone = [graph for graph in one_stage if len(graph.architectures) == 1]
        self._alone = {graph.architectures[0]: _fit_through_last(graph) for graph in alone}
        self._alone_for_few = {graph.architectures[0]: _fit(graph, _FEW) for graph in alone}
        groups = [graph for graph in one_stage if len(graph.architectures) > 1]
        ratios = {len(graph.architectures): self._time_ratio(graph) for graph in groups}
        self._ratios = {1: 1.0, **dict(sorted(ratios.items()))}
        overheads = [self._overhead(graph) for graph in graphs if graph.second_stage]
        self._later_stage = overheads[0] if overheads else LinearTime(0.0, 0.0)

    def stage(self, architectures: Sequence[str], *, is_first: bool = True) -> LinearTime:
        """Return the time of a stage of members of these architectures."""
        time = self._sum(architectures, self._alone if is_first else self._alone_for_few)
        ratio = float(np.interp(len(architectures), list(self._ratios), list(self._ratios.values())))
        overhead = LinearTime(0.0, 0.0) if is_first else self._later_stage
        return LinearTime(
            max(0.0, ratio * time.fixed + overhead.fixed), max(0.0, ratio * time.per_row + overhead.per_row)
        )

    def committee_ms(self, architectures: Sequence[str]) -> float:
        """Return the milliseconds per image of a committee of members of these architectures."""
        time = self.stage(architectures)
        return time.fixed / self.batch_size + time.per_row

    def _sum(self, architectures, times):
        return sum((times[each] for each in architectures), LinearTime(0.0, 0.0))

    def _time_ratio(self, graph):
        # Of the largest number of images, that of a request.
        time = self._sum(graph.architectures, self._alone)
        return graph.milliseconds[-1] / (time.fixed + time.per_row * graph.rows[-1])

    def _overhead(self, graph):
        both = _fit(graph, _FEW)
        alone = self._sum([*graph.architectures, *graph.second_stage], self._alone_for_few)
        return LinearTime(both.fixed - alone.fixed, both.per_row - alone.per_row)


def _fit_through_last(graph: TimedGraph) -> LinearTime:
    """Return the fitted line, scaled so that it has the measured time of the largest number of images."""
    time = _fit(graph)
    scale = graph.milliseconds[-1] / (time.fixed + time.per_row * graph.rows[-1])
    return LinearTime(scale * time.fixed, scale * time.per_row)


def _fit(graph: TimedGraph, points: int | None = None) -> LinearTime:
    """Return the line of least relative squares through the first points, neither part of it negative."""
    rows, times = np.array(graph.rows[:points], float), np.array(graph.milliseconds[:points])
    columns = np.stack([1 / times, rows / times], axis=1)
    (fixed, per_row), *_ = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)
    if fixed < 0:
        return LinearTime(0.0, float(np.mean(times / rows)))
    return LinearTime(float(fixed), float(per_row)) if per_row > 0 else LinearTime(float(np.mean(times)), 0.0)
