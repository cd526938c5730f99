"""Is a run folder written whole, owned by one process, and never mixed with another recipe?"""

import datetime
import json
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from keras_committee.errors import ResourceError, RunError
from keras_committee.files import write_file, write_json
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

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
        knobs = file.resolve(list(overrides))
        return Run.create(tmp_path / folder, file, knobs, command="keras-committee train tiny.py", **options)

    return create


def test_a_new_run_records_recipe_knobs_and_environment(create, tmp_path):
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


def test_the_run_folder_is_for_its_owner_only(create):
    assert stat.S_IMODE(create().path.stat().st_mode) == 0o700


def test_an_opened_run_gives_back_what_it_was_made_from(create):
    run = Run.open(create(["widths=(4, 5)", "members=2"], smoke=True).path)
    assert run.smoke is True
    assert run.parameters() == {"members": 2, "learning_rate": 0.1, "widths": (4, 5), "data_dir": None, "seed": 3}
    file = run.recipe_file()
    assert (file.name, file.docstring, file.source) == ("tiny", "Tiny.", SOURCE)


def test_the_same_recipe_and_knobs_continue_a_run_and_keep_its_first_environment(create):
    before = (create(["learning_rate=0.05"]).path / "environment.json").stat().st_mtime_ns
    after = (create(["learning_rate=0.05"]).path / "environment.json").stat().st_mtime_ns
    assert before == after


def test_a_run_killed_while_it_was_created_is_created_anew(create):
    (create().path / "environment.json").unlink()
    assert create(["members=2"]).parameters()["members"] == 2


def test_other_knobs_are_refused_with_what_differs_and_what_to_do(create):
    run = create(["members=2"])
    with pytest.raises(RunError, match=r"learning_rate 0\.1 -> 0\.05") as caught:
        create(["members=2", "learning_rate=0.05"])
    assert "members" not in str(caught.value)
    assert f"--run {run.path}-2" in str(caught.value)
    assert caught.value.exit_code == 4
    assert run.parameters()["learning_rate"] == 0.1


def test_another_recipe_is_refused_with_the_lines_that_differ(create, tmp_path):
    run = create()
    other = tmp_path / "other.py"
    other.write_text(SOURCE.replace("Tiny.", "Larger.").replace("seed=3", "depth=16"))
    with pytest.raises(RunError, match="was trained with something else") as caught:
        create(file=RecipeFile.read(other))
    lines = str(caught.value).splitlines()
    assert "  seed 3 -> absent" in lines
    assert "  depth absent -> 16" in lines
    assert '  recipe -"""Tiny."""' in lines
    assert '  recipe +"""Larger."""' in lines
    assert run.recipe_file().source == SOURCE


# A17: the same folder, another recipe

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
    """Every file but the locks, with its content and time."""
    files = [path for path in sorted(folder.iterdir()) if "lock" not in path.name]
    return [(path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in files]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("learning_rate=0.05", "learning_rate 0.1 -> 0.05"),
        ("learning_rate=0.1000001", "learning_rate 0.1 -> 0.1000001"),
        ("widths=(1, 3)", "widths [1, 2] -> [1, 3]"),
        ("seed=4", "seed 3 -> 4"),
        ("members=7", "members 8 -> 7"),
    ],
)
def test_A17_a_knob_that_changes_results_is_refused_and_told(create, change, told):
    run = create()
    before = snapshot(run.path)
    with pytest.raises(RunError, match="was trained with something else") as caught:
        create([change])
    assert caught.value.exit_code == 4
    assert str(caught.value).splitlines()[1:] == [
        f"  {told}",
        f"Nothing was touched. Keep both: keras-committee train {run.path.parents[1]}/tiny.py --run {run.path}-2 ...",
        "or train what is missing with the change, and keep what is finished: --allow-config-change.",
    ]
    assert snapshot(run.path) == before


@pytest.mark.parametrize(
    ("change", "knob", "value", "told"),
    [
        ("learning_rate=0.05", "learning_rate", 0.05, "learning_rate 0.1 -> 0.05"),
        ("seed=4", "seed", 4, "seed 3 -> 4"),
        ("widths=(1, 3)", "widths", (1, 3), "widths [1, 2] -> [1, 3]"),
    ],
)
def test_A17_a_change_that_is_allowed_is_recorded_and_journaled(create, change, knob, value, told):
    environment = create().environment()
    run = create([change], allow_config_change=True)
    assert run.parameters()[knob] == value
    assert run.environment() == environment
    assert [(event["event"], event["changes"]) for event in run.events()] == [("changed", [told])]
    create([change])
    assert len(run.events()) == 1
    with pytest.raises(RunError, match=f"{knob} .* -> "):
        create()


def test_A17_fewer_members_go_on_where_change_is_allowed_and_more_again_anyway(create):
    create()
    assert create(["members=2"], allow_config_change=True).parameters()["members"] == 2
    run = create(["members=5"])
    assert [event["changes"] for event in run.events()] == [["members 8 -> 2"], ["members 2 -> 5"]]


@pytest.mark.parametrize(
    ("change", "knob", "value", "told"),
    [
        ("members=9", "members", 9, "members 8 -> 9"),
        ("data_dir=/mnt/cifar", "data_dir", "/mnt/cifar", "data_dir None -> /mnt/cifar"),
    ],
)
def test_A17_more_members_and_moved_data_go_on(create, change, knob, value, told):
    create()
    run = create([change])
    assert run.parameters()[knob] == value
    assert [event["changes"] for event in run.events()] == [[told]]


def test_A17_beside_a_harmless_knob_only_the_grave_one_is_told(create):
    create()
    with pytest.raises(RunError, match=r"seed 3 -> 4") as caught:
        create(["members=12", "seed=4"])
    assert "members" not in str(caught.value)


@pytest.mark.parametrize("kind", ["comment", "docstring", "layout"])
def test_A17_a_recipe_that_only_reads_otherwise_goes_on_and_is_recorded(create, edited, kind):
    create()
    run = create(file=edited(kind))
    assert run.recipe_file().source == EDITED[kind]
    (event,) = run.events()
    assert all(line.startswith(("recipe +", "recipe -")) for line in event["changes"])
    assert snapshot(run.path) == snapshot(create(file=RecipeFile.read(run.path / "recipe.py", "tiny")).path)


@pytest.mark.parametrize(("kind", "line"), [("code", ": return members"), ("import", "import keras")])
def test_A17_a_recipe_that_does_otherwise_is_refused_unless_it_may(create, edited, kind, line):
    before = snapshot(create().path)
    file = edited(kind)
    with pytest.raises(RunError, match=line) as caught:
        create(file=file)
    assert caught.value.exit_code == 4
    assert snapshot(create().path) == before
    run = create(file=file, allow_config_change=True)
    assert run.recipe_file().source == EDITED[kind]
    assert line in str(run.events()[0]["changes"])


def test_A17_a_long_change_is_told_in_ten_lines(create, tmp_path):
    create()
    other = tmp_path / "other.py"
    other.write_text(SOURCE + "".join(f"a{place} = {place}\n" for place in range(30)))
    with pytest.raises(RunError, match=r"recipe \+a9 = 9\n  \.\.\. and 20 more lines\nNothing"):
        create(file=RecipeFile.read(other))


@pytest.mark.parametrize("first", [True, False])
def test_A17_a_smoke_run_never_mixes_even_where_change_is_allowed(create, first):
    before = snapshot(create(smoke=first).path)
    for allow_change in (False, True):
        with pytest.raises(RunError, match=f"--smoke {first} -> {not first}") as caught:
            create(smoke=not first, allow_config_change=allow_change)
        assert "--allow-config-change" not in str(caught.value)
    assert snapshot(create(smoke=first).path) == before


def test_A17_a_kill_between_recipe_and_knobs_leaves_a_run_that_can_be_read(create, tmp_path):
    run = create()
    (run.path / "recipe.py").write_text(SOURCE.replace("widths=(1, 2), ", ""))
    assert run.parameters() == {"members": 8, "learning_rate": 0.1, "widths": [1, 2], "data_dir": None, "seed": 3}


def test_a_smoke_run_and_a_whole_run_do_not_share_a_folder(create):
    create(smoke=True)
    with pytest.raises(RunError, match="--smoke True -> False"):
        create(smoke=False)


def test_a_folder_with_something_else_in_it_is_not_made_a_run(create, tmp_path):
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"is not a run folder and not empty: it has thesis\.tex"):
        create()


def test_a_place_that_cannot_be_written_is_a_resource_error(create, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*file/run: File exists: .*/file\."):
        create(folder="file/run")


def test_opening_what_is_no_run_folder_is_an_error_that_says_why(tmp_path, create):
    with pytest.raises(RunError, match="is not a run folder: there is no such folder"):
        Run.open(tmp_path / "missing")
    run = create()
    (run.path / "parameters.json").unlink()
    with pytest.raises(RunError, match=r"is not a run folder: it has no parameters\.json"):
        Run.open(run.path)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "runs/tinny",
            r"no such folder\. Did you mean '.*runs/tiny'\? `keras-committee train RECIPE --run .*runs/tinny`",
        ),
        ("pets.py", r"it is a file\. `keras-committee train .*pets\.py` makes a run\."),
        ("cat.jpg", r"it is a file\. `keras-committee train RECIPE` makes a run\."),
    ],
)
def test_what_was_typed_in_place_of_a_run_is_told_with_the_command_that_was_meant(tmp_path, create, typed, said):
    create()
    for name in ("pets.py", "cat.jpg"):
        (tmp_path / name).write_text("")
    with pytest.raises(RunError, match=f"is not a run folder: .*{said}"):
        Run.open(tmp_path / typed)


def test_a_damaged_record_is_a_run_error_with_its_path(create):
    run = create()
    (run.path / "parameters.json").write_text('{"members": 8')
    with pytest.raises(RunError, match=r"tiny/parameters\.json cannot be read"):
        run.parameters()


def test_changed_versions_are_told(create):
    run = create()
    assert run.changed_versions() == []
    environment = run.environment()
    environment["versions"] |= {"keras": "1.2.3"}
    write_json(run.path / "environment.json", environment)
    assert [change.split(" -> ")[0] for change in run.changed_versions()] == ["keras 1.2.3"]


def test_the_files_of_a_member_lie_in_its_own_folder(create):
    run = create()
    member = run.member(7)
    assert member.path == run.path / "members" / "07"
    names = [member.model.name, member.history.name, member.tensorboard.name, member.state.name]
    assert names == ["model.keras", "history.jsonl", "tensorboard", "state"]
    assert member.epoch_predictions(12) == member.path / "validation" / "0012.npy"


def test_a_member_is_finished_when_its_model_is_there(create):
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


def test_a_torn_last_line_of_the_journal_is_dropped_and_the_next_event_is_whole(create):
    run = create()
    run.append_event("first")
    with open(run.path / "journal.jsonl", "a") as file:
        file.write('{"event": "half')
    assert [event["event"] for event in run.events()] == ["first"]
    run.append_event("second")
    assert [event["event"] for event in run.events()] == ["first", "second"]


def test_a_journal_damaged_in_the_middle_is_an_error(create):
    run = create()
    run.append_event("first")
    path = run.path / "journal.jsonl"
    path.write_bytes(b"\0\0\0\n" + path.read_bytes())
    with pytest.raises(RunError, match=r"journal\.jsonl is damaged"):
        run.events()


def test_a_second_owner_is_refused_with_the_first_ones_name_until_it_is_done(create):
    run = create()
    with run.lock():
        with pytest.raises(RunError, match=rf"is in use by pid {os.getpid()} on host .+ since 20\d\d-.*Nothing was"):
            run.lock().__enter__()
        with pytest.raises(RunError, match="is in use by pid"):
            create()
    with run.lock():
        assert json.loads((run.path / "lock").read_text())["pid"] == os.getpid()


def test_the_lock_is_free_again_after_an_error(create):
    run = create()
    with pytest.raises(ZeroDivisionError, match="division"), run.lock():
        1 / 0  # noqa: B018
    with run.lock():
        pass


HOLDER = """
import sys, time
from keras_committee.run import Run
with Run.open(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(create):
    run = create()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"in use by pid {holder.pid}"):
            run.lock().__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with run.lock():
        pass


def test_of_many_at_once_exactly_one_owns_the_folder(create):
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


def test_a_document_is_replaced_whole_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "evaluation.json"
    write_json(path, {"accuracy": 0.2, "name": "é"})
    write_json(path, {"accuracy": 0.7})
    assert json.loads(path.read_text()) == {"accuracy": 0.7}
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_no_part_of_the_new_one(tmp_path, monkeypatch, step):
    path = tmp_path / "evaluation.json"
    write_json(path, {"accuracy": 0.2})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ResourceError, match=r"cannot write .*evaluation\.json: No space left on device"):
        write_json(path, {"accuracy": 0.7})
    assert json.loads(path.read_text()) == {"accuracy": 0.2}
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_number_json_does_not_know_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "evaluation.json", {"nll": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    write_file(tmp_path / "recipe.py", b"0.2")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("name", ["two words", "übung-Öl", "line\nbreak", "quote'\"s", "-dash", "x" * 200, "%s{}$HOME"])
def test_E12_a_folder_may_have_any_name(create, tmp_path, name):
    run = create(folder=name)
    with run.lock():
        run.append_event("trained", note=name)
    assert Run.open(tmp_path / name).events()[-1]["note"] == name


def test_E12_a_name_that_is_too_long_is_told(create, tmp_path):
    with pytest.raises(ResourceError, match=r"cannot write .*File name too long"):
        create(folder="x" * 256)
