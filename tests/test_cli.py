"""Do the commands answer at once, say one JSON document, and go on where they were?"""

import ast
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import keras_committee
from keras_committee import cli, evaluation, training
from keras_committee.errors import DivergedError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

TINY = '''"""Two linear members look at digits."""

import keras

from keras_committee import Recipe, data


def recipe(members=2, units=10, epochs=2, learning_rate=0.01, seed=5):
    def member(index):
        print("building")  # what is printed here must not end up in a JSON document
        image = keras.Input((32, 32, 3), name="image")
        x = keras.layers.Rescaling(1 / 255)(image)
        x = keras.layers.AveragePooling2D(4)(x)
        logits = keras.layers.Dense(units)(keras.layers.Flatten()(x))
        return keras.Model(image, logits, name=f"linear_{index}")

    return Recipe(
        data=data.digits(64),
        member=member,
        members=members,
        optimizer=lambda steps: keras.optimizers.SGD(learning_rate, momentum=0.9),
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
    )
'''

HEAVY = ("tensorflow", "keras", "numpy", "rich", "sklearn")

# Answers several commands one after another, and tells for each its exit code, its words and what is loaded by then.
LIST_MODULES = f"""
import contextlib, io, json, sys
from keras_committee.cli import main
answers = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(arguments)
    answers.append([code, said.getvalue(), [name for name in {HEAVY} if name in sys.modules]])
print(json.dumps(answers))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with the recipe tiny.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


@pytest.fixture
def untrained(monkeypatch):
    """`train` ends before any training; the calls are noted here."""
    calls = []
    monkeypatch.setattr(
        training,
        "train_committee",
        lambda run, recipe, strategy, **options: calls.append((run, recipe, strategy, options)),
    )
    return calls


HELP_AND_MISTAKES = [
    (["--help"], 0, ""),
    (["train", "--help"], 0, ""),
    (["--version"], 0, ""),
    (["train", "missing.py"], 2, "error: no such recipe: missing.py"),
    (["describe", "tiny.py", "--set", "unit=3"], 2, "error: tiny.py has no knob 'unit'. Did you mean 'units'?"),
    (["train", "tiny.py", "--set", "units=few"], 2, "error: tiny.py: knob 'units' expects an integer"),
    (["train", "tiny.py", "--run", "tiny.py/run"], 7, "error: cannot write tiny.py/run"),
    (["evaluate", "runs/none"], 4, "error: runs/none is not a run folder"),
    (["calibrate", "runs/none"], 4, "error: runs/none is not a run folder"),
    (
        ["robustness", "runs/none", "--corruptions", "fog,rain"],
        2,
        "error: Invalid value for '--corruptions': 'rain' is not",
    ),
    (["predict", "runs/none", "a.png"], 4, "error: runs/none is not a run folder"),
    (["trian"], 2, "error: No such command 'trian'. Did you mean 'train'?\n  see: keras-committee --help"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What a process without anything heavy says to help and mistakes: exit code, stderr and what is loaded by then."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "tiny.py").write_text(TINY)
    asked = json.dumps([arguments for arguments, *_ in HELP_AND_MISTAKES])
    return json.loads(subprocess.check_output([sys.executable, "-c", LIST_MODULES, asked], cwd=folder, text=True))


@pytest.mark.parametrize(
    "place", range(len(HELP_AND_MISTAKES)), ids=lambda place: " ".join(HELP_AND_MISTAKES[place][0])
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_loaded(answers, place):
    _, code, words = HELP_AND_MISTAKES[place]
    answered, said, loaded = answers[place]
    assert (answered, loaded) == (code, [])
    assert said.startswith(words)
    assert "Traceback" not in said


def test_help_names_every_command_and_says_that_recipes_are_executed(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in cli.cli.commands if f"  {name} " not in text] == []
    assert len(cli.cli.commands) >= 12
    assert "only files that you trust" in " ".join(text.split())


@pytest.mark.parametrize("command", [[], *([name] for name in cli.cli.commands)])
def test_every_command_has_help_and_version(capsys, command):
    assert cli.main([*command, "--help"]) == 0
    assert "--debug" in capsys.readouterr().out
    assert cli.main([*command, "--version"]) == 0
    assert capsys.readouterr().out == f"keras-committee {keras_committee.__version__}\n"


def test_the_list_of_commands_says_whole_sentences_in_the_order_of_work(capsys):
    cli.main(["--help"])
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.partition("Commands:\n")[2].splitlines()]
    assert [name for name, _ in listed] == list(cli.cli.commands)
    assert [name for name, sentence in listed if sentence.endswith("...") or not sentence.endswith(".")] == []
    assert (listed[0][0], listed[1][0]) == ("doctor", "init")


def test_no_command_shows_the_help_and_is_a_usage_error(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("Usage: keras-committee")


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, keras_committee; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_importing_the_package_loads_itself_alone_and_the_command_line_little_of_it():
    code = "import sys, {}; print(sorted(name for name in sys.modules if name.startswith('keras_committee')))"
    package = subprocess.check_output([sys.executable, "-c", code.format("keras_committee")], text=True)
    assert package == "['keras_committee']\n"
    commands = subprocess.check_output([sys.executable, "-c", code.format("keras_committee.cli")], text=True)
    rooms = {name.split(".")[1] for name in ast.literal_eval(commands) if "." in name}
    below = {"environment", "errors", "files", "member_folder", "recipe", "recipe_file", "run"}
    assert rooms == {"cli", *below, "search", "selection", "tables"}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_E12_what_cannot_be_printed_is_printed_with_escapes(encoding):
    code = "from keras_committee.cli import main, output; main(['--version']); output.print_message('\\udcff ± end')"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    out = subprocess.check_output([sys.executable, "-c", code], env=environment)
    assert out.splitlines()[-1].startswith(b"\\udcff ")
    assert out.endswith(b" end\n")


def test_every_public_name_can_be_reached_and_no_other():
    assert [name for name in keras_committee.__all__ if not hasattr(keras_committee, name)] == []
    assert set(keras_committee.__all__) <= set(dir(keras_committee))
    with pytest.raises(AttributeError, match="module 'keras_committee' has no attribute 'Comittee'"):
        keras_committee.Comittee  # noqa: B018


def test_show_prints_docstring_knobs_and_members(folder, capsys):
    assert cli.main(["describe", "tiny.py", "--set", "members=3"]) == 0
    text = capsys.readouterr().out
    assert "tiny: Two linear members look at digits." in text
    assert "--set members=3" in text
    assert "linear_2" in text
    assert "1,930" in text  # (8 * 8 * 3 + 1) * 10
    assert "2 x multiply-adds / 1e6, for one image" in text
    assert "Memory: foretold from the shapes, of a training step of" in text


def test_show_as_json_is_one_document_with_the_agreed_keys(folder, capsys):
    assert cli.main(["describe", "tiny.py", "--set", "units=12", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert list(document) == ["recipe", "doc", "knobs", "members"]
    assert (document["recipe"], document["doc"]) == ("tiny", "Two linear members look at digits.")
    assert document["knobs"] == {"members": 2, "units": 12, "epochs": 2, "learning_rate": 0.01, "seed": 5}
    assert [member["index"] for member in document["members"]] == [0, 1]
    last = document["members"][1]
    assert list(last) == [
        "index", "name", "parameters", "mflops", "expected_depth", "expected_saving", "batch_size", "memory",
    ]  # fmt: skip
    assert last["memory"]["weights"] == last["memory"]["gradients"] == 4 * last["parameters"]
    assert last["memory"]["training"] == sum(list(last["memory"].values())[:6])
    assert last["memory"]["inference"] > last["memory"]["weights"]
    assert (last["name"], last["parameters"]) == ("linear_1", (8 * 8 * 3 + 1) * 12)
    assert last["mflops"] >= 2 * 8 * 8 * 3 * 12 / 1e6
    assert (last["expected_depth"], last["expected_saving"]) == (None, None)
    assert err.count("building") == 2


def test_train_makes_the_run_and_hands_over_recipe_and_strategy(folder, untrained, capsys):
    options = ["--workers", "2", "--members", "1,0", "--checkpoint-every", "7", "--deterministic", "--restart"]
    assert cli.main(["train", "tiny.py", "--set", "epochs=7", "--strategy", "single", *options]) == 0
    [(run, recipe, strategy, told)] = untrained
    assert (told["workers"], told["members"], told["restart"]) == (2, [1, 0], True)
    assert told["options"] == training.TrainingOptions(checkpoint_seconds=7.0, deterministic=True)
    assert (str(run.path), recipe.epochs, recipe.members, strategy) == ("runs/tiny", 7, 2, "single")
    begun = "keras-committee train tiny.py --set epochs=7 --strategy single --workers 2"
    assert run.environment()["command"].startswith(begun)
    assert "\nNext: keras-committee evaluate runs/tiny" in capsys.readouterr().out


def test_the_folder_is_owned_while_it_is_trained_in_and_free_afterwards(folder, monkeypatch, capsys):
    def train_again(*_, **__):
        codes.append(cli.main(["train", "tiny.py"]))

    codes = []
    monkeypatch.setattr(training, "train_committee", train_again)
    assert cli.main(["train", "tiny.py"]) == 0
    assert codes == [4]
    assert f"in use by pid {os.getpid()}" in capsys.readouterr().err


def test_a_smoke_run_has_its_own_folder_and_a_small_recipe(folder, untrained):
    assert cli.main(["train", "tiny.py", "--set", "members=4", "--smoke"]) == 0
    [(run, recipe, _, _)] = untrained
    assert (str(run.path), run.smoke) == ("runs/tiny-smoke", True)
    assert (recipe.members, recipe.epochs, recipe.data.limit) == (2, 1, 256)


def test_other_versions_than_at_the_start_are_warned_of(folder, untrained, capsys, monkeypatch):
    assert cli.main(["train", "tiny.py"]) == 0
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(Run, "changed_versions", lambda run: ["keras 3.15.1 -> 4.2.0"])
    assert cli.main(["train", "tiny.py"]) == 0
    assert "warning: runs/tiny was begun with other versions: keras 3.15.1 -> 4.2.0." in capsys.readouterr().err


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_a_failure_is_told_without_a_traceback_and_with_its_exit_code(folder, monkeypatch, capsys):
    monkeypatch.setattr(training, "train_committee", failing(DivergedError("member 1 diverged at step 812")))
    assert cli.main(["train", "tiny.py"]) == 5
    assert capsys.readouterr().err.endswith("error: member 1 diverged at step 812\n")


@pytest.mark.parametrize("arguments", [["--debug", "train", "tiny.py"], ["train", "tiny.py", "--debug"]])
def test_debug_adds_the_traceback(folder, monkeypatch, capsys, arguments):
    monkeypatch.setattr(training, "train_committee", failing(DivergedError("member 1 diverged")))
    assert cli.main(arguments) == 5
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: member 1 diverged\n")


def test_ctrl_c_says_how_to_go_on(folder, monkeypatch, capsys):
    monkeypatch.setattr(training, "train_committee", failing(KeyboardInterrupt()))
    assert cli.main(["train", "tiny.py", "--run", "a b"]) == 130
    assert "error: interrupted. To go on: keras-committee train tiny.py --run 'a b'" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError("of ours"), EOFError("No data left in file")])
def test_a_bug_keeps_its_traceback(folder, monkeypatch, error):
    monkeypatch.setattr(training, "train_committee", failing(error))
    with pytest.raises(type(error), match=str(error)):
        cli.main(["train", "tiny.py"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A smoke run of tiny.py, trained from the command line, and what came on stdout."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        assert cli.main(["train", "tiny.py", "--smoke", "--workers", "1", "--json"]) == 0
    return folder, said.getvalue()


def test_training_as_json_says_one_document_and_leaves_two_models(trained):
    assert_one_document_and_two_models(*trained)


@pytest.mark.slow
def test_workers_that_train_in_processes_of_their_own_add_nothing_to_the_document(folder):
    command = [sys.executable, "-m", "keras_committee.cli", "train", "tiny.py", "--smoke", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert_one_document_and_two_models(folder, answer.stdout)


def assert_one_document_and_two_models(folder, said):
    assert json.loads(said) == {
        "recipe": "tiny",
        "run": "runs/tiny-smoke",
        "knobs": {"members": 2, "units": 10, "epochs": 2, "learning_rate": 0.01, "seed": 5},
        "smoke": True,
        "finished": [0, 1],
    }
    assert Run.open(folder / "runs/tiny-smoke").finished_members() == [0, 1]


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """A copy of the trained run, in the current folder."""
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/tiny-smoke"


def test_training_again_trains_nothing(copied):
    before = [copied.joinpath(f"members/{index}/model.keras").stat().st_mtime_ns for index in ("00", "01")]
    assert cli.main(["train", "tiny.py", "--smoke"]) == 0
    assert [copied.joinpath(f"members/{index}/model.keras").stat().st_mtime_ns for index in ("00", "01")] == before


def test_evaluate_as_json_is_the_evaluation_on_the_disk(copied, capsys):
    assert cli.main(["evaluate", "runs/tiny-smoke", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((copied / "evaluation.json").read_text())
    assert set(document) >= {"recipe", "split", "examples", "classes", "head", "members", "committees", "diversity"}
    assert (document["recipe"], document["split"], document["examples"]) == ("tiny", "test", 256)
    assert [member["name"] for member in document["members"]] == ["linear_0", "linear_1"]
    assert [committee["size"] for committee in document["committees"]] == [1, 2]
    assert np.shape(document["diversity"]["disagreement"]) == (2, 2)


def test_evaluate_prints_members_committees_and_where_all_of_it_is(copied, capsys):
    assert cli.main(["evaluate", "runs/tiny-smoke", "--split", "validation"]) == 0
    text = capsys.readouterr().out
    accuracy = json.loads((copied / "evaluation.json").read_text())["committees"][1]["accuracy"]["mean"]
    assert f"{accuracy:.4f} ± 0.0000" in text
    assert "linear_1" in text
    assert "examples of validation. All of it: runs/tiny-smoke/evaluation.json\n" in text
    assert text.endswith("\nNext: keras-committee select runs/tiny-smoke\n")


def test_evaluate_uses_the_recipe_and_the_knobs_of_the_run(folder, monkeypatch):
    file = RecipeFile.read("tiny.py")
    run = Run.create("runs/a", file, file.resolve(["members=3"]), command="train")
    (folder / "tiny.py").unlink()
    seen = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *given, split, **_: seen.append((*given, split)) or {})
    assert cli.main(["evaluate", "runs/a", "--split", "train", "--json"]) == 0
    [(opened, recipe, split)] = seen
    assert (opened, recipe.members, recipe.epochs, split) == (Run.open("runs/a"), 3, 2, "train")
    assert str(run.path) == "runs/a"


def test_a_missing_argument_is_told_in_our_form(capsys):
    assert cli.main(["describe"]) == 2
    assert capsys.readouterr().err == "error: Missing argument 'RECIPE'.\n  see: keras-committee describe --help\n"


def test_E09_a_reader_that_has_gone_away_is_no_failure(folder):
    program = "import sys; from keras_committee.cli import output; output.print_message('x' * 100_000); sys.exit(0)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 0)
