"""Help pages, exit codes and tracebacks of the command line, and the commands train, describe and evaluate."""

import json
import os
import pathlib
import subprocess
import sys

import click
import numpy as np
import pytest

import keras_committee
from keras_committee import cli, data, evaluation, metrics, training
from keras_committee.errors import DivergedError
from keras_committee.files import read_record
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import num_workers
from keras_committee.training.throughput import Throughput

HELP_PAGES = pathlib.Path(__file__).parent / "help"
DEFAULTS = {"members": 3, "epochs": 2, "batch_size": 64, "learning_rate": 0.05, "seed": 7, "classes": 10}


@pytest.fixture
def untrained(monkeypatch):
    """List of the calls of `train_committee`, which trains nothing."""
    calls = []
    monkeypatch.setattr(
        training,
        "train_committee",
        lambda run, recipe, strategy, **options: calls.append((run, recipe, strategy, options)),
    )
    return calls


@pytest.mark.parametrize("name", ["keras-committee", *cli.cli.commands])
def test_help_page(capsys, monkeypatch, name):
    """After an intended change, run this test with REWRITE_HELP=1 and review the difference."""
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*([name] if name in cli.cli.commands else []), "--help"]) == 0
    page, file = capsys.readouterr().out, HELP_PAGES / f"{name}.txt"
    if os.environ.get("REWRITE_HELP"):
        file.write_text(page)
    assert page == file.read_text()


def test_there_is_no_help_page_of_a_removed_command():
    assert {file.stem for file in HELP_PAGES.glob("*.txt")} == {"keras-committee", *cli.cli.commands}


def test_every_option_has_a_sentence_of_help_and_its_value_a_name():
    options = [
        (f"{name} {option.opts[0]}", option)
        for name, command in cli.cli.commands.items()
        for option in command.params
        if isinstance(option, click.Option)
    ]
    assert len(options) > 100
    assert [name for name, option in options if not (option.help[0].isupper() and option.help.endswith("."))] == []
    named = (click.Choice, click.types.BoolParamType)
    assert [name for name, option in options if not option.metavar and not isinstance(option.type, named)] == []


def test_the_list_of_commands_has_whole_sentences_in_the_order_of_a_workflow(capsys):
    cli.main(["--help"])
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.partition("Commands:\n")[2].splitlines()]
    assert [name for name, _ in listed] == list(cli.cli.commands)
    assert [name for name, sentence in listed if sentence.endswith("...") or not sentence.endswith(".")] == []
    assert (listed[0][0], listed[1][0]) == ("doctor", "init")


@pytest.mark.parametrize("command", [[], *([name] for name in cli.cli.commands)])
def test_every_command_prints_the_version(capsys, command):
    assert cli.main([*command, "--version"]) == 0
    assert capsys.readouterr().out == f"keras-committee {keras_committee.__version__}\n"


def test_no_command_prints_the_help_and_is_a_usage_error(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("Usage: keras-committee")


def test_every_public_name_can_be_reached_and_no_other():
    assert [name for name in keras_committee.__all__ if not hasattr(keras_committee, name)] == []
    assert set(keras_committee.__all__) <= set(dir(keras_committee))
    with pytest.raises(AttributeError, match="module 'keras_committee' has no attribute 'Comittee'"):
        keras_committee.Comittee  # noqa: B018


def test_describe_prints_docstring_parameters_and_members(folder, capsys):
    assert cli.main(["describe", "tiny.py", "--set", "members=2"]) == 0
    text = capsys.readouterr().out
    assert "tiny: A linear model on the digits: members that train in a second." in text
    assert "--set members=2" in text
    assert "linear_1" in text
    assert "linear_2" not in text
    assert "1,930" in text  # (8 * 8 * 3 + 1) * 10
    assert "2 x multiply-adds / 1e6, for one image" in text
    assert "precision of a new run: float32\n" in text


def test_describe_as_json_is_one_document_with_fixed_keys(folder, capsys):
    assert cli.main(["describe", "tiny.py", "--set", "classes=12", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert list(document) == ["recipe", "doc", "knobs", "precision", "members"]
    assert document["recipe"] == "tiny"
    assert document["doc"] == "A linear model on the digits: members that train in a second."
    assert document["knobs"] == DEFAULTS | {"classes": 12}
    assert document["precision"] == {"policy": "float32", "reason": ""}
    assert [member["index"] for member in document["members"]] == [0, 1, 2]
    last = document["members"][2]
    assert list(last) == [
        "index", "name", "parameters", "mflops", "uncounted", "expected_depth", "expected_saving", "batch_size",
        "memory",
    ]  # fmt: skip
    assert last["memory"]["weights"] == last["memory"]["gradients"] == 4 * last["parameters"]
    assert last["memory"]["training"] == sum(list(last["memory"].values())[:6])
    assert last["memory"]["inference"] > last["memory"]["weights"]
    assert (last["name"], last["parameters"]) == ("linear_2", (8 * 8 * 3 + 1) * 12)
    assert last["mflops"] >= 2 * 8 * 8 * 3 * 12 / 1e6
    assert (last["expected_depth"], last["expected_saving"]) == (None, None)
    assert err.count("building\n") == 3


def test_describe_measures_the_time_of_training_with_the_faster_number_of_members_at_once(folder, capsys, monkeypatch):
    machine = num_workers.Machine("a CPU", cores=2, gpus=(), max_workers=2)
    monkeypatch.setattr(num_workers.Machine, "current", staticmethod(lambda: machine))
    result = Throughput({2: 3.0, 1: 5.0})
    monkeypatch.setattr(num_workers, "measure_throughput", lambda workload, settings: result)
    monkeypatch.setattr(num_workers, "_READING_SECONDS", 0.01)
    assert cli.main(["describe", "tiny.py", "--set", "members=2", "--measure", "--json"]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    assert (training["workers"], training["images_per_second"]) == (1, {"2": 3.0, "1": 5.0})
    splits = data.digits(64).load()
    images = 2 * 2 * (len(splits.train) + len(splits.validation) / 3)
    assert training["minutes"] == pytest.approx(images / 5.0 / 60, rel=0.01)
    assert training["reading"] > 1_000


def test_train_creates_the_run_and_passes_recipe_and_options(folder, untrained, capsys):
    options = ["--workers", "2", "--members", "1,0", "--checkpoint-every", "7", "--deterministic", "--restart"]
    options += ["--profile", "10,20"]
    assert cli.main(["train", "tiny.py", "--set", "epochs=7", "--strategy", "single", *options]) == 0
    [(run, recipe, strategy, passed)] = untrained
    assert (passed["workers"], passed["members"], passed["restart"]) == (2, [1, 0], True)
    assert passed["options"] == training.TrainingOptions(
        checkpoint_seconds=7.0, deterministic=True, profile_steps=(10, 20)
    )
    assert (str(run.path), recipe.epochs, recipe.members, strategy) == ("runs/tiny", 7, 3, "single")
    command = "keras-committee train tiny.py --set epochs=7 --strategy single --workers 2"
    assert run.environment()["command"].startswith(command)
    assert "\nNext: keras-committee evaluate runs/tiny" in capsys.readouterr().out


def test_the_run_is_locked_while_it_is_trained(folder, monkeypatch, capsys):
    def train_again(*_, **__):
        codes.append(cli.main(["train", "tiny.py"]))

    codes = []
    monkeypatch.setattr(training, "train_committee", train_again)
    assert cli.main(["train", "tiny.py"]) == 0
    assert codes == [4]
    assert f"in use by pid {os.getpid()}" in capsys.readouterr().err


def test_a_smoke_run_has_its_own_folder_and_a_reduced_recipe(folder, untrained):
    assert cli.main(["train", "tiny.py", "--set", "members=4", "--smoke"]) == 0
    [(run, recipe, _, _)] = untrained
    assert (str(run.path), run.smoke) == ("runs/tiny-smoke", True)
    assert (recipe.members, recipe.epochs, recipe.data.limit) == (2, 1, 256)


def test_changed_versions_are_a_warning(folder, untrained, capsys, monkeypatch):
    assert cli.main(["train", "tiny.py"]) == 0
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(Run, "changed_versions", lambda run: ["keras 3.15.1 -> 4.2.0"])
    assert cli.main(["train", "tiny.py"]) == 0
    assert "warning: runs/tiny was started with other versions: keras 3.15.1 -> 4.2.0." in capsys.readouterr().err


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("arguments", [["--debug", "train", "tiny.py"], ["train", "tiny.py", "--debug"]])
def test_debug_adds_the_traceback(folder, monkeypatch, capsys, arguments):
    monkeypatch.setattr(training, "train_committee", failing(DivergedError("member 1 diverged")))
    assert cli.main(arguments) == 5
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: member 1 diverged\n")


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), EOFError("No data left in file")])
def test_a_bug_keeps_its_traceback(folder, monkeypatch, error):
    monkeypatch.setattr(training, "train_committee", failing(error))
    with pytest.raises(type(error), match=str(error)):
        cli.main(["train", "tiny.py"])


@pytest.mark.slow
def test_worker_processes_add_nothing_to_the_document(folder, fork_server):
    """Also tests/training/test_supervisor.py, by processes that are not forked."""
    command = [sys.executable, "-m", "keras_committee.cli", "train", "tiny.py", "--smoke", "--json"]
    with fork_server.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, nested=True) as process:
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    document = json.loads(output)
    assert [member["index"] for member in document.pop("members")] == [0, 1]
    assert document == {
        "recipe": "tiny",
        "run": "runs/tiny-smoke",
        "parameters": DEFAULTS,
        "smoke": True,
        "finished": [0, 1],
    }
    assert Run.open("runs/tiny-smoke").finished_members() == [0, 1]


def test_training_again_trains_nothing_and_prints_one_document(copied, capsys):
    models = [copied / f"members/{index:02d}/model.keras" for index in range(3)]
    before = [model.stat().st_mtime_ns for model in models]
    assert cli.main(["train", "tiny.py", "--json"]) == 0
    assert [model.stat().st_mtime_ns for model in models] == before
    document = json.loads(capsys.readouterr().out)
    last = Run(copied).member(2).read_history()[-1]
    *_, member = members = document.pop("members")
    assert [member["index"] for member in members] == [0, 1, 2]
    assert (member["epoch"], member["epochs"], member["validation_accuracy"]) == (2, 2, last["validation_accuracy"])
    assert member["accuracy_interval"]["low"] < last["validation_accuracy"] < member["accuracy_interval"]["high"]
    assert member["seconds"] > 0
    assert document == {
        "recipe": "tiny",
        "run": "runs/tiny",
        "parameters": DEFAULTS,
        "smoke": False,
        "finished": [0, 1, 2],
    }


def test_trained_members_are_printed_with_epoch_accuracy_and_time(copied, capsys):
    assert cli.main(["train", "tiny.py"]) == 0
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    last = Run(copied).member(2).read_history()[-1]
    [row] = [line for line in lines if line.startswith("2 2 of 2 ")]
    assert row.startswith(f"2 2 of 2 {last['validation_accuracy']:.4f} [")
    assert row.endswith(" s")


def test_a_damaged_history_of_finished_members_is_a_warning(copied, capsys):
    history = Run(copied).member(1).history
    history.write_bytes(history.read_bytes()[:-9])
    assert cli.main(["train", "tiny.py"]) == 0
    captured = capsys.readouterr()
    assert f"warning: {history.relative_to(copied.parents[1])}" in captured.err
    assert "has 3 members." in captured.out


def test_evaluate_as_json_is_the_evaluation_on_disk(copied, capsys):
    assert cli.main(["evaluate", "runs/tiny", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == read_record(copied / "evaluation.json")
    assert set(document) >= {"recipe", "split", "examples", "classes", "head", "members", "committees", "diversity"}
    assert (document["recipe"], document["split"], document["examples"]) == ("tiny", "test", 360)
    assert [member["name"] for member in document["members"]] == ["linear_0", "linear_1", "linear_2"]
    assert [committee["size"] for committee in document["committees"]] == [1, 2, 3]
    assert np.shape(document["diversity"]["disagreement"]) == (3, 3)


def test_evaluate_prints_members_committees_and_the_file(copied, capsys):
    assert cli.main(["evaluate", "runs/tiny", "--split", "validation"]) == 0
    text = capsys.readouterr().out
    accuracy = read_record(copied / "evaluation.json")["committees"][2]["accuracy"]["mean"]
    interval = metrics.accuracy_interval(accuracy, 180)
    assert f"{accuracy:.4f} [{interval['low']:.3f}, {interval['high']:.3f}] │ -  " in text  # no deviation of one subset
    assert "linear_2" in text
    assert "Evaluated on 180 validation examples. Details: runs/tiny/evaluation.json\n" in text
    assert text.endswith("\nNext: keras-committee select runs/tiny\n")


def test_evaluate_uses_the_recipe_and_the_parameters_of_the_run(folder, monkeypatch):
    file = RecipeFile.read("tiny.py")
    run = Run.create("runs/a", file, file.resolve(["members=5"]), command="train")
    (folder / "tiny.py").unlink()
    calls = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *given, split, **_: calls.append((*given, split)) or {})
    monkeypatch.setattr(Run, "require_members", lambda *_: None)
    assert cli.main(["evaluate", "runs/a", "--split", "train", "--json"]) == 0
    [(opened, recipe, split)] = calls
    assert (opened, recipe.members, recipe.epochs, split) == (run, 5, 2, "train")
