"""A committee killed twenty times at random moments ends with the bits of one that never was."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_committee.run import Run

SCRIPT = pathlib.Path(__file__).with_name("killed_training.py")
TINY = pathlib.Path(__file__).parents[1] / "recipes" / "faulty.py"
KILLS = 20


def trained(folder, kills, seed=3):
    command = [sys.executable, str(SCRIPT), str(TINY), str(folder), str(kills), str(seed)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return Run.open(folder), [int(word) for word in answer.stdout.split()]


def outcome(run, index):
    """The weights and the history of a member, without its times."""
    rows = [json.loads(line) for line in run.member(index).history.read_text().splitlines()]
    weights = keras.saving.load_model(run.member(index).model, compile=False).get_weights()
    return weights, [{**row, "images_per_second": None} for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(900)  # twenty starts: about a minute on idle cores
def test_A01_A02_A03_A05_a_run_killed_twenty_times_ends_as_one_that_never_was(tmp_path):
    whole, _ = trained(tmp_path / "whole", kills=0)
    run, (kills, _) = trained(tmp_path / "killed", kills=KILLS)
    assert kills == KILLS
    for index in range(2):
        (weights, rows), (whole_weights, whole_rows) = outcome(run, index), outcome(whole, index)
        assert rows == whole_rows
        for mine, theirs in zip(weights, whole_weights, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    resumed = [event["step"] for event in run.events() if event["event"] == "member_resumed" and event["member"] == 0]
    assert resumed == sorted(resumed)  # no completed epoch was ever lost
