"""Does every command that README and the guides show run, on something small?"""

import re
import shutil

import pytest
import yaml
from running import answered, due, kind_of, parsed, trained_by
from shop import write_recipes
from shown import PAGES, ROOT, blocks, in_backticks, shell_blocks

from keras_committee.cli import cli


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A folder with the stand-ins for the recipes alone."""
    folder = tmp_path_factory.mktemp("recipes")
    write_recipes(folder / "recipes")
    return folder


@pytest.fixture(params=shell_blocks(), ids=str)
def block(request):
    return request.param


def test_there_are_commands_to_run():
    assert len(shell_blocks()) >= 12
    assert sum(len(block.commands()) for block in shell_blocks()) >= 30


def test_every_command_is_of_a_kind_that_is_run(block):
    assert [kind_of(words) for words in block.commands()]


def test_a_command_of_no_kind_would_be_found():
    with pytest.raises(LookupError, match="no test runs `keras-comittee train x`: give it a line in KINDS"):
        kind_of(["keras-comittee", "train", "x"])


@pytest.mark.slow
def test_the_commands_of_a_block_run_one_after_another(block, shop, tmp_path, monkeypatch):
    stocked, done = shop
    folder = tmp_path / "work"
    shutil.copytree(stocked, folder, ignore=lambda _, names: trained_by(block) & set(names))
    monkeypatch.chdir(folder)
    for words in due(block, done):
        kind_of(words)(words, folder)
        done.append(words)


def test_the_commands_in_manifests_are_taken(recipes):
    manifests = [yaml.safe_load(block.text) for block in blocks("yaml")]
    shown = re.findall(r"exec (keras-committee [^']*)", str(manifests))
    assert shown
    for command in shown:
        parsed(command.split(), recipes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_in_sentences_are_taken(page):
    shown = [code.split() for code in in_backticks(page) if re.match(r"keras-committee [a-z]", code)]
    assert {words[1] for words in shown} <= set(cli.commands)
    for words in (words for words in shown if len(words) > 2):
        cli.get_command(None, words[1]).make_context(words[1], words[2:], obj={})


def test_a_training_command_is_run_with_its_own_words(recipes, monkeypatch):
    monkeypatch.chdir(recipes)
    with pytest.raises(AssertionError):
        answered(["keras-committee", "train", "recipes/cifar_wrn.py", "--set", "member=3"], recipes)
