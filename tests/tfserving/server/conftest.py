"""Running local servers: one with the models of `zoo.py` over REST, one with `half_plus_two` over gRPC."""

import grpc
import pytest
from zoo import LABELED, MODELS, save_examples, save_zoo

from keras_committee.tfserving.server import grpc as grpc_server_module
from keras_committee.tfserving.server import rest
from keras_committee.tfserving.server.manager import Manager, ManagerOptions, ModelConfig, VersionPolicy


def pytest_addoption(parser):
    parser.addoption("--target", help="URL of a server of the models of zoo.py, for the conformance tests")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """The folder with the models of `zoo.py`. Tests only read it."""
    folder = tmp_path_factory.mktemp("zoo")
    save_zoo(folder)
    return folder


@pytest.fixture(scope="session")
def rest_server(zoo):
    """A REST server on a free loopback port, with the models of `zoo.py`."""
    configs = [ModelConfig(name, zoo / name, labels={"lab": 123} if name in LABELED else {}) for name in MODELS]
    with Manager(configs, ManagerOptions(poll_seconds=0.2, allow_labels_for_unavailable=True)) as manager:
        manager.wait_until_available()
        with rest.start(manager, ("127.0.0.1", 0)) as server:
            yield server


@pytest.fixture(scope="session")
def grpc_manager(half_plus_two, tmp_path_factory):
    """A manager of `half_plus_two` and `examples` of `zoo.py`, version 123, label "lab"."""
    examples = tmp_path_factory.mktemp("examples")
    save_examples(examples)
    folders = {"half_plus_two": half_plus_two, "examples": examples}
    configs = [ModelConfig(name, folder, VersionPolicy.specific(123), {"lab": 123}) for name, folder in folders.items()]
    with Manager(configs, ManagerOptions(0.2, allow_labels_for_unavailable=True)) as manager:
        manager.wait_until_available()
        yield manager


@pytest.fixture(scope="session")
def grpc_server(grpc_manager):
    with grpc_server_module.start(grpc_manager, ("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture(scope="session")
def grpc_channel(grpc_server):
    with grpc.insecure_channel(f"127.0.0.1:{grpc_server.port}", [("grpc.max_send_message_length", -1)]) as channel:
        yield channel
