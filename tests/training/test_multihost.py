"""Several hosts train one member: equal weights on all, as one host would; a lost host is reported by the others.

Hosts are processes on the loopback.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time

import keras
import numpy as np
import pytest

from keras_committee import cli
from keras_committee.checkpoints import Checkpoints
from keras_committee.errors import RecipeError, RunError
from keras_committee.member_dir import MemberDir
from keras_committee.run import Run
from keras_committee.training import TrainingOptions
from keras_committee.training.multihost import Cluster, HostGroup, read_cluster

TINY = "tests/recipes/tiny.py"
OVERRIDES = ["members=1", "epochs=8", "batch_size=64"]
TIMEOUT = 100  # seconds that any host may take; the machine may be busy

# The command line with one thread per host, and with timeouts that have no option.
HOST = """
import functools, json, sys
import tensorflow as tf
from keras_committee import cli, training

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)
training.TrainingOptions = functools.partial(training.TrainingOptions, **json.loads(sys.argv[1]))
sys.exit(cli.main(sys.argv[2:]))
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class Hosts:
    """Two processes with one command."""

    def __init__(self, popen, folder, log, arguments=(), of_one=(), timing=None):
        self._popen, self.ports, self.processes = popen, free_ports(2), {}
        self.logs = [log / f"{folder.name}-{self.ports[0]}-host-{index}.log" for index in range(2)]
        sets = [word for override in OVERRIDES for word in ("--set", override)]
        command = ["train", TINY, "--run", str(folder), "--strategy", "multiworker", *sets, *arguments]
        program = [sys.executable, "-c", HOST, json.dumps(timing or {})]
        self._commands = [[*program, *command], [*program, *command, *of_one]]

    def start(self, *indices):
        workers = [f"127.0.0.1:{port}" for port in self.ports]
        for index in indices:
            config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
            with self.logs[index].open("ab") as log:
                self.processes[index] = self._popen(
                    self._commands[index], stdout=log, stderr=log, env=environment, start_new_session=True
                )

    def codes(self, *indices):
        return [self.processes[index].wait(TIMEOUT) for index in indices]

    def output(self, index):
        return self.logs[index].read_text() if self.logs[index].exists() else ""

    def wait_for(self, index, words):
        until = time.monotonic() + TIMEOUT
        while words not in self.output(index):
            assert time.monotonic() < until, f"{words!r} never came: {self.output(0)}\n{self.output(1)}"
            time.sleep(0.02)

    def end(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def hosts(tmp_path, fork_server):
    """Makes hosts that are ended after the test, whatever happens."""
    groups = []

    def make(name, *arguments, **options):
        groups.append(Hosts(fork_server.popen, tmp_path / name, tmp_path, arguments, **options))
        return groups[-1]

    yield make
    for group in groups:
        group.end()


def weights(folder):
    return keras.saving.load_model(folder / "members" / "00" / "model.keras", compile=False).get_weights()


def history(folder):
    rows = MemberDir(folder, 0).read_history()
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_A20_hosts_that_are_killed_stopped_and_hung_end_as_if_undisturbed(hosts, tmp_path, new_run):
    unbroken = hosts("unbroken", "--deterministic")
    unbroken.start(0, 1)
    assert unbroken.codes(0, 1) == [0, 0], unbroken.output(0) + unbroken.output(1)

    killed = hosts("run", "--deterministic", "--checkpoint-every", "0.2")
    killed.start(0, 1)
    killed.wait_for(0, "epoch 2/8")
    killed.processes[1].kill()
    assert killed.codes(0) == [6], killed.output(0)
    assert f"lost connection to worker 1 (127.0.0.1:{killed.ports[1]}): " in killed.output(0)
    assert "  To resume from step" in killed.output(0)

    stopped = hosts("run", "--deterministic")
    stopped.start(0, 1)
    stopped.wait_for(0, "epoch 4/8")
    stopped.processes[1].terminate()
    assert stopped.codes(0, 1) == [143, 143], stopped.output(0) + stopped.output(1)
    assert "resuming member 0 at epoch" in stopped.output(0)

    silent = hosts("run", "--deterministic", timing={"peer_timeout_seconds": 2.0})
    silent.start(0, 1)
    silent.wait_for(0, "epoch 6/8")
    os.kill(silent.processes[0].pid, signal.SIGSTOP)
    assert silent.codes(1) == [6], silent.output(1)
    assert f"lost connection to worker 0 (127.0.0.1:{silent.ports[0]}): no answer for 2 s" in silent.output(1)
    silent.end()

    resumed = hosts("run", "--deterministic")
    resumed.start(0, 1)
    assert resumed.codes(0, 1) == [0, 0], resumed.output(0) + resumed.output(1)
    for ours, theirs in zip(weights(tmp_path / "run"), weights(tmp_path / "unbroken"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert history(tmp_path / "run") == history(tmp_path / "unbroken")

    alone, train = new_run(OVERRIDES, name="alone")
    train("single")
    for ours, theirs in zip(weights(tmp_path / "unbroken"), weights(alone.path), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    losses = [[row["loss"] for row in history(path)] for path in (tmp_path / "unbroken", alone.path)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_host_with_another_command_is_refused(hosts):
    pair = hosts("run", of_one=["--set", "learning_rate=0.2"])
    pair.start(0, 1)
    assert pair.codes(0, 1) == [6, 4], pair.output(0) + pair.output(1)
    assert "this host's command differs from the chief's" in pair.output(1)
    assert "learning_rate 0.05 -> 0.2" in pair.output(1)


@pytest.mark.slow
def test_a_host_that_never_starts_is_named(hosts, tmp_path):
    pair = hosts("run", timing={"start_timeout_seconds": 2.0, "peer_timeout_seconds": 2.0})
    pair.start(0)
    assert pair.codes(0) == [6], pair.output(0)
    assert f"worker 1 (127.0.0.1:{pair.ports[1]}) did not start within 2 s" in pair.output(0)
    assert not (tmp_path / "run" / "members").exists()


def config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_the_chief_is_the_first_host_of_the_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config({"worker": ["a:1", "b:2"], "chief": ["c:3"]}, index=1))
    cluster = read_cluster()
    assert cluster == Cluster((("chief", 0, "c:3"), ("worker", 0, "a:1"), ("worker", 1, "b:2")), 2)
    assert not cluster.is_chief
    assert cluster.host_name(2) == "worker 1 (b:2)"
    assert cluster.device(2) == "/job:worker/replica:0/task:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs the environment variable TF_CONFIG.\n  On the first of two hosts"),
        ("{", "TF_CONFIG does not describe a cluster: JSONDecodeError"),
        ("{}", "KeyError: 'cluster'"),
        (config({"worker": ["a:1"]}), "it has fewer than two hosts; on one, use --strategy single or mirrored"),
        (config({"worker": ["a:1", "b:2"]}, index=2), "its task worker 2 is not among its hosts"),
        (config({"worker": ["a:1", "b"]}), "ValueError"),
        (config({"worker": ["a:1", "b:70000"]}), "'b:70000' is not host:port"),
        (config({"worker": ["a:1", "b:2"], "ps": ["c:3"]}), "a cluster may have workers and a chief, but no ps"),
    ],
)
def test_an_invalid_cluster_is_refused_with_an_example(monkeypatch, text, words):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(RecipeError) as caught:
        read_cluster()
    assert words in str(caught.value)
    assert '"task": {"type": "worker", "index": 0}' in str(caught.value)


@pytest.mark.parametrize(
    ("other_host", "words"),
    [
        ([7, 1, 1, 0], "is at step 7, the chief at step 5.\n  Give every host the same run folder."),
        ([5, 2, 1, 0], "has other training data than the chief.\n  Give every host the same files."),
        ([5, 1, 2, 0], "has other weights than the chief.\n  Give every host the same versions"),
    ],
)
def test_a_host_out_of_sync_is_refused(other_host, words, tmp_path, monkeypatch):
    cluster = Cluster((("worker", 0, "a:1"), ("worker", 1, "b:2")), 0)
    group = HostGroup(cluster, Run(tmp_path), TrainingOptions())
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    monkeypatch.setattr(group, "_exchange", lambda *values: np.array([[5.0, 1, 1, 0]] * 2))
    group.assert_in_sync(5, "data", model)
    monkeypatch.setattr(group, "_exchange", lambda *values: np.array([[5.0, 1, 1, 0], other_host]))
    with pytest.raises(RunError, match=re.escape(f"worker 1 (b:2) {words}")):
        group.assert_in_sync(5, "data", model)


def test_several_hosts_train_one_member_at_a_time(tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["train", TINY, "--run", str(folder), "--strategy", "multiworker", "--workers", "2"]) == 2
    assert "strategy 'multiworker' trains one member at a time. Received: --workers 2" in capsys.readouterr().err
    assert not folder.exists()


def test_a_reader_skips_damaged_checkpoints_and_keeps_them(tmp_path):
    writer = Checkpoints(tmp_path / "state")
    paths = [writer.save(step, {"a": np.arange(step)}, {}) for step in (3, 7)]
    (paths[1] / "arrays.npz").write_bytes(b"torn")
    (tmp_path / "state" / ".part-step-000000009-1").mkdir()
    before = sorted(path.name for path in (tmp_path / "state").iterdir())
    checkpoint, _ = Checkpoints(tmp_path / "state", read_only=True).load_newest()
    assert checkpoint.step == 3
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == before
