"""What the serving tests share: a model whose answers are known by heart."""

import json
import subprocess
import types
from pathlib import Path

import grpc
import pytest
from half_plus_two import save_half_plus_two
from tiny_committee import save_tiny_committee
from zoo import save_zoo

from keras_committee.export import verify
from keras_committee.tfserving.server import grpc as grpc_standin
from keras_committee.tfserving.server import rest
from keras_committee.tfserving.server.manager import Manager, ManagerOptions, ModelConfig, VersionPolicy


@pytest.fixture(scope="session")
def half_plus_two(tmp_path_factory):
    """The base path of `half_plus_two`, with version 123. Tests only read it, or copy the version."""
    base = tmp_path_factory.mktemp("models") / "half_plus_two"
    save_half_plus_two(base)
    return base


@pytest.fixture(scope="module")
def verified_here():
    """What is exported is verified in this process; tests/serving/test_export.py has it done in one of its own."""

    def run(command, **_):
        found = verify.verify(*map(Path, command[-2:]))
        return subprocess.CompletedProcess(command, 0, json.dumps(found), "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "subprocess", types.SimpleNamespace(run=run))
        yield


def pytest_addoption(parser):
    parser.addoption("--target", help="URL of a server that serves the models of zoo.py: tests/serving/conformance.py")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """The folder with the models of `zoo.py`. Tests only read it."""
    folder = tmp_path_factory.mktemp("zoo")
    save_zoo(folder)
    return folder


@pytest.fixture(scope="session")
def stand_in(zoo):
    """The stand-in on a free loopback port, with the models of `zoo.py`: a RestServer."""
    names = ("half_plus_two", "kinds", "two", "image")
    configs = [ModelConfig(name, zoo / name, labels={"lab": 123} if name == names[0] else {}) for name in names]
    with Manager(configs, ManagerOptions(poll_seconds=0.2, allow_labels_for_unavailable=True)) as manager:
        manager.wait_until_available()
        with rest.start(manager, ("127.0.0.1", 0)) as server:
            yield server


@pytest.fixture(scope="session")
def tiny_committee(tmp_path_factory):
    """The base path of `tiny_committee`, with version 4. Tests only read it."""
    base = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_committee(base, 4)
    return base


@pytest.fixture(scope="session")
def grpc_manager(half_plus_two):
    """A manager of `half_plus_two`, version 123, label "lab"."""
    config = ModelConfig("half_plus_two", half_plus_two, VersionPolicy.specific(123), {"lab": 123})
    with Manager([config], ManagerOptions(allow_labels_for_unavailable=True)) as manager:
        manager.wait_until_available()
        yield manager


@pytest.fixture(scope="session")
def grpc_server(grpc_manager):
    with grpc_standin.start(grpc_manager, ("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture(scope="session")
def grpc_channel(grpc_server):
    with grpc.insecure_channel(f"127.0.0.1:{grpc_server.port}", [("grpc.max_send_message_length", -1)]) as channel:
        yield channel
