"""Run folders: creation, resumption with changes, locks and the journal."""

import datetime
import json
import os
import re
import resource
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from keras_committee import run as run_module
from keras_committee.errors import DataError, IncompleteError, InUseError, RecipeError, ResourceError, RunError
from keras_committee.files import file_lock, write_file, write_record
from keras_committee.member_dir import DataInfo
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run, lock_runs, open_run, training_seconds

RACING = Path(__file__).with_name("racing.py")

SOURCE = '''"""Tiny."""


def recipe(members=8, learning_rate=0.1, widths=(1, 2), data_dir=None, seed=3): ...
'''


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(SOURCE)
    return RecipeFile.read(path)


@pytest.fixture
def create(recipe_file, tmp_path):
    def create(overrides=(), file=recipe_file, folder="runs/tiny", **options):
        parameters = file.resolve(overrides)
        return Run.create(tmp_path / folder, file, parameters, command="keras-committee train tiny.py", **options)

    return create


def begin(run):
    """Leave a checkpoint of an unfinished member."""
    (run.member(0).state / "step-000000000").mkdir(parents=True)
    return run


def test_a_run_folder_whose_name_is_not_utf8_is_refused(create):
    with pytest.raises(RunError, match=r"name of the run folder b'.*\\xe9' is not UTF-8\. Use another: --run DIR"):
        create(folder=os.fsdecode(b"\xe9"))


def test_a_parameter_that_is_not_utf8_is_recorded(create):
    data_dir = os.fsdecode(b"d\xe9ta")
    assert create(overrides=[f"data_dir={data_dir}"]).parameters()["data_dir"] == data_dir


def test_a_new_run_records_recipe_parameters_and_environment(create, tmp_path):
    run = create(["learning_rate=0.05"])
    assert (tmp_path / "runs/tiny/recipe.py").read_text() == SOURCE
    assert json.loads((tmp_path / "runs/tiny/parameters.json").read_text())["learning_rate"] == 0.05
    environment = run.environment()
    assert environment["recipe"] == "tiny"
    assert environment["command"] == "keras-committee train tiny.py"
    assert (environment["seed"], environment["smoke"], environment["cpus"]) == (3, False, os.cpu_count())
    assert environment["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(environment["versions"]) == {"python", "keras-committee", "keras", "tensorflow", "numpy"}
    assert set(environment) >= {"commit", "platform"}


def test_the_run_folder_is_private_to_its_owner(create):
    assert stat.S_IMODE(create().path.stat().st_mode) == 0o700


def test_an_opened_run_returns_recipe_and_parameters(create):
    run = Run.open(create(["widths=(4, 5)", "members=2"], smoke=True).path)
    assert run.smoke is True
    assert run.parameters() == {"members": 2, "learning_rate": 0.1, "widths": (4, 5), "data_dir": None, "seed": 3}
    file = run.recipe_file()
    assert (file.name, file.docstring, file.sources()["recipe.py"]) == ("tiny", "Tiny.", SOURCE)


def test_the_same_recipe_and_parameters_continue_a_run_and_keep_its_environment(create):
    before = (create(["learning_rate=0.05"]).path / "environment.json").stat().st_mtime_ns
    after = (create(["learning_rate=0.05"]).path / "environment.json").stat().st_mtime_ns
    assert before == after


def test_a_run_killed_during_creation_is_created_again(create):
    (create().path / "environment.json").unlink()
    assert create(["members=2"]).parameters()["members"] == 2


def test_another_recipe_is_an_error_with_the_different_lines(create, tmp_path):
    run = begin(create())
    other = tmp_path / "other.py"
    other.write_text(SOURCE.replace("Tiny.", "Larger.").replace("seed=3", "depth=16"))
    with pytest.raises(RunError, match="was trained with a different configuration") as caught:
        create(file=RecipeFile.read(other))
    lines = str(caught.value).splitlines()
    assert "  seed 3 -> absent" in lines
    assert "  depth absent -> 16" in lines
    assert '  recipe -"""Tiny."""' in lines
    assert '  recipe +"""Larger."""' in lines
    assert run.recipe_file().sources()["recipe.py"] == SOURCE


EDITED = {
    "comment": SOURCE.replace("\n\n\ndef", "\n\n# With a comment.\ndef"),
    "docstring": SOURCE.replace("Tiny.", "Larger."),
    "layout": SOURCE.replace("members=8, learning_rate=0.1", "members = 8,\n    learning_rate = 0.1"),
    "code": SOURCE.replace(": ...", ": return members"),
    "import": SOURCE.replace("\n\n\ndef", "\n\nimport keras\n\ndef"),
}


@pytest.fixture
def edited(tmp_path):
    def edited(kind):
        path = tmp_path / "edited" / "tiny.py"
        path.parent.mkdir()
        path.write_text(EDITED[kind])
        return RecipeFile.read(path)

    return edited


def snapshot(folder):
    """Return name, content and time of every file except the locks."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and "lock" not in path.name]
    return [(path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in files]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("learning_rate=0.05", "learning_rate 0.1 -> 0.05"),
        ("learning_rate=0.1000001", "learning_rate 0.1 -> 0.1000001"),
        ("widths=(1, 3)", "widths [1, 2] -> [1, 3]"),
        ("seed=4", "seed 3 -> 4"),
        ("members=7", "members 8 -> 7"),
    ],
)
def test_A17_a_parameter_that_changes_results_is_an_error_with_both_values(create, change, line):
    run = begin(create())
    before = snapshot(run.path)
    with pytest.raises(RunError, match="was trained with a different configuration") as caught:
        create([change])
    assert caught.value.exit_code == 4
    assert str(caught.value).splitlines()[1:] == [
        f"  {line}",
        f"No file was changed. To keep both, run: keras-committee train tiny.py --run {run.path}-2",
        "To keep the finished members and train the others with the change, add: --allow-config-change",
    ]
    assert snapshot(run.path) == before


@pytest.mark.parametrize(
    ("change", "name", "value", "line"),
    [
        ("learning_rate=0.05", "learning_rate", 0.05, "learning_rate 0.1 -> 0.05"),
        ("seed=4", "seed", 4, "seed 3 -> 4"),
        ("widths=(1, 3)", "widths", (1, 3), "widths [1, 2] -> [1, 3]"),
    ],
)
def test_A17_an_allowed_change_is_recorded_and_journaled(create, change, name, value, line):
    environment = begin(create()).environment()
    run = create([change], allow_config_change=True)
    assert run.parameters()[name] == value
    command = f"keras-committee train tiny.py --set {shlex.quote(change)}"
    assert {**run.environment(), "files": {}} == {**environment, "files": {}, "command": command}
    assert [(event["event"], event["changes"]) for event in run.events()] == [("changed", [line])]
    create([change])
    assert len(run.events()) == 1
    with pytest.raises(RunError, match=f"{name} .* -> "):
        create()


def test_A17_fewer_members_need_an_allowed_change_and_more_members_do_not(create):
    begin(create())
    assert create(["members=2"], allow_config_change=True).parameters()["members"] == 2
    run = create(["members=5"])
    assert [event["changes"] for event in run.events()] == [["members 8 -> 2"], ["members 2 -> 5"]]


@pytest.mark.parametrize(
    ("change", "name", "value", "line"),
    [
        ("members=9", "members", 9, "members 8 -> 9"),
        ("data_dir=/mnt/cifar", "data_dir", "/mnt/cifar", "data_dir None -> /mnt/cifar"),
    ],
)
def test_A17_more_members_and_moved_data_are_accepted(create, change, name, value, line):
    create()
    run = create([change])
    assert run.parameters()[name] == value
    assert [event["changes"] for event in run.events()] == [[line]]


def test_A17_an_error_lists_only_changes_that_affect_results(create):
    begin(create())
    with pytest.raises(RunError, match=r"seed 3 -> 4") as caught:
        create(["members=12", "seed=4"])
    assert "members 8" not in str(caught.value)


@pytest.mark.parametrize("kind", ["comment", "docstring", "layout"])
def test_A17_a_recipe_with_the_same_program_continues_and_is_recorded(create, edited, kind):
    create()
    run = create(file=edited(kind))
    assert run.recipe_file().sources()["recipe.py"] == EDITED[kind]
    (event,) = run.events()
    assert all(line.startswith(("recipe +", "recipe -")) for line in event["changes"])
    assert snapshot(run.path) == snapshot(create(file=RecipeFile.read(run.path / "recipe.py", "tiny")).path)


@pytest.mark.parametrize(("kind", "line"), [("code", ": return members"), ("import", "import keras")])
def test_A17_a_recipe_with_another_program_needs_an_allowed_change(create, edited, kind, line):
    before = snapshot(begin(create()).path)
    file = edited(kind)
    with pytest.raises(RunError, match=line) as caught:
        create(file=file)
    assert caught.value.exit_code == 4
    assert snapshot(create().path) == before
    run = create(file=file, allow_config_change=True)
    assert run.recipe_file().sources()["recipe.py"] == EDITED[kind]
    assert line in str(run.events()[0]["changes"])


@pytest.mark.parametrize("smoke", [False, True])
def test_A17_a_run_without_members_takes_any_configuration(create, edited, smoke):
    create().append_event("training_started", smoke=False)
    run = create(["learning_rate=0.3", "members=2"], file=edited("code"), smoke=smoke)
    assert (run.parameters()["learning_rate"], run.parameters()["members"]) == (0.3, 2)
    assert run.recipe_file().sources()["recipe.py"] == EDITED["code"]
    assert run.smoke == smoke
    assert "learning_rate 0.1 -> 0.3" in run.events()[-1]["changes"]


def test_A17_a_shared_run_without_members_takes_no_other_configuration(create):
    create(shared=True)
    with pytest.raises(RunError, match=r"learning_rate 0\.1 -> 0\.3"):  # the other process may be about to train
        create(["learning_rate=0.3"], shared=True)


def test_A22_a_damaged_record_without_members_is_written_again(create):
    run = create()
    (run.path / "parameters.json").write_text("{")
    assert create(["seed=5"]).parameters()["seed"] == 5


def test_A17_a_smoke_run_takes_any_configuration_and_trains_again(create):
    run = create(smoke=True)
    finish(run, 0, classes=("cat", "dog"), transform={})
    begin_stack(run)
    assert create(["members=9"], smoke=True).finished_members() == [0]
    create(["seed=5"], smoke=True)
    assert (run.finished_members(), run.stacked_state.exists(), run.parameters()["seed"]) == ([], False, 5)


def begin_stack(run):
    (run.stacked_state / "step-000000000").mkdir(parents=True)


def test_A17_members_that_train_as_one_program_are_kept(create):
    begin_stack(create())
    with pytest.raises(RunError, match=r"seed 3 -> 5"):
        create(["seed=5"])


@pytest.mark.parametrize(
    ("command", "suggested"),
    [
        ("train tiny.py --run 'runs/tiny' --set seed=5 --workers 2", "train tiny.py --set seed=5 --workers 2 --run"),
        ("train tiny.py --run=runs/tiny --set 'name=two words'", "train tiny.py --set 'name=two words' --run"),
        ("train it's", "'train it'\"'\"'s' --run"),
    ],
)
def test_A17_the_suggested_command_keeps_its_options_and_names_a_new_folder(recipe_file, tmp_path, command, suggested):
    path = tmp_path / "runs/tiny"
    begin(Run.create(path, recipe_file, recipe_file.resolve([]), command="train"))
    (tmp_path / "runs/tiny-2").mkdir()
    with pytest.raises(RunError, match=re.escape(f"To keep both, run: {suggested} {path}-3\n")):
        Run.create(path, recipe_file, recipe_file.resolve(["seed=5"]), command=command)


def test_A17_a_long_change_is_listed_in_ten_lines(create, tmp_path):
    begin(create())
    other = tmp_path / "other.py"
    other.write_text(SOURCE + "".join(f"a{index} = {index}\n" for index in range(30)))
    with pytest.raises(RunError, match=r"recipe \+a9 = 9\n  \.\.\. and 20 more lines\nNo file"):
        create(file=RecipeFile.read(other))


@pytest.mark.parametrize("first", [True, False])
def test_A17_a_smoke_run_and_a_full_run_never_share_a_folder(create, first):
    before = snapshot(begin(create(smoke=first)).path)
    for allow_change in (False, True):
        with pytest.raises(RunError, match=f"--smoke {first} -> {not first}") as caught:
            create(smoke=not first, allow_config_change=allow_change)
        assert "--allow-config-change" not in str(caught.value)
    assert snapshot(create(smoke=first).path) == before


def test_A17_a_kill_between_writing_recipe_and_parameters_leaves_a_readable_run(create, tmp_path, monkeypatch):
    run = create()
    other = tmp_path / "other.py"
    other.write_text(SOURCE.replace("widths=(1, 2), ", ""))

    def killed(path, content):
        if path.name == "parameters.json":
            raise KeyboardInterrupt
        write_file(path, content)

    monkeypatch.setattr(run_module, "write_file", killed)
    with pytest.raises(KeyboardInterrupt):
        create(file=RecipeFile.read(other), allow_config_change=True)
    assert run.recipe_file().content == other.read_bytes()
    assert run.parameters() == {"members": 8, "learning_rate": 0.1, "widths": [1, 2], "data_dir": None, "seed": 3}


def test_a_folder_with_other_files_does_not_become_a_run(create, tmp_path):
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"is not a run folder and not empty: it contains thesis\.tex\. Choose another"):
        create()


def test_a_folder_that_cannot_be_written_is_a_resource_error(create, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*file/run: File exists: .*/file\."):
        create(folder="file/run")


def test_opening_a_folder_without_a_run_is_an_error_with_the_reason(tmp_path, create):
    with pytest.raises(RunError, match="is not a run folder: there is no such folder"):
        Run.open(tmp_path / "missing")
    run = create()
    (run.path / "parameters.json").unlink()
    with pytest.raises(RunError, match=r"is not a run folder: it has no parameters\.json"):
        Run.open(run.path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "runs/tinny",
            r"no such folder\. Did you mean '.*runs/tiny'\? Create one with `.*train RECIPE --run .*runs/tinny`\.",
        ),
        ("pets.py", r"it is a file\. Create a run with `keras-committee train .*pets\.py`\."),
        ("cat.jpg", r"it is a file\. Create a run with `keras-committee train RECIPE`\."),
    ],
)
def test_opening_another_path_is_an_error_with_the_command_that_creates_a_run(tmp_path, create, path, message):
    create()
    for name in ("pets.py", "cat.jpg"):
        (tmp_path / name).write_text("")
    with pytest.raises(RunError, match=f"is not a run folder: .*{message}"):
        Run.open(tmp_path / path)


def test_changed_versions_are_listed(create):
    run = create()
    assert run.changed_versions() == []
    environment = run.environment()
    environment["versions"] |= {"keras": "1.2.3"}
    write_record(run.path / "environment.json", environment)
    assert [change.split(" -> ")[0] for change in run.changed_versions()] == ["keras 1.2.3"]


def test_the_files_of_a_member_are_in_its_own_folder(create):
    run = create()
    member = run.member(7)
    assert member.path == run.path / "members" / "07"
    names = [member.model.name, member.history.name, member.tensorboard.name, member.state.name]
    assert names == ["model.keras", "history.jsonl", "tensorboard", "state"]
    assert member.epoch_predictions(12) == member.path / "validation" / "0012.npy"


def test_a_member_with_a_model_is_finished(create):
    run = create()
    for index in (10, 2, 0):
        run.member(index).state.mkdir(parents=True)
    run.member(10).model.touch()
    run.member(2).model.touch()
    (run.path / "members" / "notes").mkdir()
    assert run.finished_members() == [2, 10]
    assert not run.member(0).finished


def test_a_run_without_members_has_none_finished(create):
    assert create().finished_members() == []


def test_the_journal_keeps_events_in_order_with_their_time_in_utc(create):
    run = create()
    assert run.events() == []
    run.append_event("member_started", member=0)
    run.append_event("member_failed", member=0, error="é\nnan")
    first, second = run.events()
    assert {**first, "time": ""} == {"time": "", "event": "member_started", "member": 0}
    assert second["error"] == "é\nnan"
    assert datetime.datetime.fromisoformat(first["time"]).utcoffset() == datetime.timedelta(0)
    assert first["time"] <= second["time"]


def test_a_journal_damaged_in_the_middle_is_an_error(create):
    run = create()
    run.append_event("first")
    path = run.path / "journal.jsonl"
    path.write_bytes(b"\0\0\0\n" + path.read_bytes())
    with pytest.raises(RunError, match=r"journal\.jsonl is damaged: line 1: .*\n  Move it elsewhere to continue"):
        run.events()


def test_A21_a_flipped_bit_of_the_journal_is_an_error_or_changes_no_event(create):
    run = create()
    run.append_event("first", classes=["3", "5"])
    run.append_event("second", seconds=1.5)
    path, events = run.path / "journal.jsonl", run.events()
    content = path.read_bytes()
    outcomes = []
    for position in range(len(content)):
        path.write_bytes(flipped(content, position, position % 8))
        try:
            outcomes.append(run.events() == events)
        except RunError:
            outcomes.append(None)
    assert False not in outcomes
    assert outcomes.count(True) == 1  # the last end of a line


def flipped(content, position, bit):
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def test_a_last_event_without_the_end_of_its_line_is_complete(create):
    run = create()
    run.append_event("first")
    path = run.path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert [event["event"] for event in run.events()] == ["first"]
    run.append_event("second")
    assert [event["event"] for event in run.events()] == ["first", "second"]


def test_a_journal_of_an_earlier_version_is_an_error_with_the_way_on(create):
    run = create()
    (run.path / "journal.jsonl").write_text('{"event": "training_started"}\n')
    with pytest.raises(RunError, match=r"line 1: it has no checksum; an earlier version wrote none\. The members are"):
        run.events()
    run.append_event("training_started")
    (run.path / "journal.jsonl").rename(run.path / "away")
    assert run.events() == []


def test_A22_a_journal_that_is_a_folder_is_an_error(create):
    run = create()
    (run.path / "journal.jsonl").mkdir()
    for use in (run.events, lambda: run.append_event("first"), lambda: run.lock().__enter__(), create):
        with pytest.raises(RunError, match=r"journal\.jsonl is damaged: it is a folder\. .*\n  Move it elsewhere"):
            use()


@pytest.fixture
def half_trained(create):
    """A run with one finished member and one that has checkpoints."""
    run = create(["learning_rate=0.2"])
    run.append_event("training_started", smoke=False)
    finish(run, 0, classes=("cat", "dog"), transform={})
    run.member(1).state.mkdir(parents=True)
    return run


@pytest.mark.parametrize("name", ["recipe.py", "parameters.json", "environment.json"])
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_A22_a_damaged_record_is_an_error_and_the_same_command_restores_it(create, half_trained, name, damage):
    run, path = half_trained, half_trained.path / name
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(flipped(content, content.rindex(b"t"), 1))
    command = rf".* train RECIPE --run {run.path}$" if name == "environment.json" else ".* train tiny.py$"
    reason = {"missing": "is missing", "flipped": r"is damaged: its (checksum|SHA-256) .*"}[damage]
    message = (
        rf"{name} {reason}\.\n  The members are safe: 1 finished, 1 with checkpoints\. To restore the record, run the "
        rf"training command of this run again, with the same recipe and --set options: {command}"
    )
    for use in (run.recipe_file, run.parameters, run.environment, lambda: Run.open(run.path)):
        with pytest.raises(RunError, match=message):
            use()
    create(["learning_rate=0.2"])
    assert run.parameters()["learning_rate"] == 0.2
    assert run.environment()["command"] == "keras-committee train tiny.py"
    assert run.recipe_file().content == SOURCE.encode()
    assert run.events()[-1]["files"] == [name]
    assert run.finished_members() == [0]


def test_A22_a_damaged_module_of_the_recipe_is_an_error_and_the_same_command_restores_it(create, tmp_path):
    path = tmp_path / "with_module.py"
    path.write_text(f"import beside\n{SOURCE}")
    (tmp_path / "beside.py").write_text("DEPTH = 3\n")
    run = begin(create(file=RecipeFile.read(path)))
    recorded = run.path / "recipe_modules" / "beside.py"
    recorded.write_text("DEPTH = 7\n")
    with pytest.raises(RunError, match=r"recipe_modules/beside\.py is damaged: its SHA-256 is not that in environment"):
        run.recipe_file()
    (tmp_path / "beside.py").write_text("DEPTH = 7\n")
    with pytest.raises(
        RunError, match=r"the recipe_modules/beside\.py of this command is not known to be the recorded"
    ):
        create(file=RecipeFile.read(path))
    (tmp_path / "beside.py").write_text("DEPTH = 3\n")
    create(file=RecipeFile.read(path))
    assert recorded.read_text() == "DEPTH = 3\n"


@pytest.mark.parametrize("name", ["recipe.py", "parameters.json"])
def test_A22_a_damaged_record_is_not_replaced_by_another_one(create, half_trained, tmp_path, name):
    run = half_trained
    (run.path / name).unlink()
    before = snapshot_files(run.path)
    other = tmp_path / "other.py"
    other.write_text({"recipe.py": SOURCE.replace("...", "return members"), "parameters.json": SOURCE}[name])
    given = {"recipe.py": ["learning_rate=0.2"], "parameters.json": ["learning_rate=0.3"]}
    with pytest.raises(RunError, match=rf"{name} is missing; the {name} of this command is not known to be the rec"):
        create(given[name], file=RecipeFile.read(other))
    assert snapshot_files(run.path) == before
    create(["learning_rate=0.2"], allow_config_change=True)
    assert run.parameters()["learning_rate"] == 0.2


def snapshot_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and "lock" not in path.name}


def test_A22_a_lost_environment_is_not_restored_for_another_configuration(create, half_trained):
    (half_trained.path / "environment.json").unlink()
    with pytest.raises(RunError, match=r"learning_rate 0\.2 -> 0\.1"):
        create()
    with pytest.raises(RunError, match=r"--smoke False -> True"):
        create(["learning_rate=0.2"], smoke=True)
    assert not (half_trained.path / "environment.json").exists()
    create(["learning_rate=0.2", "members=9"])
    assert half_trained.parameters()["members"] == 9


def test_a_member_without_a_description_of_its_data_is_an_error_with_the_way_on(create):
    run = create()
    run.member(0).path.mkdir(parents=True)
    with zipfile.ZipFile(run.member(0).model, "w") as archive:
        archive.writestr("config.json", "{}")
    run.require_classes(["cat"])
    with pytest.raises(RunError, match=r"does not contain the classes .*\n  To use it, .*import .*/recipe\.py .*--run"):
        run.data_info(0)


@pytest.mark.parametrize("content", [b"", b"PK", b"\0" * 300])
def test_a_damaged_member_is_an_error_with_the_way_on(create, content):
    run = create()
    run.member(0).path.mkdir(parents=True)
    run.member(0).model.write_bytes(content)
    with pytest.raises(RunError, match=r"model\.keras cannot be loaded: .*\n  Delete it, then run"):
        run.data_info(0)


def test_A21_no_flipped_bit_changes_the_description_of_a_members_data(create):
    run = create()
    finish(run, 0, classes=("cat", "3"), transform={"size": [7, 9]})
    content, info, outcomes = run.member(0).model.read_bytes(), run.data_info(0), []
    for position in range(len(content)):
        run.member(0).model.write_bytes(flipped(content, position, position % 8))
        try:
            outcomes.append(run.data_info(0) == info)
        except RunError:
            outcomes.append(None)
    assert False not in outcomes
    assert None in outcomes


def test_a_second_process_is_an_error_with_the_holder_until_the_lock_is_released(create):
    run = create()
    with run.lock():
        with pytest.raises(RunError, match=rf"is in use by pid {os.getpid()} on host .+ since 20\d\d-.*No file was"):
            run.lock().__enter__()
        with pytest.raises(RunError, match="is in use by pid"):
            create()
    with run.lock():
        assert json.loads((run.path / "lock").read_text())["pid"] == os.getpid()


def test_the_lock_is_released_after_an_exception(create):
    run = create()
    with pytest.raises(ZeroDivisionError, match="division"), run.lock():
        1 / 0  # noqa: B018
    with run.lock():
        pass


def test_exactly_one_of_many_threads_gets_the_lock(create):
    run = create()
    barrier, losers, outcomes = threading.Barrier(8), threading.Semaphore(0), []

    def compete():
        barrier.wait()
        try:
            with run.lock():
                outcomes.append("won")
                for _ in range(7):
                    losers.acquire(timeout=10)
        except RunError:
            outcomes.append("lost")
            losers.release()

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]


@pytest.mark.parametrize("name", ["two words", "übung-Öl", "line\nbreak", "quote'\"s", "-dash", "x" * 200, "%s{}$HOME"])
def test_E12_a_folder_may_have_any_name(create, tmp_path, name):
    run = create(folder=name)
    with run.lock():
        run.append_event("trained", note=name)
    assert Run.open(tmp_path / name).events()[-1]["note"] == name


def test_E12_a_name_that_is_too_long_is_a_resource_error(create, tmp_path):
    with pytest.raises(ResourceError, match=r"cannot write .*File name too long"):
        create(folder="x" * 256)


@pytest.fixture
def race(tmp_path):
    def race(scene, rounds):
        command = [sys.executable, str(RACING), str(tmp_path), scene, str(rounds)]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert completed.stderr == ""
        return [json.loads(line) for line in completed.stdout.splitlines()]

    return race


RECORD = [True, {"members": 8, "learning_rate": 0.1, "seed": 3}, "tiny"]


def test_A15_exactly_one_of_two_processes_that_create_a_run_gets_it_in_each_of_50_races(race):
    rounds = race("exclusive", 50)
    assert len(rounds) == 50
    for result in rounds:
        (error,) = set(result["results"]) - {"won"}
        assert sorted(result["results"]) == sorted(["won", error])
        assert re.search(r"is in use by (pid \d+ on host|another process).*No file was changed", error)
        assert [event["event"] for event in result["events"]] == ["won"]
        assert result["record"] == RECORD
        files = [".record.lock", "environment.json", "journal.jsonl", "lock", "parameters.json", "recipe.py"]
        assert result["files"] == files


def test_A15_processes_that_create_a_shared_run_at_once_all_succeed(race):
    rounds = race("shared", 15)
    assert len(rounds) == 15
    for result in rounds:
        assert result["results"] == ["won"] * 8
        assert result["record"] == RECORD
        steps = [(event["process"], event["step"]) for event in result["events"]]
        assert sorted(steps) == [(process, step) for process in range(8) for step in range(5)]


def test_A15_a_shared_run_waits_while_another_process_writes_the_record(tmp_path, create):
    lock = file_lock(tmp_path / "runs/tiny/.record.lock", "the record")
    lock.__enter__()
    threading.Timer(0.3, lambda: lock.__exit__(None, None, None)).start()
    assert create(["members=2"], shared=True).parameters()["members"] == 2


def test_events_that_four_processes_append_at_once_are_complete(race):
    (result,) = race("journal", 1)
    assert result["results"] == ["won"] * 4
    for process in range(4):
        events = [event for event in result["events"] if event["process"] == process]
        assert [event["step"] for event in events] == list(range(50))
        assert {event["text"] for event in events} == {"x" * (process * 900)}
    assert len(result["events"]) == 200


@pytest.mark.parametrize("partial", [b'{"event": "ha', b"\0" * 4096, b"\xff"])
def test_A01_the_partial_last_line_of_a_killed_process_is_removed(create, partial):
    run = create()
    run.append_event("first")
    path = run.path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + partial)
    assert [event["event"] for event in run.events()] == ["first"]
    run.append_event("second")
    assert [event["event"] for event in run.events()] == ["first", "second"]
    assert path.read_bytes().count(b"\n") == 2


def test_an_event_is_written_before_the_journal_is_flushed_to_disk(create, monkeypatch):
    run, flushed = create(), []
    monkeypatch.setattr(os, "fsync", lambda _: flushed.append(json.loads((run.path / "journal.jsonl").read_bytes())))
    run.append_event("first")
    assert [event["event"] for event in flushed] == ["first"]


@pytest.fixture
def limit():
    """Limit the size of files in bytes; the system then writes a partial line."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_A06_a_partially_written_event_is_a_resource_error_and_is_removed(create, limit):
    run = create()
    run.append_event("first")
    path = run.path / "journal.jsonl"
    limit(path.stat().st_size + 20)
    with pytest.raises(ResourceError, match=r"cannot write .*journal\.jsonl: File too large"):
        run.append_event("second")
    assert [event["event"] for event in run.events()] == ["first"]
    limit(resource.RLIM_INFINITY)
    run.append_event("third")
    assert [event["event"] for event in run.events()] == ["first", "third"]


def test_missing_members_are_an_error_with_the_commands_to_continue(create):
    run = create(["members=3"])
    for index in (0, 2):
        run.member(index).path.mkdir(parents=True)
        run.member(index).model.touch()
    with pytest.raises(IncompleteError) as caught:
        run.available_members(3)
    assert str(caught.value) == (
        f"{run.path} has 2 of 3 members; not trained: 1.\n"
        "  To resume, run: keras-committee train tiny.py\n"
        "  To use the finished members only, add: --allow-incomplete 2"
    )
    assert run.available_members(3, min_members=2) == [0, 2]
    assert run.available_members(1) == [0]
    with pytest.raises(IncompleteError, match="2 of 3 members"):
        run.available_members(3, min_members=3)


def finish(run, index, **data):
    """Leave the file of a finished member, without a network."""
    run.member(index).path.mkdir(parents=True)
    DataInfo(**data).add_to(run.member(index).model)


def test_other_classes_are_an_error_with_the_first_difference(create):
    run = create()
    run.require_classes(["cat", "dog"])
    finish(run, 0, classes=("cat", "dog"), transform={"size": [7, 9]})
    assert run.data_info(0) == DataInfo(classes=("cat", "dog"), transform={"size": [7, 9]})
    run.require_classes(["cat", "dog"])
    with pytest.raises(RecipeError, match=r"were trained on\. First difference: class 1 dog -> fox\.\n  Restore"):
        run.require_classes(["cat", "fox"])


def journal(*events):
    return [{"time": f"2026-01-02T{time}.000+00:00", "event": name} for time, name in events]


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ([("10:00:00", "training_started"), ("10:01:30", "training_finished")], 90),
        ([("10:00:00", "training_started"), ("10:00:20", "training_failed"), ("19:00:00", "member_imported")], 20),
        ([("10:00:00", "training_started"), ("10:00:07", "training_stopped"), ("11:00:00", "evaluated")], 7),
        ([("10:00:00", "training_started"), ("10:02:00", "member_saved")], 120),
        (
            [
                ("10:00:00", "training_started"),
                ("10:02:00", "member_saved"),  # killed
                ("11:00:00", "training_started"),
                ("11:01:30", "training_finished"),
                ("19:00:00", "evaluated"),
            ],
            210,
        ),
        ([("10:00:00", "training_started")], 0),
        ([("10:00:00", "training_started"), ("09:00:00", "member_saved")], 0),  # the clock was set back
        ([("10:00:00", "evaluated")], None),
        ([], None),
    ],
)
def test_training_seconds_sum_all_starts_up_to_their_end_or_last_event(events, seconds):
    assert training_seconds(journal(*events)) == seconds


BUILDABLE = """
from dataclasses import dataclass
from keras_committee import Recipe

@dataclass(frozen=True)
class Data:
    batch_size: int = 32
    limit: int | None = None
    def load(self): ...

def recipe(members=3, rate=0.2):
    return Recipe(data=Data(), member=lambda i: i, members=members, optimizer=lambda steps: rate, epochs=5, loss=max)
"""


@pytest.fixture
def buildable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(BUILDABLE)
    return "small.py"


def test_open_run_creates_the_run_locks_it_and_builds_the_recipe(buildable):
    with open_run(buildable, ["members=4"], command="train small.py") as (run, recipe):
        assert run.path == Path("runs/small")
        assert (recipe.members, recipe.epochs, recipe.optimizer(10)) == (4, 5, 0.2)
        assert run.parameters() == {"members": 4, "rate": 0.2}
        assert run.environment()["command"] == "train small.py"
        with pytest.raises(InUseError, match=r"run folder runs/small is in use by pid"):
            run.lock().__enter__()
    with run.lock():
        pass


def test_open_run_continues_a_run_and_requires_the_same_parameters(buildable):
    with open_run(buildable, {"rate": 0.7}, path="a", command="train") as (run, _):
        begin(run).append_event("training_started")
    with open_run(RecipeFile.read(buildable), ["rate=0.7", "members=5"], path="a", command="again") as (run, recipe):
        assert recipe.members == 5
        assert [event["event"] for event in run.events()] == ["training_started", "changed"]
        assert run.environment()["command"] == "train --set members=5"
    with pytest.raises(RunError, match=r"rate 0\.7 -> 0\.2"), open_run(buildable, path="a", command="train"):
        pass
    changed = open_run(buildable, ["members=5"], path="a", command="train", allow_config_change=True)
    with changed as (run, recipe):
        assert (run.parameters()["rate"], recipe.optimizer(10)) == (0.2, 0.2)


def test_open_run_of_a_smoke_run_has_its_own_folder_and_a_reduced_recipe(buildable):
    with open_run(buildable, command="train", smoke=True) as (run, recipe):
        assert run.path == Path("runs/small-smoke")
        assert run.smoke
        assert (recipe.members, recipe.epochs) == (2, 1)


def test_open_run_with_a_shared_lock_allows_another_one(buildable):
    with (
        open_run(buildable, command="train", shared=True),
        open_run(buildable, command="train", shared=True) as (run, _),
        pytest.raises(InUseError, match="is in use"),
    ):
        run.lock().__enter__()


@pytest.mark.parametrize("rate", ["'not a number'", "1 / 0"])
def test_a_recipe_that_cannot_be_built_makes_no_folder(buildable, rate):
    Path(buildable).write_text(BUILDABLE.replace("epochs=5", f"epochs={rate}"))
    with pytest.raises(RecipeError, match=r"epochs|ZeroDivisionError"), open_run(buildable, command="train"):
        pass
    assert not Path("runs").exists()


def test_a_folder_of_something_else_is_left_as_it_is(buildable):
    Path("images").mkdir()
    Path("images/cat.png").touch()
    with pytest.raises(RunError, match="not a run folder"), open_run(buildable, path="images", command="train"):
        pass
    assert os.listdir("images") == ["cat.png"]


MOVED = """
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from keras_committee import Recipe

@dataclass(frozen=True)
class Data:
    folder: Path
    batch_size: int = 32
    limit: int | None = None
    def load(self):
        content = (self.folder / "a.txt").read_text()
        return SimpleNamespace(classes=("a",), train=SimpleNamespace(fingerprint=lambda: content))

def recipe(members=3, images="images", weights="weights", root=None):
    return Recipe(data=Data(Path(root or images, "train")), member=lambda i: weights, members=members,
                  optimizer=lambda steps: 1, epochs=5, loss=max)
"""


@pytest.fixture
def movable(tmp_path, monkeypatch):
    """A run with a finished member, and its images in three folders, of which the last has others."""
    monkeypatch.chdir(tmp_path)
    Path("moved.py").write_text(MOVED)
    for folder, content in (("images", "same"), ("else/where", "same"), ("other", "new")):
        Path(folder, "train").mkdir(parents=True)
        Path(folder, "train", "a.txt").write_text(content)
    with open_run("moved.py", path="a", command="train moved.py --set images=images") as (run, recipe):
        run.append_event("training_started", data=run.require_data(recipe.data.load()))
        finish(run, 0, classes=("a",), transform={})
    return run


@pytest.mark.parametrize("change", ["images=else/where", "root=else/where", "images=else/../else/where/"])
def test_any_path_of_the_data_may_change(movable, change):
    with open_run("moved.py", [change], path="a", command="train") as (run, recipe):
        run.require_data(recipe.data.load())
    assert change in run.environment()["command"]


def test_a_path_of_something_else_may_not_change(movable):
    for value in ("else/where", "absent"):
        with pytest.raises(RunError, match=f"weights weights -> {value}"):
            open_run("moved.py", [f"weights={value}"], path="a", command="train").__enter__()


def test_moved_images_are_compared_before_further_members_are_trained(movable):
    refused = pytest.raises(RunError, match=r"not those that the members of a .*\n  images images -> other\n")
    with refused, open_run("moved.py", ["images=other"], path="a", command="train") as (run, recipe):
        run.require_data(recipe.data.load())
    with open_run("moved.py", path="a", command="train") as (run, recipe):
        run.require_data(recipe.data.load())


def test_a_command_with_moved_data_records_the_path(movable):
    with lock_runs(["a"], ["images=else/where"]) as (run,):
        assert run.parameters()["images"] == "else/where"
        assert run.environment()["command"] == "train moved.py --set images=else/where"
        assert run.events()[-1]["changes"] == ["images images -> else/where"]
    with lock_runs(["a"], ["images=else/where"]) as (run,):
        assert len(run.events()) == 2


def test_data_that_are_missing_are_an_error_with_the_option_that_moves_them(movable):
    with pytest.raises(DataError, match=r"damaged$"), lock_runs(["a"]):
        raise DataError("images/a.png: damaged")
    shutil.rmtree("images")
    with (
        pytest.raises(DataError, match=r": absent\n  If the data were moved, add: --set images=PATH"),
        lock_runs(["a"]),
    ):
        raise DataError("images/train: absent")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("image=else/where", RecipeError, "no parameter 'image'. Did you mean 'images'?"),
        ("members=4", RunError, "  members 3 -> 4\nNo file was changed. To train with the change, run: train moved.py"),
        ("weights=other", RunError, "--set changes paths of the data of a only. Received:\n  weights weights -> other"),
        ("images=other", RunError, "the training images are not those that the members of a were trained on"),
        ("images=/absent/images", DataError, "there are no data at /absent/images (parameter images)"),
    ],
)
def test_a_command_takes_only_paths_of_the_same_images(movable, change, error, message):
    before = snapshot(movable.path)
    with pytest.raises(error, match=re.escape(message)):
        lock_runs(["a"], [change]).__enter__()
    assert snapshot(movable.path) == before


def test_open_run_raises_before_it_creates_or_executes_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("failing.py").write_text("def recipe(members=3): ...\nraise SystemExit('the recipe was executed')\n")
    with pytest.raises(RecipeError, match="has no parameter"), open_run("failing.py", ["member=2"], command="train"):
        pass
    assert not Path("runs").exists()
    Path("runs/failing").mkdir(parents=True)
    Path("runs/failing/notes.txt").touch()
    with pytest.raises(RunError, match="not a run folder"), open_run("failing.py", command="train"):
        pass
