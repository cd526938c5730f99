"""What the serving tests share: a model whose answers are known by heart."""

import pytest
from half_plus_two import save_half_plus_two
from zoo import save_zoo

from keras_committee.serving.server import rest
from keras_committee.serving.server.manager import Manager, Settings
from keras_committee.serving.server.versions import ModelConfig


@pytest.fixture(scope="session")
def half_plus_two(tmp_path_factory):
    """The base path of `half_plus_two`, with version 123. Tests only read it, or copy the version."""
    base = tmp_path_factory.mktemp("models") / "half_plus_two"
    save_half_plus_two(base)
    return base


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
    with Manager(configs, Settings(poll_seconds=0.2, labels_for_unavailable=True)) as manager:
        manager.wait_until_available()
        with rest.start(manager, ("127.0.0.1", 0)) as server:
            yield server
