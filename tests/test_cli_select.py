"""`keras-committee select` at the command line: the table, the document, the exit codes."""

import json
import shutil

import pytest

from keras_committee.cli import main
from keras_committee.run import Run
from keras_committee.selection import Selection


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the trained run: what is written there is seen by no other test."""
    shutil.copytree(trained[0].path, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_select_writes_the_selection_and_says_how_to_go_on(copied, capfd):
    assert main(["select", str(copied), "--objective", "nll", "--max-mflops", "0.08"]) == 0
    printed = capfd.readouterr().out
    selection = Selection.read(copied / "selection.json")
    assert printed.endswith(f"\nNext: keras-committee export {copied} --selection {copied}/selection.json\n")
    assert "Diversity: All members are of one architecture" in printed
    assert "the committee" in printed
    assert len(selection.members) == 2
    assert {member.run for member in selection.members} == {"."}
    assert selection.report["candidates"] == 7
    assert Run.open(copied).events()[-1]["event"] == "selected"


def test_select_a_cascade_as_one_json_document_elsewhere(copied, tmp_path, capfd):
    file = tmp_path / "elsewhere" / "cascade.json"
    assert main(["select", str(copied), "--cascade", "--max-accuracy-drop", "1", "--json", "--out", str(file)]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["file"], document["kind"]) == (str(file), "cascade")
    assert document["report"] == Selection.read(file).report
    assert {member["run"] for member in document["members"]} == {"../tiny"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-mflops", "2", "--max-latency", "3"], "--max-mflops and --max-latency are two budgets: give one."),
        (["--max-latency", "3", "--cascade"], "bound a --cascade by --max-mflops"),
        (["--max-accuracy-drop", "0.1"], "--max-accuracy-drop is for a --cascade"),
        (["--cascade", "--max-accuracy-drop", "0.1", "--objective", "nll"], "--max-accuracy-drop is of accuracy"),
        (
            ["--cascade", "--max-accuracy-drop", "0.1", "--max-mflops", "2"],
            "--max-accuracy-drop and a budget are two goals",
        ),
        (["--cascade", "--min-accuracy", "0.7", "--max-mflops", "2"], "takes --max-mflops or --min-accuracy, not both"),
        (["--cascade", "--min-accuracy", "0.7", "--objective", "brier"], "is its target: leave out --objective"),
        (["--min-accuracy", "70"], "is not in the range 0<=x<=1"),
    ],
)
def test_options_that_contradict_each_other_are_refused_at_once(options, words, capfd):
    assert main(["select", "runs/none", *options]) == 2
    assert words in capfd.readouterr().err


def test_a_budget_that_buys_nothing_ends_with_2_and_a_run_that_is_not_whole_with_6(copied, capfd):
    assert main(["select", str(copied), "--max-mflops", "0.001"]) == 2
    assert "buys no member: the cheapest, member 0 (linear_0)" in capfd.readouterr().err
    Run.open(copied).member(1).model.unlink()
    assert main(["select", str(copied)]) == 6
    assert "--allow-incomplete 2" in capfd.readouterr().err
    assert main(["select", str(copied), "--allow-incomplete", "2", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["report"]["missing"] == {str(copied): [1]}


def test_a_run_given_twice_is_refused(copied, capfd):
    assert main(["select", str(copied), f"{copied}/../tiny"]) == 2
    assert "are one run" in capfd.readouterr().err


def test_a_budget_of_measured_time(copied, capfd):
    assert main(["select", str(copied), "--max-latency", "60000", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["report"]["budget"]["max_latency_ms"] == 60000
    assert 0 < document["report"]["latency_ms"] < 60000
