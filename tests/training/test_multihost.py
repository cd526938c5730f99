"""Several hosts train one member: equal weights on all, and as one host would; what befalls one is told by the others.

Hosts are processes on the loopback, forked from a server that has imported TensorFlow once.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import socket
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import cli, data
from keras_committee.data.images import InMemoryImages
from keras_committee.errors import RecipeError
from keras_committee.training.checkpoint import Checkpoints
from keras_committee.training.devices import host_shard
from keras_committee.training.multihost import Cluster, read_cluster

TINY = "tests/recipes/tiny.py"
KNOBS = ["members=1", "epochs=12", "batch_size=64"]
PATIENCE = 100  # seconds that any host may take; the machine may be busy


def host(index, ports, arguments, output, timing):
    """One host: the command line in a process of its own."""
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    workers = [f"127.0.0.1:{port}" for port in ports]
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
    import functools

    from keras_committee import training

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    training.TrainingOptions = functools.partial(training.TrainingOptions, **timing)
    os._exit(cli.main(arguments))


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class Hosts:
    """Two processes with one command."""

    def __init__(self, folder, log, arguments=(), knobs=KNOBS, of_one=(), timing=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["keras_committee.training"])
        sets = [word for knob in knobs for word in ("--set", knob)]
        command = ["train", TINY, "--run", str(folder), "--strategy", "multiworker", *sets, *arguments]
        ports = free_ports(2)
        self.ports, self.logs = ports, [log / f"{folder.name}-host-{index}.log" for index in range(2)]
        orders = [
            (0, ports, command, self.logs[0], timing or {}),
            (1, ports, [*command, *of_one], self.logs[1], timing or {}),
        ]
        self.processes = [context.Process(target=host, args=order) for order in orders]

    def start(self, *indices):
        for index in indices:
            self.processes[index].start()

    def codes(self, *indices):
        for index in indices:
            self.processes[index].join(PATIENCE)
        return [self.processes[index].exitcode for index in indices]

    def said(self, index):
        return self.logs[index].read_text() if self.logs[index].exists() else ""

    def wait_for(self, index, words):
        until = time.monotonic() + PATIENCE
        while words not in self.said(index):
            assert time.monotonic() < until, f"{words!r} never came: {self.said(0)}\n{self.said(1)}"
            time.sleep(0.02)

    def end(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(process.pid, signal.SIGKILL)
                process.join(10)


@pytest.fixture
def hosts(tmp_path):
    """Makes hosts that are ended after the test, whatever happens."""
    made = []

    def make(name, *arguments, **more):
        made.append(Hosts(tmp_path / name, tmp_path, arguments, **more))
        return made[-1]

    yield make
    for each in made:
        each.end()


def weights(folder):
    return keras.saving.load_model(folder / "members" / "00" / "model.keras", compile=False).get_weights()


def history(folder):
    rows = [json.loads(line) for line in (folder / "members" / "00" / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_A20_hosts_that_are_killed_stopped_and_silenced_end_where_they_would_have(hosts, tmp_path, new_run):
    unbroken = hosts("unbroken", "--deterministic")
    unbroken.start(0, 1)
    assert unbroken.codes(0, 1) == [0, 0], unbroken.said(0) + unbroken.said(1)

    killed = hosts("run", "--deterministic", "--checkpoint-every", "0.2")
    killed.start(0, 1)
    killed.wait_for(0, "epoch 2/12")
    killed.processes[1].kill()
    assert killed.codes(0) == [6], killed.said(0)
    assert f"worker 1 (127.0.0.1:{killed.ports[1]}) is gone" in killed.said(0)
    assert "The same command on every host goes on from step" in killed.said(0)

    asked = hosts("run", "--deterministic")
    asked.start(0, 1)
    asked.wait_for(0, "epoch 4/12")
    asked.processes[1].terminate()
    assert asked.codes(0, 1) == [143, 143], asked.said(0) + asked.said(1)
    assert "resuming member 0 at epoch" in asked.said(0)

    silent = hosts("run", "--deterministic", timing={"peer_timeout_seconds": 2.0})
    silent.start(0, 1)
    silent.wait_for(0, "epoch 6/12")
    os.kill(silent.processes[0].pid, signal.SIGSTOP)
    assert silent.codes(1) == [6], silent.said(1)
    assert f"worker 0 (127.0.0.1:{silent.ports[0]}) is gone: no answer for 2 s" in silent.said(1)
    silent.end()

    resumed = hosts("run", "--deterministic")
    resumed.start(0, 1)
    assert resumed.codes(0, 1) == [0, 0], resumed.said(0) + resumed.said(1)
    for ours, theirs in zip(weights(tmp_path / "run"), weights(tmp_path / "unbroken"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert history(tmp_path / "run") == history(tmp_path / "unbroken")

    alone, train = new_run(KNOBS, name="alone")
    train("one")
    for ours, theirs in zip(weights(tmp_path / "unbroken"), weights(alone.path), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    losses = [[row["loss"] for row in history(path)] for path in (tmp_path / "unbroken", alone.path)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_host_with_another_command_is_refused(hosts):
    pair = hosts("run", of_one=["--set", "learning_rate=0.2"])
    pair.start(0, 1)
    assert pair.codes(0, 1) == [6, 4], pair.said(0) + pair.said(1)
    assert "given something else than the chief" in pair.said(1)
    assert "learning_rate 0.05 -> 0.2" in pair.said(1)


def test_a_host_that_never_comes_is_named(hosts, tmp_path):
    pair = hosts("run", timing={"start_timeout_seconds": 2.0, "peer_timeout_seconds": 2.0})
    pair.start(0)
    assert pair.codes(0) == [6], pair.said(0)
    assert f"worker 1 (127.0.0.1:{pair.ports[1]}) did not come within 2 s" in pair.said(0)
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
        (config({"worker": ["a:1"]}), "fewer than two hosts; on one, use --strategy single or mirrored"),
        (config({"worker": ["a:1", "b:2"]}, index=2), "its task worker 2 is not among its hosts"),
        (config({"worker": ["a:1", "b"]}), "ValueError"),
        (config({"worker": ["a:1", "b:70000"]}), "'b:70000' is not host:port"),
        (config({"worker": ["a:1", "b:2"], "ps": ["c:3"]}), "a cluster has workers and perhaps a chief, no ps"),
    ],
)
def test_a_wrong_cluster_is_told_with_an_example(monkeypatch, text, words):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(RecipeError) as caught:
        read_cluster()
    assert words in str(caught.value)
    assert '"task": {"type": "worker", "index": 0}' in str(caught.value)


def test_several_hosts_train_one_member_at_a_time(tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["train", TINY, "--run", str(folder), "--strategy", "multiworker", "--workers", "2"]) == 2
    assert "strategy 'multiworker' trains one member at a time. Received: --workers 2" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(("hosts", "replicas"), [(2, 1), (2, 2), (3, 1)])
def test_the_parts_of_the_hosts_are_the_global_batch_each_row_once(hosts, replicas):
    images = np.arange(24 * 6, dtype=np.uint8).reshape(24, 2, 1, 3)
    split = data.Split(images=InMemoryImages(images), labels=np.arange(24, dtype=np.int32))
    splits = data.Splits(classes=("a",) * 24, train=split, validation=split, test=split, batch_size=12)
    stream = functools.partial(splits.stream, 3, 1, 3)
    contexts = [tf.distribute.InputContext(hosts, place, hosts * replicas) for place in range(hosts)]
    parts = [list(host_shard(stream, context).as_numpy_iterator()) for context in contexts]
    for step, batch in enumerate(stream().as_numpy_iterator()):
        mine = [part[step * replicas : (step + 1) * replicas] for part in parts]
        rows = [row for each in mine for row in each]
        assert [len(labels) for _, labels in rows] == [12 // (hosts * replicas)] * (hosts * replicas)
        np.testing.assert_array_equal(np.concatenate([images for images, _ in rows]), batch[0])
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in rows]), batch[1])


def test_a_reader_passes_over_what_is_damaged_and_leaves_it(tmp_path):
    writer = Checkpoints(tmp_path / "state")
    paths = [writer.save(step, {"a": np.arange(step)}, {}) for step in (3, 7)]
    (paths[1] / "arrays.npz").write_bytes(b"torn")
    (tmp_path / "state" / ".part-step-000000009-1").mkdir()
    before = sorted(path.name for path in (tmp_path / "state").iterdir())
    checkpoint, _ = Checkpoints(tmp_path / "state", read_only=True).load_newest()
    assert checkpoint.step == 3
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == before
