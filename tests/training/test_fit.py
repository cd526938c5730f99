"""The committee: what is finished stays, what failed is told, what was logged adds up."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from keras_committee import metrics
from keras_committee.layers import GeometricMean
from keras_committee.training import train_committee


def scalars(path):
    events = EventAccumulator(str(path))
    events.Reload()
    return {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }


def test_a_finished_member_is_never_trained_again(new_run):
    run, train = new_run(["members=2", "epochs=1"])
    train()
    run.member(1).model.unlink()
    kept = run.member(0).model.read_bytes()
    train()
    assert run.member(0).model.read_bytes() == kept
    assert run.finished_members() == [0, 1]
    started = [event["member"] for event in run.events() if event["event"] == "member_started"]
    assert started == [0, 1, 1]


def test_a_member_trained_anew_is_the_member_it_was(new_run):
    run, train = new_run(["members=1", "epochs=1"])
    train()
    first = run.member(0).history.read_text().split('"images_per_second"')[0]
    run.member(0).model.unlink()
    train()
    assert run.member(0).history.read_text().split('"images_per_second"')[0] == first


def test_a_finished_committee_is_left_alone(trained):
    run, recipe = trained
    before = run.events()
    train_committee(run, recipe)
    assert run.events() == before


def test_an_interrupted_member_is_journalled_and_the_error_passes(new_run, monkeypatch):
    run, train = new_run(["members=1"])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_committee.training.trainer.Predictor.__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert run.events()[-1]["event"] == "member_failed"


def test_tensorboard_holds_each_member_under_the_names_of_its_history(trained):
    run, _ = trained
    logged = scalars(run.member(2).tensorboard)
    assert [step for step, _ in logged["validation_accuracy"]] == [1, 2]
    assert logged["learning_rate"] == [(1, pytest.approx(0.05)), (2, pytest.approx(0.05))]


def test_tensorboard_holds_the_committee_so_far_after_each_epoch(trained):
    run, recipe = trained
    labels = recipe.data.load().validation.labels
    for size in (1, 2, 3):
        logged = scalars(run.path / "tensorboard" / f"committee_of_{size}")["validation_nll"]
        for epoch, value in logged:
            votes = [np.load(run.member(index).epoch_predictions(epoch)) for index in range(size)]
            probabilities = np.asarray(GeometricMean()(np.stack(votes, axis=1).astype(np.float32)))
            assert value == pytest.approx(metrics.nll(probabilities, labels), rel=1e-5)
        assert [epoch for epoch, _ in logged] == [1, 2]


def test_two_replicas_train_the_same_committee(new_run):
    one, train_one = new_run(["members=1", "epochs=1"])
    two, train_two = new_run(["members=1", "epochs=1"], name="two")
    train_one(strategy="single")
    train_two(strategy="mirrored")
    votes = [np.load(run.member(0).epoch_predictions(1)).astype(np.float32) for run in (one, two)]
    np.testing.assert_allclose(votes[0], votes[1], atol=0.02)


def test_lines_tell_the_rate_and_the_time_left_where_there_is_no_terminal(new_run, capsys):
    _, train = new_run(["members=1", "epochs=2"])
    train()
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("member 0  epoch 1/2  loss ")
    assert "images/s" in told[0]
    assert told[-1].endswith("0.0 min left")


def test_E09_training_goes_on_when_nobody_reads_what_it_tells(new_run, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("keras_committee.training.reporting.Console.print", gone)
    run, train = new_run(["members=1", "epochs=1"])
    train()
    assert run.finished_members() == [0]
