"""Shell completion of commands, options, recipes, parameters, runs and models, without executing a recipe."""

import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys

import pytest
from click.shell_completion import get_completion_class

from keras_committee.cli import cli, main

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = """
raise SystemExit("executed")


def recipe(members=2, width=4, weight_decay=0.2):
    pass
"""
ZSH = (
    'autoload -U compinit; compinit -u -D; eval "$(keras-committee completion zsh)"; '
    "show() { print -r \"<$BUFFER>\" }; zle -N show; bindkey '^X' show"
)
PROGRAM = """
import sys
from keras_committee.cli import main
try:
    sys.exit(main(sys.argv[1:]))
finally:
    print([name for name in ("tensorflow", "keras", "numpy", "rich") if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture
def folder(tmp_path):
    """Folder with recipes, two runs beside another folder, and an exported model."""
    for name in ("recipes/cifar.py", "recipes/pets.py", "tiny.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(RECIPE)
    for name in (
        "runs/pets/parameters.json",
        "runs/pets-2/parameters.json",
        "runs/other/x",
        "saved_models/pets/3/saved_model.pb",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def complete(folder, monkeypatch):
    """Function of an unfinished command line that returns the completions: `(type, word)`."""
    monkeypatch.chdir(folder)
    bash = get_completion_class("bash")(cli, {"obj": {"debug": False}}, "keras-committee", "_KERAS_COMMITTEE_COMPLETE")

    def complete(line):
        *words, incomplete = line.split(" ")
        return [(item.type, item.value) for item in bash.get_completions(words, incomplete)]

    return complete


def plain(*words):
    return [("plain", word) for word in words]


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("ev", plain("evaluate")),
        ("i", plain("init", "import")),
        ("train --re", plain("--resources-per-member", "--restart")),
        ("evaluate --all", plain("--allow-incomplete", "--allow-duplicate-weights")),
        ("train re", plain("recipes/cifar.py", "recipes/pets.py")),
        ("train t", plain("tiny.py")),
        ("train else", [("file", "else")]),
        ("train recipes/cifar.py --set w", plain("width=", "weight_decay=")),
        ("train recipes/none.py --set w", []),
        ("train tiny.py --strategy m", plain("mirrored", "multiworker")),
        ("evaluate ", plain("runs/pets", "runs/pets-2")),
        ("select runs/pets runs/pets-", plain("runs/pets-2")),
        ("evaluate /els", [("dir", "/els")]),
        ("serve sa", plain("saved_models/pets")),
        ("predict ", plain("runs/pets", "runs/pets-2", "saved_models/pets")),
        ("predict saved_models/pets c", [("file", "c")]),
    ],
)
def test_a_word_is_completed(complete, line, completions):
    assert complete(line) == completions


@pytest.fixture
def environment(folder):
    """Variables with which a shell finds a `keras-committee` that prints its heavy imports to stderr."""
    program = folder / "bin" / "keras-committee"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "vt100"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script_and_without_tensorflow(folder, environment):
    lines = (
        'eval "$(keras-committee completion bash)"; compopt() { echo "compopt $@"; }; '
        "COMP_WORDS=(keras-committee train tiny.py --set w); COMP_CWORD=4; "
        'complete -p keras-committee; _keras_committee_completion keras-committee; echo "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", lines], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.stderr == "[]\n[]\n"  # for the script and for the words
    assert result.stdout.splitlines() == [
        "complete -o nosort -F _keras_committee_completion keras-committee",
        "compopt -o nospace",  # the value follows the equals sign
        "width= weight_decay=",
    ]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_with_the_script_and_without_tensorflow(folder, environment):
    typed = ("train tiny.py --set w", "select runs/pets runs/pets-")
    lines = "; ".join(
        ["keras-committee completion fish | source", *(f"complete -C 'keras-committee {words}'" for words in typed)]
    )
    home = {**environment, "HOME": str(folder)}
    result = subprocess.run(["fish", "--no-config", "-c", lines], cwd=folder, env=home, capture_output=True, text=True)
    assert result.stdout.splitlines() == ["weight_decay=\tdefault 0.2", "width=\tdefault 4", "runs/pets-2"]
    assert result.stderr == "[]\n" * 3


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("ev", "evaluate "),
        ("train tiny.py --set wi", "train tiny.py --set width="),
        ("serve sa", "serve saved_models/pets "),
    ],
)
def test_zsh_completes_a_typed_line(folder, environment, typed, line):
    controller, terminal = pty.openpty()
    keys = f"{ZSH}\nkeras-committee {typed}\t\x18"
    streams = dict.fromkeys(["stdin", "stdout", "stderr"], terminal)
    with subprocess.Popen(["zsh", "-f", "-i"], cwd=folder, env=environment, start_new_session=True, **streams) as shell:
        os.write(controller, keys.encode())
        output = b""
        while not (found := re.search(rb"<(keras-committee .*?)>", output)):
            assert select.select([controller], [], [], 60)[0], output
            output += os.read(controller, 4096)
        shell.kill()
    os.close(controller), os.close(terminal)
    assert found[1].decode() == f"keras-committee {line}"


@pytest.mark.parametrize(("shell", "words"), [("zsh", "#compdef keras-committee"), ("fish", "complete --no-files")])
def test_zsh_and_fish_have_scripts(capsys, shell, words):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert words in out
    assert f"keras-committee completion {shell}" in out.splitlines()[0]
    assert f"_KERAS_COMMITTEE_COMPLETE={shell}_complete" in out
