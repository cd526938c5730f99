"""`train --stacked` in a process of its own, and the other commands on its run."""

import pathlib
import subprocess
import sys

import keras
import pytest

from keras_committee.cli import main

SMALL = pathlib.Path(__file__).with_name("small.py")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the commands run on TensorFlow")


def run_command(*arguments):
    """Run a command in a new process, which has not imported Keras."""
    command = [sys.executable, "-m", "keras_committee.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_members_of_a_stack_are_evaluated_selected_and_exported(tmp_path, capsys):
    run = tmp_path / "run"
    result = run_command("train", SMALL, "--stacked", "--run", run, "--set", "epochs=3")
    assert result.returncode == 0, result.stderr
    assert "epoch 3/3" in result.stderr
    assert "has 3 members." in result.stdout
    export = tmp_path / "export"
    for command in (["evaluate", run], ["select", run, "--cascade"], ["report", run], ["export", run, "--out", export]):
        assert main([*map(str, command)]) == 0, capsys.readouterr().err
    assert (run / "evaluation.json").exists()
    assert (export / "1" / "saved_model.pb").exists()


@pytest.mark.parametrize("options", [["--workers", "2"], ["--strategy", "single"], ["--deterministic"]])
def test_options_of_other_ways_to_train_are_refused(options, tmp_path, capsys):
    assert main(["train", str(SMALL), "--stacked", "--run", str(tmp_path / "run"), *options]) == 2
    assert f"leave out {options[0]}" in capsys.readouterr().err


def test_a_process_of_another_backend_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("keras_committee.keras_config._selected_backend", "tensorflow")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert main(["train", str(SMALL), "--stacked", "--run", str(tmp_path / "run")]) == 2
    assert "Set the environment variable KERAS_BACKEND=jax" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
