"""`keras-committee serve`: serve an exported model over REST and gRPC."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from keras_committee.cli.options import HomePath, complete_exports, json_option, standard_options
from keras_committee.cli.output import print_json, print_message
from keras_committee.errors import RecipeError
from keras_committee.files import read_record
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder, folder_kind
from keras_committee.precision import cpu_device, tensorflow_device
from keras_committee.tables import print_text
from keras_committee.tfserving.versions import MANIFEST_FILE, find_versions

_EXISTING_FILE = HomePath(exists=True, dir_okay=False)


@click.command()
@click.argument("model_dir", type=HomePath(), required=False, shell_complete=complete_exports)
@click.option(
    "--rest-port",
    type=click.IntRange(0, 65535),
    default=8501,
    show_default=True,
    metavar="PORT",
    help="Port of the REST server.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=8500,
    show_default=True,
    metavar="PORT",
    help="Port of the gRPC server.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to bind. 0.0.0.0 accepts remote clients, without authentication.",
)
@click.option(
    "--model-config-file", type=_EXISTING_FILE, metavar="FILE", help="Serve the models of a models.config file."
)
@click.option(
    "--model-config-file-poll-wait-seconds",
    "model_config_poll_seconds",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="SECONDS",
    help="Read the models.config file again after this time. 0 reads it once.",
)
@click.option(
    "--enable-reload-config",
    is_flag=True,
    help="Accept HandleReloadConfigRequest: clients can then load any model, which is a program, from any folder.",
)
@click.option(
    "--monitoring-config-file",
    type=_EXISTING_FILE,
    metavar="FILE",
    help="Read the path of the Prometheus metrics from a monitoring.config file.",
)
@click.option("--enable-batching", is_flag=True, help="Combine concurrent requests into one batch.")
@click.option(
    "--batching-parameters-file",
    type=_EXISTING_FILE,
    metavar="FILE",
    help="Read the batching parameters from a batching.config file.",
)
@click.option(
    "--allow-version-labels-for-unavailable-models",
    "allow_labels",
    is_flag=True,
    help="Accept labels of versions that are not loaded yet.",
)
@click.option(
    "--rest-api-enable-cors-support",  # the name of TensorFlow Serving
    "--cors",
    "enable_cors_support",
    is_flag=True,
    help="Allow web pages of any origin to read the responses of the REST server.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 100_000),
    default=512,
    show_default=True,
    metavar="N",
    help="Number of REST clients, and of requests, served at the same time; further ones receive HTTP 503.",
)
@click.option("--use-tf-serving", is_flag=True, help="Start tensorflow_model_server instead of the local server.")
@json_option
@standard_options
def serve(
    model_dir: str | None,
    rest_port: int,
    grpc_port: int,
    host: str,
    model_config_file: str | None,
    model_config_poll_seconds: int,
    enable_reload_config: bool,
    monitoring_config_file: str | None,
    enable_batching: bool,
    batching_parameters_file: str | None,
    allow_labels: bool,
    enable_cors_support: bool,
    max_connections: int,
    use_tf_serving: bool,
    as_json: bool,
) -> None:
    """Serve an exported model over REST and gRPC.

    Serves the newest version in MODEL_DIR, or the models of --model-config-file, until Ctrl-C or SIGTERM. The local
    server has the URLs, gRPC services, status codes and error messages of TF Serving, for developing clients. It loads
    new versions as they are published, then unloads the old ones.
    """
    if (model_dir is None) == (model_config_file is None):
        raise click.UsageError("expected either MODEL_DIR or --model-config-file.")
    if batching_parameters_file and not enable_batching:
        raise RecipeError("--batching-parameters-file requires --enable-batching. No server was started.")
    if model_config_poll_seconds and not model_config_file:
        raise RecipeError("--model-config-file-poll-wait-seconds requires --model-config-file. No server was started.")
    if model_dir is not None:
        _check_model_dir(Path(model_dir))
        _warn_of_slow_precision(Path(model_dir))
    if use_tf_serving:
        folder = Path(os.path.abspath(model_dir)) if model_dir else None
        batching = batching_parameters_file or enable_batching
        files = (model_config_file, monitoring_config_file, batching)
        flags = (enable_cors_support, model_config_poll_seconds, allow_labels)
        _run_tf_serving(folder, (rest_port, grpc_port), *files, *flags)
        return
    _print_log_with_times()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger(__name__).info("loading TensorFlow and the models")
    from keras_committee.tfserving.server.limits import Limits
    from keras_committee.tfserving.server.local_server import LocalServer, ServerOptions
    from keras_committee.tfserving.server.manager import ManagerOptions

    options = ServerOptions(
        host=host,
        rest_port=rest_port,
        grpc_port=grpc_port,
        metrics_path=_prometheus_path(monitoring_config_file),
        batching=_batching_parameters(enable_batching, batching_parameters_file),
        manager_options=ManagerOptions(allow_labels_for_unavailable=allow_labels, retry_seconds=2.0),
        enable_cors_support=enable_cors_support,
        enable_reload_config=enable_reload_config,
        model_config_file=Path(model_config_file) if model_config_file else None,
        model_config_poll_seconds=model_config_poll_seconds,
        limits=Limits(max_connections=max_connections, max_queue_size=max_connections),
    )
    configs = _model_configs(model_dir, model_config_file)
    with _stop_on_signals() as stop, LocalServer(configs, options) as server:
        _print_summary(server, host, as_json)
        stop.wait()


class _WrappingHandler(logging.Handler):
    """Prints the log to stderr, on a terminal wrapped between words."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print_text(self.format(record), err=True)
        except Exception:
            self.handleError(record)


def _print_log_with_times() -> None:
    handlers = [_WrappingHandler()]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", handlers=handlers)


def _check_model_dir(folder: Path) -> None:
    """Raise RecipeError unless `folder` contains a version: a server would wait for one for ever."""
    if explanation := explain_wrong_folder(folder, FolderKind.MODEL):
        raise RecipeError(f"{folder} is not a model folder: {explanation}\n  No server was started.")
    if folder_kind(folder) is FolderKind.MODEL:
        return
    problem = "there is no such folder." if not folder.exists() else "it has no version, such as 1/saved_model.pb."
    raise RecipeError(
        f"{folder} is not a model folder: {problem} No server was started.\n"
        f"  Create one with `keras-committee export RUN --out {folder}`."
    )


def _warn_of_slow_precision(model_dir: Path) -> None:
    """Print a warning if the newest version computes in bfloat16, and this machine has no matrix units for it."""
    versions = find_versions(model_dir)
    newest = versions[max(versions)] if versions else model_dir
    try:
        manifest = read_record(newest / MANIFEST_FILE, may_be_edited=True)
    except (OSError, ValueError):  # of another program, or damaged
        return
    precision = manifest.get("precision", {})
    if precision.get("compute") != "bfloat16" or cpu_device().has_bfloat16:
        return
    device = tensorflow_device()
    if not device.has_bfloat16:
        print_text(
            f"warning: {newest} computes in bfloat16, which is slow on this machine: {device.reason}. "
            f"It needs {precision['hardware']}.\n  For this machine, export with --precision float32.",
            err=True,
        )


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    previous_handlers = {
        signal_number: signal.signal(signal_number, lambda *_: stop.set())
        for signal_number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for signal_number, handler in previous_handlers.items():
            signal.signal(signal_number, handler)


def _model_configs(model_dir: str | None, file: str | None) -> list:
    from keras_committee.tfserving.server.local_server import config_from_folder, read_config_file

    return config_from_folder(Path(model_dir)) if model_dir else read_config_file(Path(str(file)))


def _prometheus_path(file: str | None) -> str:
    from keras_committee.tfserving.config import parse_monitoring
    from keras_committee.tfserving.server.rest import METRICS_PATH

    return parse_monitoring(Path(file).read_text()).prometheus_config.path or METRICS_PATH if file else METRICS_PATH


def _batching_parameters(enabled: bool, file: str | None):
    from keras_committee.tfserving.config import parse_batching
    from keras_committee.tfserving.server.batching import BatchingParameters

    if not enabled:
        return None
    return BatchingParameters.from_proto(parse_batching(Path(file).read_text() if file else ""))


def _print_summary(server, host: str, as_json: bool) -> None:
    rest = f"http://{host}:{server.rest_port}"
    grpc = f"{host}:{server.grpc_port}" if server.grpc_port else None
    models = server.manager.names()
    if as_json:
        print_json({"rest": rest, "grpc": grpc, "models": models, "local_server": True})
        return
    grpc_text = f" (gRPC: {grpc})" if grpc else ""
    print_message(f"Serving {', '.join(models)} at {rest}{grpc_text}. Press Ctrl-C to stop.")


def _run_tf_serving(folder: Path | None, ports: tuple[int, int], *options: str | int | None) -> None:
    from keras_committee.tfserving.server.local_server import tf_serving_command

    arguments = tf_serving_command(folder, ports, *options)  # pyright: ignore[reportArgumentType]
    os.execv(arguments[0], arguments)
