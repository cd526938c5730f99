"""Logs of a member, TensorBoard files of a committee, and profiles: complete, or training continues without them."""

import dataclasses
import os
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from keras_committee.errors import ResourceError
from keras_committee.member_dir import DataInfo, MemberDir
from keras_committee.models.loading import load_member
from keras_committee.training import TrainingOptions, failsafe, tensorboard
from keras_committee.training.tensorboard import CommitteeTensorBoard, MemberLog, StepProfiler, SummaryWriter


class Clock:
    """Replaces the monotonic clock of the module."""

    seconds = 0.0

    def monotonic(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(failsafe, "time", clock)
    return clock


@pytest.fixture
def folder(tmp_path):
    folder = MemberDir(tmp_path, 3)
    folder.path.mkdir(parents=True)
    return folder


def rows(epochs):
    return [{"epoch": epoch, "loss": 0.7 / epoch, "validation_accuracy": 0.2 * epoch} for epoch in range(1, epochs + 1)]


def end_epoch(log, epoch):
    log.on_epoch_end(rows(epoch), np.full((5, 3), -epoch / 10), {"run_fraction": np.array([0.2, 0.7])})


def logged(folder, tag):
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    return [event.step for event in events.Tensors(tag)] if tag in events.Tags()["tensors"] else []


def test_an_epoch_leaves_history_predictions_and_curves(folder):
    warnings = []
    log = MemberLog(folder, warnings.append)
    end_epoch(log, 1)
    end_epoch(log, 2)
    assert warnings == []
    assert folder.read_history() == rows(2)
    log_probs = np.load(folder.epoch_predictions(2))
    assert log_probs.dtype == np.float16
    np.testing.assert_allclose(log_probs, np.full((5, 3), -0.2), rtol=1e-3)
    for tag in (
        "loss",
        "validation_accuracy",
        "run_fraction/block_001",
        "run_fraction/block_002",
        "run_fraction/blocks",
    ):
        assert logged(folder, tag) == [1, 2]


def test_a_histogram_of_the_blocks_counts_each_once(folder):
    end_epoch(MemberLog(folder, print), 1)
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    buckets = make_ndarray(events.Tensors("run_fraction/blocks")[0].tensor_proto)  # of left, right and how many
    full = buckets[buckets[:, 2] > 0]
    assert full[:, 2].tolist() == [1, 1]
    assert [left <= value <= right for (left, right, _), value in zip(full, (0.2, 0.7), strict=True)] == [True, True]


def test_the_network_is_drawn_as_training_begins(folder):
    image = keras.Input((4,), name="image")
    MemberLog(folder, print).on_train_begin(keras.Model(image, keras.layers.Dense(3, name="logits")(image)))
    graph = EventAccumulator(str(folder.tensorboard)).Reload().Graph()
    assert [(node.name, list(node.input)) for node in graph.node] == [("image", []), ("logits", ["image"])]


def test_A07_a_full_disk_for_logs_is_reported_once_a_minute_and_training_continues(folder, monkeypatch, clock):
    def full(*_):
        raise OSError(28, "No space left on device")

    warnings = []
    log = MemberLog(folder, warnings.append)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        for epoch, seconds in ((1, 1000.0), (2, 1001.0), (3, 1059.9)):
            clock.seconds = seconds
            end_epoch(log, epoch)
        assert len(warnings) == 1
        clock.seconds = 1060.0
        end_epoch(log, 4)
        clock.seconds = 1119.0
        end_epoch(log, 5)
    assert (
        warnings
        == [
            f"warning: cannot write {folder.history}: No space left on device.\n"
            "  Free disk space, fix the permissions, or choose another folder.\n"
            "  Training continues; its logs have gaps."
        ]
        * 2
    )
    assert not folder.history.exists()
    end_epoch(log, 6)
    assert folder.read_history() == rows(6)
    assert [path.name for path in folder.epoch_predictions(6).parent.iterdir()] == ["0006.npy"]
    assert logged(folder, "loss") == [1, 2, 3, 4, 5, 6]


def test_A07_the_first_warning_is_printed_even_right_after_boot(folder, clock):
    folder.tensorboard.write_text("in the way")
    warnings = []
    clock.seconds = 0.5
    end_epoch(MemberLog(folder, warnings.append), 1)
    assert len(warnings) == 1


@pytest.mark.parametrize("name", ["history.jsonl", "validation", "tensorboard"])
def test_A07_what_is_in_the_way_of_one_log_is_in_the_way_of_no_other(folder, name, clock):
    warnings, way = [], folder.path / name
    {"history.jsonl": way.mkdir, "validation": way.touch, "tensorboard": way.touch}[name]()
    log = MemberLog(folder, warnings.append)
    end_epoch(log, 1)
    assert len(warnings) == 1
    assert str(way) in warnings[0]
    os.rename(way, folder.path / "away")
    end_epoch(log, 2)
    assert len(warnings) == 1
    assert folder.read_history() == rows(2)
    assert folder.epoch_predictions(2).exists()
    assert logged(folder, "loss")[-1] == 2


def test_a_log_that_fails_by_itself_is_reported_once_and_the_others_are_written(folder, monkeypatch):
    def fail(*_, **__):
        raise AttributeError("'float' object has no attribute 'get'")

    monkeypatch.setattr(tensorboard, "network_graph", fail)
    monkeypatch.setattr(SummaryWriter, "write", fail)
    warnings = []
    log = MemberLog(folder, warnings.append)
    log.on_train_begin(keras.Sequential([keras.Input((4,))]))
    end_epoch(log, 1)
    end_epoch(log, 2)
    reports = ("TensorBoard's graph of the network", "the TensorBoard log of the member")
    assert warnings == [
        f"warning: {report} failed: AttributeError: 'float' object has no attribute 'get'\n"
        "  Training continues without it. This warning is not repeated."
        for report in reports
    ]
    assert folder.read_history() == rows(2)


def test_A07_a_history_that_cannot_be_written_at_the_end_is_a_warning_and_the_member_is_finished(folder, clock):
    folder.history.mkdir()
    warnings = []
    log = MemberLog(folder, warnings.append)
    end_epoch(log, 1)
    info = DataInfo(classes=("cat", "dog"), transform={"size": [7, 9]})
    image = keras.Input((4,), name="image")
    log.on_train_end(rows(1), keras.Model(image, keras.layers.Dense(2)(image), name="small"), info)
    assert len(warnings) == 2  # one more, whatever the time since the first
    assert f"cannot write {folder.history}: Is a directory" in warnings[1]
    assert folder.data_info() == info
    assert load_member(folder.model).name == "small"


def test_A07_curves_that_find_no_room_do_not_end_training_and_go_on_when_there_is(folder, clock):
    """The system itself lets the file grow no further."""
    warnings = []
    log = MemberLog(folder, warnings.append)
    end_epoch(log, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        for epoch in (2, 3):
            clock.seconds += 100
            end_epoch(log, epoch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(warnings) == 2
    end_epoch(log, 4)
    assert folder.read_history() == rows(4)
    assert logged(folder, "loss")[-1] == 4


def test_curves_that_cannot_be_written_are_a_resource_error(tmp_path):
    (tmp_path / "curves").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot write .*curves"):
        SummaryWriter(tmp_path / "curves").write(1, {"loss": 0.7})


def committee_events(run, size):
    return EventAccumulator(str(run.path / "tensorboard" / f"committee_of_{size}")).Reload()


def hparams(run, size):
    """The recipe parameters beside the committee of a size."""
    content = committee_events(run, size).PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    return metadata.parse_session_start_info_plugin_data(content)


def plot_epochs(run, size):
    """The epochs that have a plot, by its name."""
    events = committee_events(run, size)
    return {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


def test_only_the_full_committee_has_the_recipe_parameters(trained):
    run, _ = trained
    session = hparams(run, 3)
    assert session.group_name == "tiny"
    assert {name: value.number_value for name, value in session.hparams.items()} == run.parameters()
    assert committee_events(run, 2).Tags()["tensors"] != []
    with pytest.raises(KeyError):
        hparams(run, 2)


def test_the_recipe_parameters_move_when_members_are_added(new_run):
    run, train = new_run(["members=1", "epochs=1"])
    train()
    more, train = new_run(["members=2", "epochs=1"])
    train()
    assert hparams(more, 2).hparams["members"].number_value == 2
    with pytest.raises(KeyError):
        hparams(more, 1)
    assert len(list((run.path / "tensorboard").rglob("*.hparams"))) == 1


def test_the_full_committee_is_plotted_five_times_in_a_training(new_run, trained, monkeypatch):
    run, recipe = trained
    copy, _ = new_run([])
    for index in range(3):
        copy.member(index).path.mkdir(parents=True)
        (copy.member(index).path / "validation").symlink_to(run.member(index).epoch_predictions(1).parent)
    monkeypatch.setattr(tensorboard, "_MIN_SECONDS_BEFORE_PLOTS", 0.0)
    board = CommitteeTensorBoard(copy, recipe, recipe.data.load())
    board.on_epoch_end(1)
    board.on_epoch_end(2)
    board.on_epoch_end(2)  # another member has ended it, too
    assert plot_epochs(copy, 3) == {"confusion_matrix": [1, 2], "reliability_diagram": [1, 2]}
    image = committee_events(copy, 3).Images("confusion_matrix")[0]
    assert image.encoded_image_string[:4] == b"\x89PNG"
    assert min(image.width, image.height) > 300


def test_a_short_training_has_no_plots(trained, monkeypatch):
    run, recipe = trained
    monkeypatch.setattr(tensorboard, "_MIN_SECONDS_BEFORE_PLOTS", 1000.0)
    board = CommitteeTensorBoard(run, recipe, recipe.data.load())
    assert not board._plots_due(recipe.epochs)


@pytest.mark.parametrize(("epochs", "due"), [(2, [1, 2]), (5, [1, 2, 3, 4, 5]), (12, [3, 5, 8, 10, 12])])
def test_a_fifth_of_the_training_lies_between_two_plots(epochs, due, monkeypatch, trained):
    run, recipe = trained
    board = CommitteeTensorBoard(run, dataclasses.replace(recipe, epochs=epochs), recipe.data.load())
    monkeypatch.setattr(tensorboard, "_MIN_SECONDS_BEFORE_PLOTS", 0.0)
    assert [epoch for epoch in range(1, epochs + 1) if board._plots_due(epoch)] == due


def profiles(folder):
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def take(profile, steps):
    for number in range(steps):
        with profile.step():
            tf.constant(number) + 1


def test_the_requested_steps_are_in_the_profile_and_no_others(tmp_path):
    notes = []
    with StepProfiler(tmp_path, (2, 3), notes.append) as profile:
        take(profile, 5)
        assert notes == [f"profile of steps 2 to 3: {tmp_path}"]
    [file] = profiles(tmp_path)
    content = file.read_bytes()
    assert b"train" in content
    assert len(notes) == 1


def test_a_profile_that_training_cuts_short_is_written_as_far_as_it_got(tmp_path):
    notes = []
    with StepProfiler(tmp_path, (2, 30), notes.append) as profile:
        take(profile, 4)
        assert profiles(tmp_path) == []
    assert notes == [f"profile of steps 2 to 4: {tmp_path}"]
    assert len(profiles(tmp_path)) == 1


def test_steps_that_were_not_reached_are_reported(tmp_path):
    notes = []
    with StepProfiler(tmp_path, (10, 20), notes.append) as profile:
        take(profile, 3)
    assert notes == ["warning: no profile was written: training took 3 steps; the first step to profile is 10."]


def test_without_steps_nothing_is_profiled(tmp_path):
    with StepProfiler(tmp_path, None, print) as profile:
        take(profile, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [tf.errors.ResourceExhaustedError(None, None, "No space left on device"), RuntimeError("No space left")]
)
def test_a_profile_that_cannot_be_written_is_reported_and_training_continues(error, tmp_path, monkeypatch):
    def full():
        raise error

    notes = []
    with StepProfiler(tmp_path, (1, 2), notes.append) as profile:
        with monkeypatch.context() as disk:
            disk.setattr(tf.profiler.experimental, "stop", full)
            take(profile, 4)
        tf.profiler.experimental.stop(save=False)
    [note] = notes
    assert note.startswith(f"warning: the profile failed: {type(error).__name__}: ")
    assert "No space left" in note


def test_a_profile_that_cannot_begin_is_reported_and_training_continues(tmp_path):
    tf.profiler.experimental.start(str(tmp_path))
    notes = []
    with StepProfiler(tmp_path, (1, 2), notes.append) as profile:
        take(profile, 4)
    tf.profiler.experimental.stop(save=False)
    [note] = notes
    assert note.startswith("warning: the profile failed: AlreadyExistsError: ")


def test_a_member_is_profiled_while_it_trains(new_run, capsys):
    run, train = new_run(["members=1", "epochs=1"])
    train(options=TrainingOptions(profile_steps=(3, 4)))
    assert len(profiles(run.member(0).tensorboard)) == 1
    assert f"profile of steps 3 to 4: {run.member(0).tensorboard}" in capsys.readouterr().err
    assert run.finished_members() == [0]
