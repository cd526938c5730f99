"""Measured times: medians of turns, the first turns left out."""

import itertools
import time

import pytest

from keras_committee.evaluation import gather, member_latencies
from keras_committee.evaluation.member_latencies import median_milliseconds


def test_calls_take_turns_and_the_first_turns_do_not_count(monkeypatch):
    asked, clock = [], itertools.accumulate(itertools.cycle([0.5, 0.002, 0.5, 0.007]))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    told = median_milliseconds([lambda: asked.append("a"), lambda: asked.append("b")], times=3)
    assert told == pytest.approx([2, 7])
    assert asked == ["a", "b"] * 8


def test_each_member_of_a_pool_is_timed(trained):
    milliseconds = member_latencies(gather([trained[0]]))
    assert len(milliseconds) == 3
    assert min(milliseconds) > 0
