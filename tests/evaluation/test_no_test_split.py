"""Runs whose data have no test split are evaluated and reported on the validation split."""

import dataclasses
import shutil

import pytest

from keras_committee.cli import main
from keras_committee.errors import DataError
from keras_committee.evaluation import evaluate
from keras_committee.run import Run


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the trained run, whose recipe holds out no test examples, and that recipe."""
    original, recipe = trained
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, test=0.0, limit=80))
    monkeypatch.setattr(Run, "recipe", lambda self: recipe)
    folder = shutil.copytree(original.path, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json"))
    return Run(folder), recipe


def test_the_validation_split_is_used_unless_the_test_split_is_requested(run):
    result = evaluate(*run)
    assert (result["split"], result["examples"]) == ("validation", 80)
    assert evaluate(*run, split="validation")["members"] == result["members"]
    with pytest.raises(DataError, match=r"run have no test split\. The run was not changed\.\n  Use another split"):
        evaluate(*run, split="test")


@pytest.mark.slow
def test_the_commands_use_the_validation_split(run, capsys):
    path = str(run[0].path)
    assert main(["evaluate", path]) == 0
    assert "Evaluated on 80 validation examples." in capsys.readouterr().out
    assert main(["report", path]) == 0
    assert "80 validation images" in (run[0].path / "report" / "index.html").read_text()
    assert main(["evaluate", path, "--split", "test"]) == 3
    assert "have no test split" in capsys.readouterr().err
    for command in ("calibrate", "robustness", "select"):
        assert main([command, path]) in (2, 3)
        assert "no test split" in capsys.readouterr().err
