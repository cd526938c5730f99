"""What runs when a folder of models is served on this machine: manager, REST, gRPC?"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_committee.errors import RecipeError
from keras_committee.serving.server import rest
from keras_committee.serving.server.batching import BatchedSession, BatchingParameters
from keras_committee.serving.server.gate import LOOPBACK, NAME
from keras_committee.serving.server.limits import Limits
from keras_committee.serving.server.loading import load_version
from keras_committee.serving.server.manager import Manager, Settings
from keras_committee.serving.server.metrics import Metrics
from keras_committee.serving.server.ports import listen
from keras_committee.serving.server.versions import ModelConfig, find_versions

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to serve. Port 0 takes a free one; `grpc_port` None is no gRPC."""

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int | None = 8500
    monitoring: str = rest.MONITORING
    batching: BatchingParameters | None = None
    settings: Settings = dataclasses.field(default_factory=Settings)
    limits: Limits = dataclasses.field(default_factory=Limits)


class StandIn:
    """Serves models until `close`. `rest_port` and `grpc_port` are those that it listens on.

    Raises:
        ResourceError: If a port is in use.
        StatusError: If a model has versions, and none of them can be loaded.
    """

    def __init__(self, configs: Sequence[ModelConfig], options: Options):
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:  # what was started ends again where something fails
            self._start(configs, options, stack)
            self._stack = stack.pop_all()

    def _start(self, configs: Sequence[ModelConfig], options: Options, stack: contextlib.ExitStack) -> None:
        for port in filter(None, (options.rest_port, options.grpc_port)):
            listen(options.host, port).close()  # a port in use is told before anything is loaded
        _log.info("%s: for development on one machine", NAME)
        _log.info("limits: %s", options.limits)
        if options.host not in LOOPBACK:
            _log.warning(
                "listening on %s: whoever reaches this machine may ask; there is no authentication", options.host
            )
        load = functools.partial(_load, batching=options.batching)
        self.manager = stack.enter_context(Manager(configs, options.settings, load))
        if all(_has_versions(config) for config in configs):
            self.manager.wait_until_available(timeout=600)
        metrics = Metrics()
        address = (options.host, options.rest_port)
        threads = options.limits.queue if options.batching else None  # who waits for a batch holds a thread
        server = rest.start(self.manager, address, options.limits, metrics, options.monitoring, threads)
        self.rest_port = stack.enter_context(server).port
        _log.info("REST at http://%s:%d", options.host, self.rest_port)
        self.grpc_port = self._start_grpc(options, metrics, stack)

    def _start_grpc(self, options: Options, metrics: Metrics, stack: contextlib.ExitStack) -> int | None:
        if options.grpc_port is None or not importlib.util.find_spec("keras_committee.serving.server.grpc"):
            return None
        grpc = importlib.import_module("keras_committee.serving.server.grpc")
        address = (options.host, options.grpc_port)
        server = stack.enter_context(grpc.start(self.manager, address, options.limits, metrics))
        _log.info("gRPC at %s:%d", options.host, server.port)
        return server.port

    def close(self) -> None:
        """Answers what is being asked, then ends. A second call does nothing."""
        self._stack.close()

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def one_model(folder: Path) -> list[ModelConfig]:
    """The config of the model in `folder`, under its name, with the latest version. Raises RecipeError."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {folder}. Name the one that holds the versions of a model: 1, 2, ...")
    if (folder / "saved_model.pb").exists():
        raise RecipeError(f"{folder} is one version of a model. Name the folder that holds it: {folder.parent}")
    return [ModelConfig(folder.name, folder)]


def _has_versions(config: ModelConfig) -> bool:
    with contextlib.suppress(OSError):
        if find_versions(config.base_path):
            return True
    _log.warning("%s has no version in %s yet; one will be served when it is published", config.name, config.base_path)
    return False


def _load(folder: Path, batching: BatchingParameters | None) -> Any:
    session = load_version(folder)
    return session if batching is None else BatchedSession(session, batching)
