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
from keras_committee.tfserving.server.manager import Manager, ManagerOptions, ModelConfig, find_versions
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.ports import listen
from keras_committee.tfserving.server.rest_handlers import LOOPBACK_HOSTS, SERVER_NAME

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """How to serve. Port 0 takes a free one; `grpc_port` None is no gRPC."""

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int | None = 8500
    metrics_path: str = rest.METRICS_PATH
    batching: BatchingParameters | None = None
    manager_options: ManagerOptions = dataclasses.field(default_factory=ManagerOptions)
    limits: Limits = dataclasses.field(default_factory=Limits)


class LocalServer:
    """Serves models until `close`. `rest_port` and `grpc_port` are those that it listens on.

    Raises:
        ResourceError: If a port is in use.
        StatusError: If a model has versions, and none of them can be loaded.
    """

    def __init__(self, configs: Sequence[ModelConfig], options: ServerOptions):
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:  # what was started ends again where something fails
            self._start(configs, options, stack)
            self._stack = stack.pop_all()

    def _start(self, configs: Sequence[ModelConfig], options: ServerOptions, stack: contextlib.ExitStack) -> None:
        for port in filter(None, (options.rest_port, options.grpc_port)):
            listen(options.host, port).close()  # a port in use is told before anything is loaded
        _log.info("%s: for development on one machine", SERVER_NAME)
        _log.info("limits: %s", options.limits)
        if options.host not in LOOPBACK_HOSTS:
            _log.warning(
                "listening on %s: whoever reaches this machine may ask; there is no authentication", options.host
            )
        load = functools.partial(_load_session, batching=options.batching)
        self.manager = stack.enter_context(Manager(configs, options.manager_options, load))
        if all(_has_versions(config) for config in configs):
            self.manager.wait_until_available(timeout=600)
        metrics = Metrics()
        address = (options.host, options.rest_port)
        num_threads = (
            options.limits.max_queue_size if options.batching else None
        )  # who waits for a batch holds a thread
        server = rest.start(self.manager, address, options.limits, metrics, options.metrics_path, num_threads)
        self.rest_port = stack.enter_context(server).port
        _log.info("REST at http://%s:%d", options.host, self.rest_port)
        self.grpc_port = self._start_grpc(options, metrics, stack)

    def _start_grpc(self, options: ServerOptions, metrics: Metrics, stack: contextlib.ExitStack) -> int | None:
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

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def config_from_folder(folder: Path) -> list[ModelConfig]:
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


def _load_session(folder: Path, batching: BatchingParameters | None) -> Any:
    session = load_version(folder)
    return session if batching is None else BatchedSession(session, batching)


TF_SERVING_BINARY = "tensorflow_model_server"


def tf_serving_command(
    model_dir: Path | None,
    ports: tuple[int, int],
    models_config: str | None = None,
    monitoring_config: str | None = None,
    batching_config: str | bool | None = None,
) -> list[str]:
    """The command line of TF Serving's binary.

    Args:
        model_dir: Base path of one model, or None where `models_config` names the file that lists them.
        ports: Of the REST API and of gRPC.
        models_config: models.config
        monitoring_config: monitoring.config
        batching_config: batching.config, or True for batching with the defaults.

    Raises:
        ResourceError: Where it is not installed.
    """
    binary = shutil.which(TF_SERVING_BINARY)
    if binary is None:
        raise ResourceError(
            f"{TF_SERVING_BINARY} is not installed here. Nothing was started.\n  Leave --use-tf-serving away for the stand-in, or use the "
            "image tensorflow/serving: deploy/ has a compose file."
        )
    arguments = [binary, f"--rest_api_port={ports[0]}", f"--port={ports[1]}"]
    arguments += [f"--model_config_file={models_config}"] if models_config else []
    arguments += [f"--model_name={model_dir.name}", f"--model_base_path={model_dir}"] if model_dir else []
    arguments += [f"--monitoring_config_file={monitoring_config}"] if monitoring_config else []
    arguments += ["--enable_batching"] if batching_config else []
    return arguments + ([f"--batching_parameters_file={batching_config}"] if isinstance(batching_config, str) else [])
