"""Members as tasks of Ray: two nodes on this machine, one of which is killed."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_committee.errors import Interrupted, RecipeError, ResourceError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import connect, train_committee

GATED = Path(__file__).parents[1] / "recipes" / "gated.py"
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
TIMEOUT = 120.0  # seconds for anything on a busy machine


@pytest.fixture(scope="module", autouse=True)
def token():
    """Ray reads these when it is first imported. Only this test may use its cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default, too slow on a busy machine
        pytest.importorskip("ray")
        yield


@pytest.fixture
def two_nodes():
    """The head of a Ray cluster, where the driver is, and another node, each with room for one member."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        yield cluster, cluster.add_node(**NODE)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def gated(tmp_path):
    """Makes a run of members that wait after two epochs: `(run, recipe, gate)`."""

    def make(run_name, gate="", **overrides):
        file = RecipeFile.read(GATED)
        parameters = file.resolve([f"{name}={value}" for name, value in overrides.items()]) | {"gate": str(gate)}
        return Run.create(tmp_path / run_name, file, parameters, command="test"), file.build(parameters)

    return make


def wait_until(condition):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def epochs_of(run, index):
    history = run.member(index).history
    return len(history.read_text().splitlines()) if history.exists() else 0


def events(run, name):
    return [event for event in run.events() if event["event"] == name]


@pytest.mark.slow
def test_a_member_whose_node_is_killed_resumes_on_the_other(two_nodes, gated, tmp_path):
    cluster, second = two_nodes
    gate = tmp_path / "gate"
    run, recipe = gated("run", gate)

    def kill_the_second_node():
        try:
            wait_until(lambda: epochs_of(run, 0) == epochs_of(run, 1) == 2)
            cluster.remove_node(second, allow_graceful=False)
            wait_until(lambda: events(run, "member_died"))
        finally:
            gate.touch()

    with ThreadPoolExecutor(1) as thread, connect(cluster.address) as nodes:
        killing = thread.submit(kill_the_second_node)
        train_committee(run, recipe, workers="auto", ray_cluster=nodes)
        killing.result()

    (died,) = events(run, "member_died")
    started = [(event["member"], event["attempt"]) for event in events(run, "member_started")]
    assert sorted(started) == sorted([(0, 1), (1, 1), (died["member"], 2)])
    (resumed,) = events(run, "member_resumed")
    assert resumed["member"] == died["member"]
    assert resumed["step"] == 2 * recipe.data.load().steps_per_epoch
    assert run.finished_members() == [0, 1]

    undisturbed, recipe = gated("undisturbed")
    train_committee(undisturbed, recipe)
    for index in (0, 1):
        models = [keras.saving.load_model(each.member(index).model) for each in (run, undisturbed)]
        for one, other in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_sigterm_at_the_driver_saves_the_members_on_the_cluster(gated, tmp_path):
    gate = tmp_path / "gate"
    run, recipe = gated("run", gate, members=1, epochs=5000)

    def request_stop():
        try:
            wait_until(lambda: epochs_of(run, 0) == 2)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            gate.touch()

    with ThreadPoolExecutor(1) as thread, connect("local", "cpus=1") as nodes:
        requesting = thread.submit(request_stop)
        with pytest.raises(Interrupted, match="SIGTERM: 0 of 1 member finished, the others saved") as caught:
            train_committee(run, recipe, workers="auto", ray_cluster=nodes)
        requesting.result()
    assert caught.value.exit_code == 143
    assert [event["event"] for event in run.events()][-2:] == ["member_stopped", "training_stopped"]
    newest = max(int(folder.name.split("-")[1]) for folder in run.member(0).state.glob("step-*"))
    assert newest > 2 * recipe.data.load().steps_per_epoch


@pytest.mark.parametrize(
    ("nodes", "members", "requested", "expected"),
    [
        ([(8, 0), (8, 0)], 2, (None, None), (8, 0)),
        ([(8, 0), (8, 0)], 5, (None, None), (2, 0)),
        ([(2, 0)], 7, (None, None), (1, 0)),
        ([(12, 4), (12, 4)], 3, (None, None), (3, 1)),
        ([(0, 0), (12, 4)], 9, (None, None), (3, 1)),
        ([(12, 4)], 2, (None, 0.5), (1, 0.5)),
        ([(12, 4)], 2, (None, 0.0), (6, 0)),
        ([(12, 4), (4, 0)], 2, (5, 2.0), (5, 2)),
    ],
)
def test_each_member_gets_its_part_of_a_node(nodes, members, requested, expected):
    from keras_committee.training.ray_cluster import resources_per_member

    available = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes]
    assert resources_per_member(available, members, *requested) == {"num_cpus": expected[0], "num_gpus": expected[1]}


def test_more_than_any_node_has_is_refused():
    from keras_committee.training.ray_cluster import resources_per_member

    with pytest.raises(RecipeError, match=r"of a member: 3 CPUs and 1 GPU\. .* 2 CPUs and 1 GPU; 8 CPUs and 0 GPUs"):
        resources_per_member([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}], 1, 3, 1.0)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ":6379"])
def test_an_address_that_cannot_work_is_refused(address):
    with pytest.raises(RecipeError, match="expected auto, local or host:port"), connect(address):
        pass


def test_a_cluster_that_does_not_answer_is_an_error_at_once():
    with (
        pytest.raises(ResourceError, match=r"cannot join a Ray cluster at '127\.0\.0\.1:1'.*refused"),
        connect("127.0.0.1:1"),
    ):
        pass


@pytest.mark.parametrize(
    "text", ["", "2", "cpus=0", "cpus=1.5", "gpus=-1", "gpus=1,cpus=2", "gpu=1", "gpus=1.5", "cpus=2gpus=1"]
)
def test_invalid_resources_are_refused(text):
    with (
        pytest.raises(RecipeError, match=f"--resources-per-member expected .* Received: '{text}'"),
        connect("local", text),
    ):
        pass


def test_resources_without_ray_are_refused():
    with pytest.raises(RecipeError, match="--resources-per-member needs --ray-address"), connect(None, "cpus=2"):
        pass


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "keras_committee.training.ray_cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"pip install keras-committee\[ray\]"), connect("auto"):
        pass
