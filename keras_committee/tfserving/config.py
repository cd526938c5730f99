"""Configuration files of TensorFlow Serving: what to serve, how to batch, and where to expose metrics.

`models.config`, `batching.config` and `monitoring.config` are rendered from one `ServerConfig`, parsed back and
checked. Labels roll out in two steps, because a server rejects a label of a version that is not loaded yet:
`models.config` loads the versions, and `models.labels.config` replaces it once every version is AVAILABLE. To roll
back, use the policy `specific` with an older version; nothing is deleted.

A server that restarts reads the labels before it has loaded any version. Start it with
`--allow_version_labels_for_unavailable_models`, which permits new labels but does not move existing ones.
"""

import dataclasses
import functools
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import message, text_format

from keras_committee.errors import RecipeError
from keras_committee.files import expand_home, write_file
from keras_committee.tfserving.messages import declare_messages
from keras_committee.tfserving.versions import NAME_RULE, is_valid_name

METRICS_PATH = "/monitoring/prometheus/metrics"
MODELS_FILE = "models.config"
LABELS_FILE = "models.labels.config"
BATCHING_FILE = "batching.config"
MONITORING_FILE = "monitoring.config"

_MIN_VALUES = {
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "num_batch_threads": 1,
    "max_execution_batch_size": 1,
}

# session_bundle_config.proto and monitoring_config.proto, in which TensorFlow Serving reads two of the files.
# tensorflow-serving-api does not contain them; text format needs the names and types only, not the field numbers.
_MESSAGES = {
    "Int64Value": ["int64 value"],
    "StringValue": ["string value"],
    "BoolValue": ["bool value"],
    "BatchingParameters": [
        "Int64Value max_batch_size",
        "Int64Value batch_timeout_micros",
        "Int64Value max_enqueued_batches",
        "Int64Value num_batch_threads",
        "StringValue thread_pool_name",
        "repeated int64 allowed_batch_sizes",
        "bool pad_variable_length_inputs",
        "BoolValue enable_large_batch_splitting",
        "Int64Value max_execution_batch_size",
    ],
    "PrometheusConfig": ["bool enable", "string path"],
    "MonitoringConfig": ["PrometheusConfig prometheus_config"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model that the server loads.

    Attributes:
        name: Name of the model in requests.
        base_path: Absolute path of the folder of version folders, as the server sees it.
        versions: Versions to serve. Empty serves the newest version on disk.
        labels: Version by label, such as `{"stable": 3, "canary": 4}`.
    """

    name: str
    base_path: str
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How the server merges requests into batches.

    Attributes:
        allowed_batch_sizes: Batch sizes that may run, ascending. A smaller batch is padded with copies of a row. The
            last one is the largest batch a request may hold.
        batch_timeout_micros: Maximum time a request waits for others, in microseconds.
        num_batch_threads: Number of batches that run at once: the number of cores on a CPU, 2 or 3 on a GPU.
        max_enqueued_batches: Number of batches that may wait; further requests are rejected as UNAVAILABLE.
    """

    allowed_batch_sizes: tuple[int, ...] = (1, 8, 32)
    batch_timeout_micros: int = 2000
    num_batch_threads: int = 2
    max_enqueued_batches: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The content of all configuration files."""

    models: tuple[ServedModel, ...]
    batching: BatchingConfig = BatchingConfig()
    metrics_path: str = METRICS_PATH

    def render(self) -> dict[str, str]:
        """Return the text of the three files by name.

        Raises:
            RecipeError: If the server would reject one of them.
        """
        return {
            MODELS_FILE: render_models_config(self.models),
            BATCHING_FILE: render_batching_config(self.batching),
            MONITORING_FILE: render_monitoring_config(self.metrics_path),
        }


def write_config(config: ServerConfig, folder: str | Path) -> list[Path]:
    """Write the files of `config` into `folder` and return their paths.

    If labels are added or moved relative to the existing `models.config`, the new `models.config` keeps the current
    labels and loads the versions of the new ones, and `models.labels.config` holds the second step.

    Raises:
        RecipeError: If the server would reject one of the files; none is written.
        ResourceError: If a file cannot be written.
    """
    folder, texts = expand_home(folder), config.render()
    first_step = render_models_config(
        tuple(_loading_step(model, _current_labels(folder, model.name)) for model in config.models)
    )
    if first_step != texts[MODELS_FILE]:
        texts = {
            MODELS_FILE: first_step,
            LABELS_FILE: texts[MODELS_FILE],
            BATCHING_FILE: texts[BATCHING_FILE],
            MONITORING_FILE: texts[MONITORING_FILE],
        }
    else:
        (folder / LABELS_FILE).unlink(missing_ok=True)  # the second step of an earlier rollout, now obsolete
    for name, text in texts.items():
        write_file(folder / name, text.encode())
    return [folder / name for name in texts]


def render_models_config(models: tuple[ServedModel, ...]) -> str:
    """Return the text of `models.config`. Raises RecipeError."""
    config = parse_models("model_config_list {}")
    for model in models:
        entry = config.model_config_list.config.add(
            name=model.name, base_path=model.base_path, model_platform="tensorflow"
        )
        if model.versions:
            entry.model_version_policy.specific.versions.extend(model.versions)
        entry.version_labels.update(model.labels)
    return _render(config, lint_models, parse_models, MODELS_FILE)


def render_batching_config(batching: BatchingConfig) -> str:
    """Return the text of `batching.config`. Raises RecipeError."""
    parameters = _message_class("BatchingParameters")(allowed_batch_sizes=batching.allowed_batch_sizes)
    parameters.max_batch_size.value = max(batching.allowed_batch_sizes, default=0)
    parameters.batch_timeout_micros.value = batching.batch_timeout_micros
    parameters.num_batch_threads.value = batching.num_batch_threads
    parameters.max_enqueued_batches.value = batching.max_enqueued_batches
    return _render(parameters, lint_batching, parse_batching, BATCHING_FILE)


def render_monitoring_config(path: str) -> str:
    """Return the text of `monitoring.config`. Raises RecipeError."""
    monitoring = _message_class("MonitoringConfig")(prometheus_config={"enable": True, "path": path})
    return _render(monitoring, lint_monitoring, parse_monitoring, MONITORING_FILE)


def parse_models(text: str) -> Any:
    """Return the `ModelServerConfig` in `text`. Raises RecipeError."""
    return _parse(text, _model_server_config()(), MODELS_FILE)


def parse_batching(text: str) -> Any:
    """Return the `BatchingParameters` in `text`. Raises RecipeError."""
    return _parse(text, _message_class("BatchingParameters")(), BATCHING_FILE)


def parse_monitoring(text: str) -> Any:
    """Return the `MonitoringConfig` in `text`. Raises RecipeError."""
    return _parse(text, _message_class("MonitoringConfig")(), MONITORING_FILE)


def lint_models(config: Any) -> list[str]:
    """Return the problems of a `ModelServerConfig`, one sentence each."""
    models = list(config.model_config_list.config)
    if not models:
        return ["it lists no models: the server would unload everything, or never become ready"]
    names = [model.name for model in models]
    problems = [f"two models are named {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    for model in models:
        problems += [f"model {model.name!r}: {problem}" for problem in _lint_model(model)]
    return problems


def lint_batching(batching: Any) -> list[str]:
    """Return the problems of a `BatchingParameters`, one sentence each."""
    problems = [
        f"{name} must be at least {minimum}. Received: {getattr(batching, name).value}"
        for name, minimum in _MIN_VALUES.items()
        if batching.HasField(name) and getattr(batching, name).value < minimum
    ]
    sizes = list(batching.allowed_batch_sizes)
    splits = batching.enable_large_batch_splitting.value
    if batching.HasField("max_execution_batch_size") and not splits:
        problems.append("max_execution_batch_size requires enable_large_batch_splitting")
    if not batching.HasField("max_batch_size"):
        problems.append("max_batch_size is missing; the server would use 1000")
    if sizes != sorted(set(sizes)) or any(size < 1 for size in sizes):
        problems.append(f"allowed_batch_sizes must be positive and increasing. Received: {sizes}")
    return problems + _lint_largest_batch_size(batching, sizes, splits)


def lint_monitoring(monitoring: Any) -> list[str]:
    """Return the problems of a `MonitoringConfig`, one sentence each."""
    prometheus = monitoring.prometheus_config
    problems = [] if prometheus.enable else ["prometheus_config is not enabled: no metrics would be exported"]
    if prometheus.path and not prometheus.path.startswith("/"):
        problems.append(f"the metrics path must start with /. Received: {prometheus.path!r}")
    return problems


def _loading_step(model: ServedModel, labels: Mapping[str, int]) -> ServedModel:
    """Return the first step of a rollout: the current `labels`, and all versions that either step names."""
    if model.labels.items() <= labels.items():  # removing a label needs no new version
        return model
    versions = sorted({*model.versions, *labels.values()})
    return dataclasses.replace(model, versions=tuple(versions), labels=labels)


def _current_labels(folder: Path, name: str) -> dict[str, int]:
    try:
        text = (folder / MODELS_FILE).read_text()
    except FileNotFoundError:
        return {}
    models = parse_models(text).model_config_list.config
    return {label: version for model in models if model.name == name for label, version in model.version_labels.items()}


def _render(message, linter, parser, name: str) -> str:
    text = text_format.MessageToString(message)
    problems = linter(parser(text))
    if problems:
        listing = "\n  ".join(problems)
        raise RecipeError(f"TensorFlow Serving would reject {name}:\n  {listing}\nNo file was written.")
    return text


def _lint_model(model: Any) -> list[str]:
    problems = []
    if not is_valid_name(model.name):
        problems.append(f"name must be {NAME_RULE}")
    if not posixpath.isabs(model.base_path):
        problems.append(f"base_path must be absolute. Received: {model.base_path!r}")
    elif posixpath.normpath(model.base_path) != model.base_path.rstrip("/"):
        problems.append(f"base_path must not contain '.', '..' or '//'. Received: {model.base_path!r}")
    if model.model_platform != "tensorflow":
        problems.append(f"model_platform must be 'tensorflow'. Received: {model.model_platform!r}")
    return problems + _lint_policy(model) + _lint_labels(model)


def _lint_policy(model: Any) -> list[str]:
    policy = model.model_version_policy
    versions = list(policy.specific.versions)
    problems = []
    if policy.WhichOneof("policy_choice") == "specific" and not versions:
        problems.append("policy `specific` names no version, so nothing would be served")
    if len(set(versions)) != len(versions) or any(version < 0 for version in versions):
        problems.append(f"versions must be distinct and at least 0. Received: {versions}")
    if policy.WhichOneof("policy_choice") == "latest" and policy.latest.num_versions < 1:
        problems.append(f"num_versions of policy `latest` must be at least 1. Received: {policy.latest.num_versions}")
    return problems


def _lint_labels(model: Any) -> list[str]:
    policy, labels = model.model_version_policy, dict(model.version_labels)
    problems = [f"label {name!r} must be {NAME_RULE}" for name in sorted(labels) if not is_valid_name(name)]
    choice = policy.WhichOneof("policy_choice")
    if labels and choice not in ("specific", "all"):
        problems.append("labels require the policy `specific`: with `latest`, a new version unloads the labeled one")
    if choice != "specific":
        return problems
    loaded = sorted(policy.specific.versions)
    return problems + [
        f"label {name!r} names version {version}, which is not loaded. Loaded versions: {loaded}"
        for name, version in sorted(labels.items())
        if version not in loaded
    ]


def _lint_largest_batch_size(batching: Any, sizes: list[int], splits: bool) -> list[str]:
    limit_name = "max_batch_size"
    if splits and batching.HasField("max_execution_batch_size"):
        limit_name = "max_execution_batch_size"
    limit = getattr(batching, limit_name).value
    if sizes and sizes[-1] != limit:
        return [f"the last of allowed_batch_sizes must equal {limit_name}, {limit}. Received: {sizes[-1]}"]
    return []


def _parse(text: str, target: message.Message, file_name: str) -> message.Message:
    try:
        return text_format.Parse(text, target)
    except text_format.ParseError as error:
        raise RecipeError(
            f"{file_name} is not a valid {target.DESCRIPTOR.name} in text format: line:column {error}"
        ) from error


def _model_server_config() -> type[message.Message]:
    try:
        from tensorflow_serving.config import model_server_config_pb2
    except ImportError as error:
        raise RecipeError(
            f"checking models.config requires tensorflow-serving-api: {error}.\n"
            '  pip install "keras-committee[serving]"'
        ) from error
    return model_server_config_pb2.ModelServerConfig


@functools.cache
def _message_class(name: str) -> Any:
    """Return the class of "BatchingParameters" or "MonitoringConfig"."""
    messages = {message_name: dict(enumerate(fields, 1)) for message_name, fields in _MESSAGES.items()}
    return declare_messages("keras_committee.config", messages)[name]
