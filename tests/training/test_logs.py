"""Does training go on where its logs cannot be written, and are they whole again as soon as they can?"""

import json
import os
import resource

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from keras_committee.errors import ResourceError
from keras_committee.member_dir import MemberDir
from keras_committee.training import tensorboard
from keras_committee.training.tensorboard import MemberLog, SummaryWriter


class Clock:
    """Stands in for the monotonic clock of the module."""

    seconds = 0.0

    def monotonic(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(tensorboard, "time", clock)
    return clock


@pytest.fixture
def folder(tmp_path):
    folder = MemberDir(tmp_path, 3)
    folder.path.mkdir(parents=True)
    return folder


def rows(epochs):
    return [{"epoch": epoch, "loss": 0.7 / epoch, "validation_accuracy": 0.2 * epoch} for epoch in range(1, epochs + 1)]


def end_epoch(log, epoch):
    log.on_epoch_end(rows(epoch), np.full((5, 3), -epoch / 10), {"open": np.array([0.2, 0.7])})


def history(folder):
    return [json.loads(line) for line in folder.history.read_text().splitlines()]


def logged(folder, tag):
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    return [event.step for event in events.Tensors(tag)] if tag in events.Tags()["tensors"] else []


def test_an_epoch_leaves_history_votes_and_curves(folder):
    told = []
    log = MemberLog(folder, told.append)
    end_epoch(log, 1)
    end_epoch(log, 2)
    assert told == []
    assert history(folder) == rows(2)
    votes = np.load(folder.epoch_predictions(2))
    assert votes.dtype == np.float16
    np.testing.assert_allclose(votes, np.full((5, 3), -0.2), rtol=1e-3)
    for tag in ("loss", "validation_accuracy", "open/block_001", "open/block_002", "open/blocks"):
        assert logged(folder, tag) == [1, 2]


def test_a_histogram_of_the_blocks_counts_each_once(folder):
    end_epoch(MemberLog(folder, print), 1)
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    buckets = make_ndarray(events.Tensors("open/blocks")[0].tensor_proto)  # of left, right and how many
    full = buckets[buckets[:, 2] > 0]
    assert full[:, 2].tolist() == [1, 1]
    assert [left <= value <= right for (left, right, _), value in zip(full, (0.2, 0.7), strict=True)] == [True, True]


def test_the_network_is_drawn_as_training_begins(folder):
    image = keras.Input((4,), name="image")
    MemberLog(folder, print).on_train_begin(keras.Model(image, keras.layers.Dense(3, name="logits")(image)))
    graph = EventAccumulator(str(folder.tensorboard)).Reload().Graph()
    assert [(node.name, list(node.input)) for node in graph.node] == [("image", []), ("logits", ["image"])]


def test_A07_a_full_disk_for_logs_is_told_once_a_minute_and_training_goes_on(folder, monkeypatch, clock):
    def full(*_):
        raise OSError(28, "No space left on device")

    told = []
    log = MemberLog(folder, told.append)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        for epoch, seconds in ((1, 1000.0), (2, 1001.0), (3, 1059.9)):
            clock.seconds = seconds
            end_epoch(log, epoch)
        assert len(told) == 1
        clock.seconds = 1060.0
        end_epoch(log, 4)
        clock.seconds = 1119.0
        end_epoch(log, 5)
    assert (
        told
        == [
            f"warning: cannot write {folder.history}: No space left on device.\n"
            "  Make room, mend the permissions, or name another folder.\n"
            "  Training goes on; its logs have gaps."
        ]
        * 2
    )
    assert not folder.history.exists()
    end_epoch(log, 6)
    assert history(folder) == rows(6)
    assert [path.name for path in folder.epoch_predictions(6).parent.iterdir()] == ["0006.npy"]
    assert logged(folder, "loss") == [1, 2, 3, 4, 5, 6]


def test_A07_a_warning_is_told_however_young_the_machine_is(folder, clock):
    folder.tensorboard.write_text("in the way")
    told = []
    clock.seconds = 0.5
    end_epoch(MemberLog(folder, told.append), 1)
    assert len(told) == 1


@pytest.mark.parametrize("name", ["history.jsonl", "validation", "tensorboard"])
def test_A07_what_is_in_the_way_of_one_log_is_in_the_way_of_no_other(folder, name, clock):
    told, way = [], folder.path / name
    {"history.jsonl": way.mkdir, "validation": way.touch, "tensorboard": way.touch}[name]()
    log = MemberLog(folder, told.append)
    end_epoch(log, 1)
    assert len(told) == 1
    assert str(way) in told[0]
    os.rename(way, folder.path / "away")
    end_epoch(log, 2)
    assert len(told) == 1
    assert history(folder) == rows(2)
    assert folder.epoch_predictions(2).exists()
    assert logged(folder, "loss")[-1] == 2


def test_history_that_cannot_be_written_at_the_end_is_a_resource_error(folder):
    folder.history.mkdir()
    with pytest.raises(ResourceError, match=r"cannot write .*history\.jsonl: Is a directory"):
        MemberLog(folder, print).write_history(rows(2))


def test_A07_curves_that_find_no_room_do_not_end_training_and_go_on_when_there_is(folder, clock):
    """The system itself lets the file grow no further."""
    told = []
    log = MemberLog(folder, told.append)
    end_epoch(log, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        for epoch in (2, 3):
            clock.seconds += 100
            end_epoch(log, epoch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(told) == 2
    end_epoch(log, 4)
    assert history(folder) == rows(4)
    assert logged(folder, "loss")[-1] == 4


def test_curves_that_cannot_be_written_are_a_resource_error(tmp_path):
    (tmp_path / "curves").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot write .*curves"):
        SummaryWriter(tmp_path / "curves").write(1, {"loss": 0.7})
