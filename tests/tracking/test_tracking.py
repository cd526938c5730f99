"""Where a run is logged, and what of it is sent when."""

import importlib.util
import sys
from pathlib import Path
from typing import ClassVar

import pytest

import keras_committee as kc
from keras_committee import tracking
from keras_committee.cli import main
from keras_committee.errors import RecipeError, RunError
from keras_committee.evaluation import evaluate
from keras_committee.tracking import Tracking, mask_credentials, sender
from keras_committee.tracking.committee_history import CommitteeHistory
from keras_committee.tracking.sender import Row

TINY = Path(__file__).parents[1] / "recipes" / "tiny.py"


@pytest.fixture
def run(copy_of_trained, tmp_path):
    """A copy of the trained run, logged to a tracker that is never reached."""
    copy = copy_of_trained(tmp_path / "tiny")
    Tracking(tracker="mlflow", address="http://tracker", key="abc").record(copy.path)
    return copy


class FakeTracker:
    """Keeps the calls; raises if it is `down`."""

    calls: ClassVar[list[tuple]] = []
    down = False
    url = ""

    def __init__(self, address, tracked, state, save):
        type(self).calls = [("connect", tracked.key)] if not self.down else []
        if self.down:
            raise ConnectionError("nobody listens at http://me:secret@tracker")

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


@pytest.fixture
def fake(monkeypatch):
    module = type(sys)("fake_tracker")
    module.MLflowTracker = FakeTracker
    monkeypatch.setitem(sys.modules, "keras_committee.tracking.mlflow_tracker", module)
    monkeypatch.setattr(FakeTracker, "down", False)
    return FakeTracker


def sent(fake, run):
    """Send a run; return the calls by name, without the connection."""
    assert sender.main(str(run.path), follow=False) == 0
    calls: dict[str, list] = {}
    for name, *arguments in fake.calls:
        calls.setdefault(name, []).append(arguments)
    return calls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlfow", r"--track must be mlflow, mlflow:URI, wandb, .*Received: 'mlfow'. Did you mean 'mlflow'\?"),
        ("none:x", r"--track must be .*Received: 'none:x'"),
        ("mlflow:http://ann:pass@host", r"Received: mlflow:http://\*\*\*@host\n  Leave it out .*MLFLOW_TRACKING_PASS"),
        ("mlflow:http://host?api_key=abc", r"Received: mlflow:http://host\?api_key=\*\*\*\n"),
    ],
)
def test_a_wrong_tracker_is_an_error_without_the_password(text, message):
    with pytest.raises(RecipeError, match=message) as caught:
        Tracking.parse(text)
    assert not any(secret in str(caught.value) for secret in ("pass@", "abc"))


def test_the_command_refuses_a_wrong_tracker_before_it_creates_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(TINY), "--track", "mlflow:http://ann:pass@host"]) == 2
    assert "***@host" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tracker, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"pip install keras-committee\[{tracker}\]"):
        Tracking.parse(tracker)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mlflow", ""),
        ("mlflow:http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("mlflow:databricks://profile", "databricks://profile"),
        ("mlflow:logs/runs.db", "sqlite:///{here}/logs/runs.db"),
        ("mlflow:sqlite:///runs.db", "sqlite:///{here}/runs.db"),
        ("mlflow:mlruns", "{here}/mlruns"),
        ("wandb:team/digits", "team/digits"),
    ],
)
def test_the_address_does_not_depend_on_the_current_folder(text, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsed = Tracking.parse(text)
    assert parsed is not None
    assert parsed.address == address.format(here=tmp_path)


def test_a_run_keeps_its_tracked_run_until_it_is_logged_elsewhere(run):
    tracking.record(run.path, "mlflow:http://tracker")
    tracking.record(run.path, None)
    assert Tracking.read(run.path).key == "abc"
    tracking.record(run.path, "mlflow:http://elsewhere")
    assert Tracking.read(run.path).key != "abc"
    tracking.record(run.path, "none")
    assert Tracking.read(run.path) is None


def test_a_damaged_record_is_a_warning(run, caplog):
    (run.path / "tracking.json").write_text("{}")
    tracking.send([run.path])
    assert "tracking.json is damaged" in caplog.text


def test_everything_is_sent_once(run, fake, trained):
    first = sent(fake, run)
    rows = {(member, prefix): rows for member, prefix, rows in first["send_rows"]}
    for index in range(3):
        history = run.member(index).read_history()
        assert [row.scores for row in rows[index, ""]] == [
            {name: value for name, value in row.items() if name not in ("epoch", "step")} for row in history
        ]
    assert [prefix for member, prefix in rows if member is None] == [f"committee_of_{size}/" for size in (1, 2, 3)]
    assert {name for files, in first["send_files"] for name in files} == {
        "recipe.py", "parameters.json", "environment.json",
    }  # fmt: skip
    assert first["close"] == [["FINISHED"]]
    assert set(sent(fake, run)) == {"connect", "close"}

    document = evaluate(run, trained[1])
    again = sent(fake, run)
    assert set(again) == {"connect", "close", "send_scores", "send_files"}
    scores = [scores for member, scores in again["send_scores"] if member is None][-1]
    assert scores["test_accuracy"] == document["committees"][-1]["accuracy"]["mean"]
    assert [list(files) for (files,) in again["send_files"]] == [["evaluation.json"]]


def test_the_scores_of_the_committee_are_those_of_the_combined_predictions(run, trained):
    """Oracle: the product of the members' probabilities, normalized."""
    labels = trained[1].data.load().validation.labels
    for row in CommitteeHistory(run.path).read():
        files = [run.member(index).read_epoch_predictions(row["epoch"]) for index in range(row["members"])]
        assert (sum(files).argmax(axis=-1) == labels).mean() == row["validation_accuracy"]
    assert len(CommitteeHistory(run.path).read()) == 6


def test_a_member_that_is_trained_again_begins_another_tracked_run(run, fake):
    sent(fake, run)
    history = run.member(1).read_history()
    run.member(1).write_history([{**history[0], "loss": 9.0}, history[1]])
    calls = sent(fake, run)
    assert calls["connect"] == [["abc1"]]
    assert len([member for member, _, _ in calls["send_rows"] if member is not None]) == 3
    assert set(sent(fake, run)) == {"connect", "close"}


def test_a_damaged_history_does_not_keep_the_others_back(run, fake, capsys):
    run.member(0).history.write_bytes(b"{\n")
    assert [member for member, _, _ in sent(fake, run)["send_rows"]] == [1, 2, None, None, None]
    assert "history.jsonl is damaged" in capsys.readouterr().out


def test_a_tracker_that_is_down_is_a_warning_and_receives_everything_later(run, fake, monkeypatch, capsys):
    monkeypatch.setattr(fake, "down", True)
    assert sender.main(str(run.path), follow=False) == 1
    warning = capsys.readouterr().out
    assert warning.startswith("warning: cannot send to MLflow: nobody listens at http://***@tracker.\n")
    monkeypatch.setattr(fake, "down", False)
    assert len(sent(fake, run)["send_rows"]) == 6


def test_credentials_are_masked_in_any_text():
    assert mask_credentials("GET 'https://a:b@h/x?token=1&n=2' failed") == "GET 'https://***@h/x?token=***&n=2' failed"


def test_a_damaged_committee_history_is_refused_and_replaced(tmp_path):
    history = CommitteeHistory(tmp_path)
    history.path.write_bytes(b"{}\n")
    with pytest.raises(RunError, match=r"(?s)committee_history.jsonl is damaged: .*training writes it again"):
        history.read()
    history.add([{"epoch": 2, "members": 1, "validation_accuracy": 0.2}])
    history.add([{"epoch": 1, "members": 1, "validation_accuracy": 0.7}, {"epoch": 2, "members": 1, "x": 3}])
    assert [(row["epoch"], row.get("x")) for row in history.read()] == [(1, None), (2, 3)]


def test_the_command_of_a_python_call_names_the_tracker(tmp_path, monkeypatch):
    def open_run(*arguments, command, **options):
        raise RunError(command)

    monkeypatch.setattr("keras_committee.api.training.open_run", open_run)
    with pytest.raises(RunError) as error:
        kc.train(TINY, run=tmp_path, track="wandb:digits", members=3, epochs=9)
    assert str(error.value) == f"keras-committee train {TINY} --run {tmp_path} --track wandb:digits --set epochs=9"


def test_rows_without_scores_of_this_process_have_the_time_of_their_predictions(run):
    member = run.member(2)
    row = sender._row(member.read_history()[1], member.epoch_predictions(2))
    assert row == Row(2, int(member.epoch_predictions(2).stat().st_mtime * 1000), row.scores)
