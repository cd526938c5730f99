"""Local server for developing clients, and the command line of TF Serving's own binary."""

import contextlib
import dataclasses
import functools
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_committee.errors import CommitteeError, DataError, RecipeError, ResourceError
from keras_committee.tfserving.config import METRICS_PATH, lint_models, parse_models
from keras_committee.tfserving.drift import DriftMonitor, MonitoredSession, read_reference
from keras_committee.tfserving.server import grpc, rest
from keras_committee.tfserving.server.batching import BatchedSession, BatchingParameters
from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.server.loading import load_version
from keras_committee.tfserving.server.manager import (
    Manager,
    ManagerOptions,
    ModelConfig,
    configs_from_proto,
)
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.ports import listen
from keras_committee.tfserving.server.rest_handlers import SERVER_NAME
from keras_committee.tfserving.versions import find_versions

_BINARY = "tensorflow_model_server"
_LOAD_TIMEOUT = 600.0  # seconds for the first versions of all models

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Options of the local server.

    Attributes:
        host: Address to bind.
        rest_port: Port of the REST API; 0 selects a free port.
        grpc_port: Port of the gRPC API; 0 selects a free port, None disables gRPC.
        metrics_path: Path of the metrics for Prometheus.
        batching: Parameters of batching; None disables batching.
        manager_options: Timing of loads.
        limits: Limits of requests.
        enable_cors_support: Whether the REST API allows pages of any origin to read its responses.
        enable_reload_config: Whether gRPC clients may replace the models.
        model_config_file: A models.config to read repeatedly, or None.
        model_config_poll_seconds: Seconds between two readings of `model_config_file`; 0 never reads it.
    """

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int | None = 8500
    metrics_path: str = METRICS_PATH
    batching: BatchingParameters | None = None
    manager_options: ManagerOptions = dataclasses.field(default_factory=ManagerOptions)
    limits: Limits = dataclasses.field(default_factory=Limits)
    enable_cors_support: bool = False
    enable_reload_config: bool = False
    model_config_file: Path | None = None
    model_config_poll_seconds: float = 0.0


class LocalServer:
    """Serves models over REST and gRPC until `close`.

    Args:
        configs: The models.
        options: Addresses, limits and batching.

    Attributes:
        manager: The manager of the models.
        rest_port: The port of the REST API.
        grpc_port: The port of the gRPC API, or None.

    Raises:
        ResourceError: If a port is in use.
        StatusError: If a model has versions, but none of them can be loaded.
    """

    def __init__(self, configs: Sequence[ModelConfig], options: ServerOptions):
        with contextlib.ExitStack() as stack:  # closes what has started if a later step fails
            self._start(configs, options, stack)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Finish the requests in progress, then stop. A second call has no effect."""
        self._stack.close()

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _start(self, configs: Sequence[ModelConfig], options: ServerOptions, stack: contextlib.ExitStack) -> None:
        for port in filter(None, (options.rest_port, options.grpc_port)):
            listen(options.host, port).close()  # reports a port in use before any model is loaded
        _log.info("%s: for development on one machine", SERVER_NAME)
        _log.info("limits: %s", options.limits)
        if options.host not in rest.LOOPBACK_HOSTS:
            _log.warning(
                "listening on %s: any client that reaches it can send requests, without authentication", options.host
            )
        load = functools.partial(_load_session, batching=options.batching)
        self.manager = stack.enter_context(Manager(configs, options.manager_options, load))
        if all(_has_versions(config) for config in configs):
            self.manager.wait_until_available(_LOAD_TIMEOUT)
        metrics = Metrics()
        num_threads = options.limits.max_queue_size if options.batching else None  # requests in a batch block a thread
        server = rest.start(
            self.manager,
            (options.host, options.rest_port),
            options.limits,
            metrics,
            options.metrics_path,
            num_threads,
            options.enable_cors_support,
        )
        self.rest_port = stack.enter_context(server).port
        _log.info("REST at http://%s:%d", options.host, self.rest_port)
        self.grpc_port = None
        if options.grpc_port is not None:
            address = (options.host, options.grpc_port)
            server = grpc.start(self.manager, address, options.limits, metrics, options.enable_reload_config)
            self.grpc_port = stack.enter_context(server).port
            _log.info("gRPC at %s:%d", options.host, self.grpc_port)
        if options.model_config_file is not None and options.model_config_poll_seconds > 0:
            stack.enter_context(
                _poll_config_file(options.model_config_file, options.model_config_poll_seconds, self.manager)
            )


def read_config_file(file: Path) -> list[ModelConfig]:
    """Return the models of a models.config. Mistakes that TF Serving accepts are logged.

    Raises:
        RecipeError: If the file cannot be read or parsed.
        StatusError: INVALID_ARGUMENT if TF Serving would reject it.
    """
    try:
        config = parse_models(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {file}: {error}") from error
    configs = configs_from_proto(config)
    for problem in lint_models(config):
        _log.warning("%s: %s", file, problem)
    return configs


def config_from_folder(folder: Path) -> list[ModelConfig]:
    """Return the config of the model in `folder`: named after the folder, with its latest version.

    Raises:
        RecipeError: If the folder does not exist, or is a version folder.
    """
    folder = Path(os.path.abspath(folder))  # a symbolic link gives the model its name
    if not folder.is_dir():
        raise RecipeError(
            f"no such folder: {folder}. Specify the folder that contains the versions of a model: 1, 2, ..."
        )
    if (folder / "saved_model.pb").exists():
        raise RecipeError(f"{folder} is one version of a model. Specify the folder that contains it: {folder.parent}")
    return [ModelConfig(folder.name, folder)]


def tf_serving_command(
    model_dir: Path | None,
    ports: tuple[int, int],
    models_config: str | None = None,
    monitoring_config: str | None = None,
    batching_config: str | bool | None = None,
    enable_cors_support: bool = False,
    model_config_poll_seconds: int = 0,
    allow_labels_for_unavailable: bool = False,
) -> list[str]:
    """Return the command line that starts TF Serving's binary.

    Args:
        model_dir: Base path of one model; None with `models_config`.
        ports: Ports of the REST and the gRPC API.
        models_config: Path of a models.config, or None.
        monitoring_config: Path of a monitoring.config, or None.
        batching_config: Path of a batching.config, True for batching with TF Serving's defaults, or None.
        enable_cors_support: Whether the REST API allows pages of any origin to read its responses.
        model_config_poll_seconds: Seconds between two readings of `models_config`; 0 reads it once.
        allow_labels_for_unavailable: Whether labels can be assigned to versions that are not loaded yet.

    Raises:
        ResourceError: If TF Serving is not installed.
    """
    binary = shutil.which(_BINARY)
    if binary is None:
        raise ResourceError(
            f"{_BINARY} is not installed. Nothing was started.\n"
            "  Omit --use-tf-serving to start the local server, or use the image tensorflow/serving; deploy/ has a "
            "compose file."
        )
    arguments = [binary, f"--rest_api_port={ports[0]}", f"--port={ports[1]}"]
    arguments += [f"--model_config_file={models_config}"] if models_config else []
    arguments += [f"--model_name={model_dir.name}", f"--model_base_path={model_dir}"] if model_dir else []
    arguments += [f"--monitoring_config_file={monitoring_config}"] if monitoring_config else []
    arguments += ["--rest_api_enable_cors_support"] if enable_cors_support else []
    if model_config_poll_seconds:
        arguments.append(f"--model_config_file_poll_wait_seconds={model_config_poll_seconds}")
    arguments += ["--allow_version_labels_for_unavailable_models"] if allow_labels_for_unavailable else []
    arguments += ["--enable_batching"] if batching_config else []
    return arguments + ([f"--batching_parameters_file={batching_config}"] if isinstance(batching_config, str) else [])


@contextlib.contextmanager
def _poll_config_file(file: Path, poll_seconds: float, manager: Manager) -> Iterator[None]:
    """Give the models in `file` to `manager` again and again, in a thread.

    As in TF Serving, the file need not have changed: a label that was rejected is accepted once its version is
    available.
    """
    stop, last_error = threading.Event(), ""

    def poll() -> None:
        nonlocal last_error
        while not stop.wait(poll_seconds):
            try:
                config = parse_models(file.read_text())
                if config.WhichOneof("config") is not None:  # TF Serving takes no action for an empty file
                    manager.reload(configs_from_proto(config))
                error_message = ""
            except (OSError, ValueError, CommitteeError) as error:
                error_message = f"{file} is not reloaded, and the models before are served: {error}"
            if error_message and error_message != last_error:
                _log.warning("%s", error_message)
            last_error = error_message

    thread = threading.Thread(target=poll, name="models.config", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _load_session(folder: Path, batching: BatchingParameters | None) -> Any:
    """Load a version. Its answers are compared with the reference distribution, if its manifest has one."""
    session = load_version(folder)
    session = session if batching is None else BatchedSession(session, batching)
    try:
        return MonitoredSession(session, DriftMonitor.from_version(folder)) if read_reference(folder) else session
    except DataError as error:
        _log.warning("the answers of %s are compared with no reference: %s", folder, error)
        return session


def _has_versions(config: ModelConfig) -> bool:
    with contextlib.suppress(OSError):
        if find_versions(config.base_path):
            return True
    _log.warning("%s has no version in %s yet; it is served once one is published", config.name, config.base_path)
    return False
