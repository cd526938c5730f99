"""What runs when a folder of models is served on this machine: manager, REST, gRPC?"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_committee.errors import RecipeError, ResourceError
from keras_committee.tfserving.server import rest
from keras_committee.tfserving.server.batching import BatchedSession, BatchingParameters
from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.server.loading import load_version
from keras_committee.tfserving.server.manager import Manager, ModelConfig, Settings, find_versions
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.ports import listen
from keras_committee.tfserving.server.rest_handlers import LOOPBACK, NAME

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
        if options.grpc_port is None or not importlib.util.find_spec("keras_committee.tfserving.server.grpc"):
            return None
        grpc = importlib.import_module("keras_committee.tfserving.server.grpc")
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


BINARY = "tensorflow_model_server"


def command(
    model: Path | None,
    ports: tuple[int, int],
    models: str | None = None,
    monitoring: str | None = None,
    batching: str | bool | None = None,
) -> list[str]:
    """The command line of TF Serving's binary.

    Args:
        model: Base path of one model, or None where `models` names the file that lists them.
        ports: Of the REST API and of gRPC.
        models: models.config
        monitoring: monitoring.config
        batching: batching.config, or True for batching with the defaults.

    Raises:
        ResourceError: Where it is not installed.
    """
    binary = shutil.which(BINARY)
    if binary is None:
        raise ResourceError(
            f"{BINARY} is not installed here. Nothing was started.\n  Leave --real away for the stand-in, or use the "
            "image tensorflow/serving: deploy/ has a compose file."
        )
    words = [binary, f"--rest_api_port={ports[0]}", f"--port={ports[1]}"]
    words += [f"--model_config_file={models}"] if models else []
    words += [f"--model_name={model.name}", f"--model_base_path={model}"] if model else []
    words += [f"--monitoring_config_file={monitoring}"] if monitoring else []
    words += ["--enable_batching"] if batching else []
    return words + ([f"--batching_parameters_file={batching}"] if isinstance(batching, str) else [])
