"""Every documented command runs, on small data."""

import re
import shutil

import pytest
import yaml
from pages import PAGES, blocks, in_backticks, shell_blocks
from run_commands import parse, remaining_commands, run, runner_of, trained_runs
from workspace import write_recipes

from keras_committee.cli import cli


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A folder with the small recipes only."""
    folder = tmp_path_factory.mktemp("recipes")
    write_recipes(folder / "recipes")
    return folder


def test_every_command_has_a_runner():
    commands = [words for block in shell_blocks() for words in block.commands()]
    assert len(commands) >= 30
    assert all(runner_of(words) for words in commands)


def test_a_command_without_a_runner_is_an_error():
    with pytest.raises(LookupError, match="no test runs `keras-comittee train x`: add a line to KINDS"):
        runner_of(["keras-comittee", "train", "x"])


@pytest.mark.slow
@pytest.mark.parametrize("block", shell_blocks(), ids=str)
def test_the_commands_of_a_block_run_in_sequence(block, workspace, tmp_path, monkeypatch):
    filled, done = workspace
    folder = tmp_path / "work"
    shutil.copytree(filled, folder, ignore=lambda _, names: trained_runs(block) & set(names))
    monkeypatch.chdir(folder)
    for words in remaining_commands(block, done):
        runner_of(words)(words, folder)
        done.append(words)


def test_the_commands_in_manifests_parse(recipes):
    manifests = [yaml.safe_load(block.text) for block in blocks("yaml")]
    commands = re.findall(r"exec (keras-committee [^']*)", str(manifests))
    assert commands
    for command in commands:
        parse(command.split(), recipes)


def test_the_commands_in_sentences_parse():
    commands = [code.split() for page in PAGES for code in in_backticks(page)]
    commands = [words for words in commands if words[0] == "keras-committee" and re.match("[a-z]", [*words, "-"][1])]
    assert {words[1] for words in commands} <= set(cli.commands)
    for words in (words for words in commands if len(words) > 2):
        cli.get_command(None, words[1]).make_context(words[1], words[2:], obj={})


def test_a_training_command_runs_with_its_own_arguments(recipes, monkeypatch):
    monkeypatch.chdir(recipes)
    with pytest.raises(AssertionError):
        run(["keras-committee", "train", "recipes/cifar_wrn.py", "--set", "member=3"], recipes)
