"""Is the last line of a command the one to be typed next, to the letter, with the options that it needs?"""

import pathlib
import shlex

import pytest

from keras_committee import evaluation, training
from keras_committee.cli import cli, main
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

TINY = pathlib.Path(__file__).parents[1] / "recipes" / "tiny.py"
PLACE = "runs/my pets' run"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of three members of which none is trained, in a folder with an awkward name."""
    monkeypatch.chdir(tmp_path)
    file = RecipeFile.read(TINY)
    return Run.create(PLACE, file, file.resolve([]), command="train")


def following(capsys):
    """The words of the next command, which the command line takes."""
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
def test_train_goes_on_with_the_members_that_there_are(run, monkeypatch, capsys, finished, options):
    monkeypatch.setattr(training, "train_committee", lambda *_, **__: None)
    monkeypatch.setattr(Run, "finished_members", lambda _: finished)
    assert main(["train", str(TINY), "--run", PLACE]) == 0
    assert following(capsys) == ["evaluate", PLACE, *options]


SCORES = dict.fromkeys(["accuracy", "nll", "ece", "brier"], 0.7)
MEMBER = {"index": 0, "name": "a", "parameters": 7, "mflops": 0.2} | SCORES


@pytest.mark.parametrize(("members", "name"), [(1, "report"), (2, "select")])
@pytest.mark.parametrize(
    "options", [[], ["--allow-incomplete", "2"], ["--allow-incomplete", "1", "--allow-duplicate-weights"]]
)
def test_evaluate_goes_on_where_there_is_something_to_choose(run, monkeypatch, capsys, members, name, options):
    result = {"members": [MEMBER] * members, "committees": [], "examples": 360}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: result)
    assert main(["evaluate", PLACE, *options]) == 0
    assert following(capsys) == [name, PLACE, *options]


def test_nothing_but_the_document_is_printed_as_json(run, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: {"members": [MEMBER]})
    assert main(["evaluate", PLACE, "--json"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
