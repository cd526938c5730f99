"""The epoch whose weights a member has, and the time that it took."""

import pytest

from keras_committee import metrics
from keras_committee.evaluation import training_summary
from keras_committee.evaluation.training_summary import kept_epoch, member_seconds
from keras_committee.tables import print_blocks, training_table

ROWS = [
    {"epoch": 1, "validation_accuracy": 0.5, "validation_nll": 0.7},
    {"epoch": 2, "validation_accuracy": 0.75, "validation_nll": 0.9},
    {"epoch": 3, "validation_accuracy": 0.75, "validation_nll": 0.6},
    {"epoch": 4, "validation_accuracy": 0.25, "validation_nll": 0.8},
]


@pytest.mark.parametrize(("restore_best", "epoch"), [("accuracy", 2), ("nll", 3), (None, 4)])
def test_the_first_best_epoch_is_kept_or_the_last(restore_best, epoch):
    assert kept_epoch(ROWS, restore_best)["epoch"] == epoch


def event(second, name, **fields):
    return {"time": f"2026-02-03T04:00:{second:02d}+00:00", "event": name, **fields}


def test_the_time_of_a_member_is_summed_over_its_starts():
    events = [
        event(0, "training_started"),
        event(2, "member_started", member=1),
        event(3, "member_started", member=0),
        event(10, "member_finished", member=0),
        event(13, "training_stopped"),
        event(20, "training_started"),
        event(25, "member_started", member=1),
        event(29, "rolled_back", member=1),
        event(32, "member_finished", member=1),
        event(33, "training_finished"),
        event(59, "evaluated"),
    ]
    assert [member_seconds(events, index) for index in range(3)] == [7, 11 + 7, None]


def test_every_finished_member_has_its_row(trained, capsys):
    run, recipe = trained
    rows = [run.member(index).read_history()[-1] for index in range(3)]
    summary = training_summary(run, recipe.restore_best)
    assert [row["index"] for row in summary] == [0, 1, 2]
    assert [row["epoch"] for row in summary] == [row["epochs"] for row in summary] == [row["epoch"] for row in rows]
    assert [row["validation_nll"] for row in summary] == [row["validation_nll"] for row in rows]
    assert all(row["seconds"] > 0 for row in summary)
    best = training_summary(run, "nll")
    assert best[1]["validation_nll"] == min(row["validation_nll"] for row in run.member(1).read_history())
    lost = {**summary[1], "accuracy_interval": None, "seconds": None}
    lost |= {"validation_accuracy": 0.75, "validation_nll": 0.5}
    print_blocks([training_table([{**summary[0], "epoch": 2, "epochs": 9, "seconds": 95.0}, lost])])
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    interval = metrics.accuracy_interval(rows[0]["validation_accuracy"], 180)
    accuracy = f"{rows[0]['validation_accuracy']:.4f} [{interval['low']:.3f}, {interval['high']:.3f}]"
    assert f"0 2 of 9 {accuracy} {rows[0]['validation_nll']:.4f} 2 min" in lines
    assert f"1 {summary[1]['epoch']} of {summary[1]['epochs']} 0.7500 0.5000 unknown" in lines
