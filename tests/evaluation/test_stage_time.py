"""The time of stages follows the measured graphs, and cascades are selected by it."""

import dataclasses
from pathlib import Path

import pytest
from pools import synthetic_pool

from keras_committee.errors import RecipeError
from keras_committee.evaluation import Objective, select_cascade
from keras_committee.stage_time import LinearTime, StageTimeModel, TimedGraph

ROWS = (1, 8, 32)


def graph(architectures, fixed, per_row, second_stage=()):
    return TimedGraph(
        architectures=tuple(architectures),
        rows=ROWS,
        milliseconds=tuple(fixed + per_row * rows for rows in ROWS),
        second_stage=tuple(second_stage),
    )


def model(two_ratio, batch_size=32, fixed=2.0):
    """A time model in which two members take `two_ratio` times the sum of their times."""
    graphs = [
        graph("a", fixed, 0.5),
        graph("b", 3 * fixed, 1.5),
        graph("aa", 2 * two_ratio * fixed, 2 * two_ratio * 0.5),
        graph("a", 2 * fixed + 1.0, 1.1, "a"),  # 1 ms and 0.1 ms per image for the second stage
    ]
    return StageTimeModel(graphs, batch_size)


def test_a_stage_takes_the_measured_time_of_its_members_and_of_its_images():
    times = model(two_ratio=0.6)
    assert dataclasses.astuple(times.stage(["b"])) == pytest.approx((6.0, 1.5))
    assert dataclasses.astuple(times.stage(["a", "b"])) == pytest.approx((0.6 * 8, 0.6 * 2.0))
    assert dataclasses.astuple(times.stage(["a"], is_first=False)) == pytest.approx((3.0, 0.6))
    assert times.committee_ms(["a", "a"]) == pytest.approx(1.2 * (2.0 / 32 + 0.5))


def test_a_later_stage_takes_the_time_of_few_images():
    alone = TimedGraph(architectures=("a",), rows=ROWS, milliseconds=(3.0, 6.5, 14.0))
    both = TimedGraph(architectures=("a",), second_stage=("a",), rows=ROWS, milliseconds=(5.5, 12.5, 27.0))
    times = StageTimeModel([alone, both], 32)
    assert dataclasses.astuple(times.stage(["a"], is_first=False)) == pytest.approx((2.0, 0.5))  # 12.5 - 6.5 = 6 for 8
    assert times.committee_ms(["a"]) == pytest.approx(14.0 / 32)


def test_a_graph_that_takes_no_longer_for_more_images_is_fitted_without_negative_parts():
    falling = TimedGraph(architectures=("a",), rows=ROWS, milliseconds=(4.0, 3.0, 2.0))
    steep = TimedGraph(architectures=("a",), rows=ROWS, milliseconds=(1.0, 10.0, 60.0))
    assert StageTimeModel([falling], 32).stage(["a"]) == LinearTime(2.0, 0.0)
    assert StageTimeModel([steep], 32).stage(["a"]).fixed == 0.0


POOL = synthetic_pool(strengths=(2.0, 2.2, 2.4), mflops=(1.0, 1.0, 1.0))
POOL = dataclasses.replace(
    POOL, members=tuple(dataclasses.replace(member, architecture="a") for member in POOL.members)
)


def test_members_that_cost_nothing_side_by_side_are_asked_at_once():
    alone, together = (
        select_cascade(POOL, Objective(), Path("x.json"), time_model=model(ratio)) for ratio in (1.0, 0.5)
    )
    assert alone.stages[0].members == 1
    assert together.stages[0].members > 1
    for selection in (alone, together):
        report = selection.report["cascade"]
        assert report["validation"]["accuracy"] >= report["target"]
        assert report["latency"]["predicted_ms"]["validation"] <= report["latency"]["committee_predicted_ms"]
        assert (report["cost"], report["latency"]["shares"][0]) == ("latency", 1.0)


def test_the_predicted_time_is_that_of_the_stages_which_the_images_reach():
    times = model(two_ratio=1.0)
    report = select_cascade(POOL, Objective(), Path("x.json"), time_model=times).report["cascade"]
    expected = times.committee_ms("a" * report["validation"]["exits"][0]["members"])
    members = [stage["members"] for stage in report["validation"]["exits"]]
    for before, after, share in zip(members, members[1:], report["latency"]["shares"][1:], strict=False):
        stage = times.stage("a" * (after - before), is_first=False)
        expected += stage.per_row * share + stage.fixed * (1 - (1 - share) ** 32) / 32
    assert report["latency"]["predicted_ms"]["validation"] == pytest.approx(expected)


def test_a_time_bounds_the_cascade_and_one_that_none_meets_is_refused_with_the_fastest():
    times = model(two_ratio=1.0)
    selection = select_cascade(POOL, Objective(max_cost=0.9), Path("x.json"), time_model=times)
    assert selection.report["cascade"]["latency"]["predicted_ms"]["validation"] <= 0.9
    assert selection.report["budget"] == {"max_mflops": None, "max_latency_ms": 0.9, "min_accuracy": None}
    with pytest.raises(
        RecipeError, match=r"no cascade answers within 0\.2 ms per image: the fastest member, 0 .* takes 0\.5625 ms"
    ):
        select_cascade(POOL, Objective(max_cost=0.2), Path("x.json"), time_model=times)
