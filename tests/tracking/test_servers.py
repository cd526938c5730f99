"""A run in a real MLflow server, and in an offline run of Weights & Biases."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import keras_committee as kc
from keras_committee.evaluation import evaluate
from keras_committee.tracking import Tracking

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow warns of its own type hints
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of an MLflow server with a new database."""
    mlflow, folder = Path(sys.executable).with_name("mlflow"), tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [mlflow, "server", *options], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.3)
    yield address
    process.terminate()
    process.wait(30)


def start_sender(run):
    command = [sys.executable, "-m", "keras_committee.tracking.sender", str(run.path), "--follow"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def test_a_killed_sender_leaves_no_run_and_no_row_doubled_or_missing(server, copy_of_trained, tmp_path):
    """The second sender does not even have the record of what the first one sent."""
    from mlflow import MlflowClient

    run = copy_of_trained(tmp_path / "tiny")
    for index in range(3):  # many requests, so that the kill comes between two of them
        first = run.member(index).read_history()[0]
        rows = [{**first, "epoch": epoch, "loss": index + 1 / epoch} for epoch in range(1, 60 + index)]
        run.member(index).write_history(rows)
    Tracking(tracker="mlflow", address=server, key="killed").record(run.path)
    client, condition = MlflowClient(server), "tags.`keras_committee.run` = 'killed'"
    with start_sender(run) as sender:
        while (
            not (found := client.get_experiment_by_name("tiny"))
            or len(client.search_runs([found.experiment_id], condition)) < 3
        ):
            time.sleep(0.05)
        sender.send_signal(signal.SIGKILL)
    (run.path / "tracking_state.json").unlink(missing_ok=True)
    with start_sender(run) as sender:
        sender.communicate()
    assert sender.returncode == 0
    tracked = client.search_runs([found.experiment_id], condition)
    assert sorted(each.data.tags["keras_committee.member"] for each in tracked) == ["0", "1", "2", "committee"]
    for each in tracked:
        if (member := each.data.tags["keras_committee.member"]) != "committee":
            history = client.get_metric_history(each.info.run_id, "loss")
            rows = run.member(int(member)).read_history()
            assert [(metric.step, metric.value) for metric in history] == [(row["epoch"], row["loss"]) for row in rows]


def test_mlflow_has_the_run_and_its_model_predicts_like_the_export(server, trained, copy_of_trained, tmp_path):
    import mlflow

    run = copy_of_trained(tmp_path / "tiny_served")
    document = evaluate(run, trained[1])
    run.append_event("exported", version=str(ROOT / "saved_models" / "cifar10_small" / "1"), members=2)
    parameters = run.parameters()
    kc.train(ROOT / "tests" / "recipes" / "tiny.py", run=run.path, track=f"mlflow:{server}", workers=1, **parameters)

    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name("tiny")
    key = Tracking.read(run.path).key
    (tracked,) = client.search_runs(
        [experiment.experiment_id],
        f"tags.`keras_committee.run` = '{key}' and tags.`keras_committee.member` = 'committee'",
    )
    assert tracked.data.params == {name: str(value) for name, value in parameters.items()}
    assert tracked.data.metrics["test_accuracy"] == document["committees"][-1]["accuracy"]["mean"]
    assert tracked.info.status == "FINISHED"
    assert "evaluation.json" in [file.path for file in client.list_artifacts(tracked.info.run_id)]
    members = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{tracked.info.run_id}'")
    assert {each.data.tags["keras_committee.member"] for each in members} == {"0", "1", "2"}

    mlflow.set_tracking_uri(server)
    pixels = np.random.default_rng(3).integers(0, 256, (5, 32, 32, 3)).astype(np.float32)
    expected = kc.load_export(ROOT / "saved_models" / "cifar10_small").predict(pixels.astype(np.uint8)).probabilities
    answers = mlflow.pyfunc.load_model("models:/cifar10_small/1").predict({"image": pixels})
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-5)
    function = mlflow.tensorflow.load_model("models:/cifar10_small/1")
    np.testing.assert_allclose(function(image=pixels)["probabilities"], expected, atol=1e-5)


def test_an_offline_run_of_wandb_has_every_row_once(copy_of_trained, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = copy_of_trained(tmp_path / "tiny")
    Tracking(tracker="wandb", address="digits", key="offline").record(run.path)
    for _ in range(2):
        with start_sender(run) as sender:
            sender.communicate()
        assert sender.returncode == 0
    script = [sys.executable, str(ROOT / "tests" / "extras" / "wandb_run.py"), str(run.path)]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
