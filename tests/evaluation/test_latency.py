"""Latency is measured in interleaved rounds after a warm-up, in milliseconds."""

import itertools

import keras
import pytest

from keras_committee.evaluation import evaluate, latency
from keras_committee.evaluation.latency import Latency, measure_latencies
from keras_committee.tables import evaluation_blocks, print_blocks


def linear(shape=(4, 4, 3)):
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(image)))


def slower_and_slower():
    """A clock by which the calls take 1, 2, 3, ... milliseconds."""
    return itertools.accumulate(length / 1000 for n in itertools.count(1) for length in (0, n)).__next__


def test_every_model_has_its_latency_at_every_batch():
    measured = measure_latencies([linear(), linear()], batch_sizes=(1, 3), repeats=4, clock=slower_and_slower())
    assert [[each.batch for each in model] for model in measured] == [[1, 3], [1, 3]]
    every = [each for model in measured for each in model]
    assert {each.repeats for each in every} == {4}
    assert all(each.lower <= each.median <= each.upper for each in every)
    # Interleaved: no model has all of the fast first or of the slow last of the 16 calls.
    assert all(4 < each.median < 13 and each.upper - each.lower > 2.9 for each in every)


def test_one_repeat_is_its_own_median_in_milliseconds():
    assert measure_latencies([linear()], batch_sizes=(2,), repeats=1, clock=slower_and_slower()) == [
        [Latency(batch=2, median=pytest.approx(1), lower=pytest.approx(1), upper=pytest.approx(1), repeats=1)]
    ]


def test_three_untimed_calls_warm_each_model_up(monkeypatch):
    calls = []
    monkeypatch.setattr(latency, "Predictor", lambda model: lambda batches: calls.append(batches[0].shape[0]))
    measure_latencies([linear()], batch_sizes=(2, 7), repeats=1)
    assert sorted(calls) == [2] * 4 + [7] * 4


def test_models_of_unknown_size_and_no_repeats_are_rejected():
    with pytest.raises(ValueError, match=r"known image size\. Received: 'functional.*' of \(None, None, 3\)"):
        measure_latencies([linear((None, None, 3))])
    with pytest.raises(ValueError, match=r"must be at least 1\. Received: repeats=0, batch_sizes=\[1\]"):
        measure_latencies([linear()], batch_sizes=(1,), repeats=0)


def test_an_evaluation_can_measure_each_members_latency(trained, capsys):
    run, recipe = trained
    result = evaluate(run, recipe, measure_latency=True)
    assert [[each["batch"] for each in member["latency"]] for member in result["members"]] == [[1, 32]] * 3
    assert all(0 < each["lower"] <= each["upper"] for member in result["members"] for each in member["latency"])
    print_blocks(evaluation_blocks(result))
    assert "Milliseconds" in capsys.readouterr().out
