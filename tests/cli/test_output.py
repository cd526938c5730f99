"""Output of commands: JSON documents, the next command to run, encodings and closed pipes."""

import json
import logging
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from keras_committee import evaluation, training
from keras_committee.cli import cli, main
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

TINY = pathlib.Path(__file__).parents[1] / "recipes" / "tiny.py"
RUN_DIR = "runs/my pets' run"
SCORES = dict.fromkeys(
    ["accuracy", "nll", "ece", "brier", "aurc", "coverage_at_1_percent_risk", "coverage_at_5_percent_risk"], 0.7
)
MEMBER = {
    "index": 0,
    "name": "a",
    "parameters": 7,
    "mflops": 0.2,
    "accuracy_interval": {"low": 0.6, "high": 0.8},
} | SCORES


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run of three untrained members, in a folder whose name needs quotes."""
    monkeypatch.chdir(tmp_path)
    file = RecipeFile.read(TINY)
    monkeypatch.setattr(Run, "require_members", lambda *_: None)  # none is trained
    return Run.create(RUN_DIR, file, file.resolve([]), command="train")


def next_command(capsys):
    """Return the words of the next command; they must be quoted for a shell and valid."""
    last = capsys.readouterr().out.splitlines()[-1]
    program, name, *arguments = shlex.split(last.removeprefix("Next: "))
    assert last == f"Next: {shlex.join([program, name, *arguments])}"
    assert program == "keras-committee"
    assert cli.get_command(None, name).make_context(name, list(arguments), obj={"debug": False}).params
    return [name, *arguments]


@pytest.mark.parametrize(
    ("finished", "options"),
    [([0, 1, 2], []), ([0, 2], ["--allow-incomplete", "2"]), ([1], ["--allow-incomplete", "1"])],
)
def test_after_train_comes_evaluate_of_the_finished_members(run, monkeypatch, capsys, finished, options):
    monkeypatch.setattr(training, "train_committee", lambda *_, **__: None)
    monkeypatch.setattr(Run, "finished_members", lambda _: finished)
    assert main(["train", str(TINY), "--run", RUN_DIR]) == 0
    assert next_command(capsys) == ["evaluate", RUN_DIR, *options]


@pytest.mark.parametrize(("members", "name"), [(1, "report"), (2, "select")])
@pytest.mark.parametrize(
    "options", [[], ["--allow-incomplete", "2"], ["--allow-incomplete", "1", "--allow-duplicate-weights"]]
)
def test_after_evaluate_comes_select_if_there_are_several_members(run, monkeypatch, capsys, members, name, options):
    result = {"members": [MEMBER] * members, "committees": [], "examples": 360, "split": "test"}
    result |= {"per_class": [], "head": "mean", "misclassified": {"images": 9, "file": "misclassified.csv"}}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: result)
    assert main(["evaluate", RUN_DIR, *options]) == 0
    assert next_command(capsys) == [name, RUN_DIR, *options]


def test_json_output_is_one_line(run, monkeypatch, capsys):
    result = {"members": [MEMBER], "text": "two\nlines"}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: print("on stderr") or result)
    assert main(["evaluate", RUN_DIR, "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == result
    assert err == "on stderr\n"


def test_a_warning_of_the_log_is_printed_once_and_wrapped_on_a_terminal(run, monkeypatch, capsys):
    def evaluate(*_, **__):
        for _ in range(2):
            logging.getLogger("keras_committee.data.dataset").warning("%s: skipped", "file " * 9)
        return {"members": []}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    main(["evaluate", RUN_DIR, "--json"])
    assert capsys.readouterr().err.splitlines() == ["file " * 7 + "file", "file : skipped"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_E12_unencodable_characters_are_printed_as_escapes(encoding):
    code = "from keras_committee.cli import main, output; main(['--version']); output.print_message('\\udcff ± end')"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    out = subprocess.check_output([sys.executable, "-c", code], env=environment)
    assert out.splitlines()[-1].startswith(b"\\udcff ")
    assert out.endswith(b" end\n")


PRINTS = """
import contextlib, os, sys
from keras_committee.cli import cli, main, output

@cli.command()
def work():
    for _ in range(3):
        print("x" * 100_000)
        print("progress", file=sys.stderr)
    with open("result", "w") as file:
        for fd in (1, 2):
            with contextlib.suppress(OSError):
                os.write(fd, b"progress\\n")  # as TensorFlow's C++ code does
        file.write("whole")

sys.exit(main(["work"]))
"""


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        ("| true", 0, ""),
        ("2>&1 | true", 0, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("> /dev/full", 7, "error: cannot write to standard output: No space left on device. A part of the output is"),
        ("2> /dev/full", 0, ""),
    ],
)
def test_E09_output_that_cannot_be_written_does_not_stop_a_command(tmp_path, redirection, code, error):
    """The file that a command writes must not get the number of a closed stream, nor what is printed."""
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(PRINTS)} {redirection}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == code
    assert result.stderr.replace("progress\n", "").startswith(error)
    assert "Traceback" not in result.stderr
    assert (tmp_path / "result").read_text() == "whole"
