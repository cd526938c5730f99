"""How is TF Serving told what to serve, how to batch and where to show its metrics?

`models.config`, `batching.config` and `monitoring.config` are written from one `ServerConfig`, parsed back and linted.
Labels roll out in two steps, because a server refuses a label of a version that it has not loaded yet: `models.config`
loads, `models.labels.config` labels, and takes its place once every version is AVAILABLE. A rollback is the policy
`specific` with an older version; nothing is deleted. A server that starts anew meets labels before versions: give it
`--allow_version_labels_for_unavailable_models`, which lets it take new labels, but not move one.
"""

import dataclasses
import functools
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format, wrappers_pb2

from keras_committee.errors import RecipeError
from keras_committee.files import write_file

METRICS_PATH = "/monitoring/prometheus/metrics"
MODELS_FILE, LABELS_FILE, BATCHING_FILE, MONITORING_FILE = (
    "models.config",
    "models.labels.config",
    "batching.config",
    "monitoring.config",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model of the server.

    Attributes:
        name: What requests call it.
        base_path: The folder of its version folders, absolute, as the server sees it.
        versions: The versions to serve; none for the newest one, whatever it is at the time.
        labels: Names of versions, such as `{"stable": 3, "canary": 4}`.
    """

    name: str
    base_path: str
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How requests of several clients are put into one batch.

    Attributes:
        allowed_batch_sizes: The batch sizes that may be run, increasing: a smaller batch is filled up with copies of a row. The last
            one is the most that a request may hold.
        batch_timeout_micros: Microseconds that a request waits for others.
        num_batch_threads: Batches run at once: the cores on a CPU, 2 or 3 on a GPU.
        max_enqueued_batches: Batches that may wait; then requests are refused as UNAVAILABLE.
    """

    allowed_batch_sizes: tuple[int, ...] = (1, 8, 32)
    batch_timeout_micros: int = 2000
    num_batch_threads: int = 2
    max_enqueued_batches: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything that the three files say."""

    models: tuple[ServedModel, ...]
    batching: BatchingConfig = BatchingConfig()
    metrics_path: str = METRICS_PATH

    def render(self) -> dict[str, str]:
        """The three files by name, linted. Raises RecipeError."""
        return {
            MODELS_FILE: render_models_config(self.models),
            BATCHING_FILE: render_batching_config(self.batching),
            MONITORING_FILE: render_monitoring_config(self.metrics_path),
        }


def write_config(config: ServerConfig, folder: str | Path) -> list[Path]:
    """Writes the files of `config` into `folder`, and returns their paths.

    Where labels come or move against the `models.config` that is there, that file keeps its labels and loads what the
    new ones name, and `models.labels.config` holds the second step. Raises RecipeError and ResourceError.
    """
    folder, texts = Path(folder), config.render()
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
        (folder / LABELS_FILE).unlink(missing_ok=True)  # the second step of an earlier rollout, overtaken
    for name, text in texts.items():
        write_file(folder / name, text.encode())
    return [folder / name for name in texts]


def render_models_config(models: tuple[ServedModel, ...]) -> str:
    """`models.config`. Raises RecipeError."""
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
    """`batching.config`. Raises RecipeError."""
    parameters = message_class("BatchingParameters")(allowed_batch_sizes=batching.allowed_batch_sizes)
    parameters.max_batch_size.value = max(batching.allowed_batch_sizes, default=0)
    parameters.batch_timeout_micros.value = batching.batch_timeout_micros
    parameters.num_batch_threads.value = batching.num_batch_threads
    parameters.max_enqueued_batches.value = batching.max_enqueued_batches
    return _render(parameters, lint_batching, parse_batching, BATCHING_FILE)


def render_monitoring_config(path: str) -> str:
    """`monitoring.config`. Raises RecipeError."""
    monitoring = message_class("MonitoringConfig")(prometheus_config={"enable": True, "path": path})
    return _render(monitoring, lint_monitoring, parse_monitoring, MONITORING_FILE)


def list_versions(folder: str | Path) -> list[int]:
    """The versions in model folder `folder`, rising: folders whose names are decimal numbers. Raises RecipeError."""
    try:
        names = [child.name for child in Path(folder).iterdir() if child.is_dir()]
    except OSError as error:
        raise RecipeError(
            f"{folder} is no model folder: {error.strerror}. `keras-committee export` makes one."
        ) from error
    versions = sorted(int(name) for name in names if re.fullmatch(r"[0-9]{1,18}", name))
    duplicates = sorted({version for version in versions if versions.count(version) > 1})
    if duplicates:
        raise RecipeError(
            f"{folder} has two folders of version {duplicates[0]}, such as 7 and 007: the server picks one."
        )
    return versions


def _loading_step(model: ServedModel, labels: Mapping[str, int]) -> ServedModel:
    """The first step of a rollout: `model` under the `labels` of now, with every version that either step names."""
    if model.labels.items() <= labels.items():  # to take a label away needs no version
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
        raise RecipeError(f"{name} would be refused:\n  " + "\n  ".join(problems) + "\nNothing was written.")
    return text


_MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


def lint_models(config: Any) -> list[str]:
    """The problems of a `ModelServerConfig`."""
    models = list(config.model_config_list.config)
    if not models:
        return ["it lists no model: a server told so unloads what it serves, or waits for ever"]
    names = [model.name for model in models]
    problems = [f"two models are named {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    for model in models:
        problems += [f"model {model.name!r}: {problem}" for problem in _lint_model(model)]
    return problems


def lint_batching(batching: Any) -> list[str]:
    """The problems of a `BatchingParameters`."""
    problems = [
        f"{name} is below {minimum}" for name, minimum in _MIN_VALUES.items() if _is_below(batching, name, minimum)
    ]
    sizes = list(batching.allowed_batch_sizes)
    splits = batching.enable_large_batch_splitting.value
    if batching.HasField("max_execution_batch_size") and not splits:
        problems.append("max_execution_batch_size counts only with enable_large_batch_splitting")
    if not batching.HasField("max_batch_size"):
        problems.append("max_batch_size is missing: the server would take 1000")
    if sizes != sorted(set(sizes)) or any(size < 1 for size in sizes):
        problems.append(f"allowed_batch_sizes must be positive and increase. They are {sizes}")
    return problems + _lint_largest_batch_size(batching, sizes, splits)


def lint_monitoring(monitoring: Any) -> list[str]:
    """The problems of a `MonitoringConfig`."""
    prometheus = monitoring.prometheus_config
    problems = [] if prometheus.enable else ["prometheus_config is not enabled: nothing would be measured"]
    if prometheus.path and not prometheus.path.startswith("/"):
        problems.append(f"the path of the metrics must begin with /. It is {prometheus.path!r}")
    return problems


_MIN_VALUES = {
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "num_batch_threads": 1,
    "max_execution_batch_size": 1,
}


def _is_below(batching: Any, name: str, minimum: int) -> bool:
    return batching.HasField(name) and getattr(batching, name).value < minimum


def _lint_largest_batch_size(batching: Any, sizes: list[int], splits: bool) -> list[str]:
    limit_name = "max_batch_size"
    if splits and batching.HasField("max_execution_batch_size"):
        limit_name = "max_execution_batch_size"
    limit = getattr(batching, limit_name).value
    if sizes and sizes[-1] != limit:
        return [f"the last of allowed_batch_sizes must be {limit_name}, {limit}. It is {sizes[-1]}"]
    return []


def _lint_model(model: Any) -> list[str]:
    problems = []
    if not _MODEL_NAME.fullmatch(model.name):
        problems.append("a name is 1 to 128 of A-Z a-z 0-9 _ . - and does not begin with a dot")
    if not posixpath.isabs(model.base_path):
        problems.append(f"base_path must be absolute. It is {model.base_path!r}")
    elif posixpath.normpath(model.base_path) != model.base_path.rstrip("/"):
        problems.append(f"base_path must hold no '.', '..' or '//'. It is {model.base_path!r}")
    if model.model_platform != "tensorflow":
        problems.append(f"model_platform must be 'tensorflow'. It is {model.model_platform!r}")
    return problems + _lint_policy(model) + _lint_labels(model)


def _lint_policy(model: Any) -> list[str]:
    policy = model.model_version_policy
    versions = list(policy.specific.versions)
    problems = []
    if policy.WhichOneof("policy_choice") == "specific" and not versions:
        problems.append("its policy is `specific` without a version: nothing would be served")
    if len(set(versions)) != len(versions) or any(version < 0 for version in versions):
        problems.append(f"versions must be different and not negative. They are {versions}")
    if policy.WhichOneof("policy_choice") == "latest" and policy.latest.num_versions < 1:
        problems.append("its policy is `latest` with no version: num_versions must be at least 1")
    return problems


def _lint_labels(model: Any) -> list[str]:
    policy, labels = model.model_version_policy, dict(model.version_labels)
    problems = [f"no request can name the label {name!r}" for name in sorted(labels) if not _MODEL_NAME.fullmatch(name)]
    choice = policy.WhichOneof("policy_choice")
    if labels and choice not in ("specific", "all"):
        problems.append("labels need the policy `specific`: under `latest` the next version unloads what they name")
    if choice != "specific":
        return problems
    loaded = set(policy.specific.versions)
    return problems + [
        f"label {name!r} names version {version}, which is not loaded: {sorted(loaded)} are"
        for name, version in sorted(labels.items())
        if version not in loaded
    ]


_INT64_VALUE = ".google.protobuf.Int64Value"
_BATCHING_FIELDS = {
    "max_batch_size": _INT64_VALUE,
    "batch_timeout_micros": _INT64_VALUE,
    "max_enqueued_batches": _INT64_VALUE,
    "num_batch_threads": _INT64_VALUE,
    "thread_pool_name": ".google.protobuf.StringValue",
    "allowed_batch_sizes": "repeated int64",
    "pad_variable_length_inputs": "bool",
    "enable_large_batch_splitting": ".google.protobuf.BoolValue",
    "max_execution_batch_size": _INT64_VALUE,
}
_PROMETHEUS_FIELDS = {"enable": "bool", "path": "string"}
_MONITORING_FIELDS = {"prometheus_config": ".keras_committee.config.PrometheusConfig"}


def parse_models(text: str) -> Any:
    """The `ModelServerConfig` in `text`. Raises RecipeError."""
    return _parse(text, _model_server_config()(), "models.config")


def parse_batching(text: str) -> Any:
    """The `BatchingParameters` in `text`. Raises RecipeError."""
    return _parse(text, message_class("BatchingParameters")(), "batching.config")


def parse_monitoring(text: str) -> Any:
    """The `MonitoringConfig` in `text`. Raises RecipeError."""
    return _parse(text, message_class("MonitoringConfig")(), "monitoring.config")


@functools.cache
def message_class(name: str) -> Any:
    """The class of "BatchingParameters" or "MonitoringConfig"."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(_file_descriptor())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"keras_committee.config.{name}"))


def _file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_committee/config.proto", package="keras_committee.config", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    for name, fields in (
        ("BatchingParameters", _BATCHING_FIELDS),
        ("PrometheusConfig", _PROMETHEUS_FIELDS),
        ("MonitoringConfig", _MONITORING_FIELDS),
    ):
        declaration = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            declaration.field.append(_field_descriptor(field, number, kind))
    return file


def _field_descriptor(name: str, number: int, kind: str) -> descriptor_pb2.FieldDescriptorProto:
    field = descriptor_pb2.FieldDescriptorProto
    repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
    descriptor = field(name=name, number=number, label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL)
    if kind.startswith("."):
        descriptor.type, descriptor.type_name = field.TYPE_MESSAGE, kind
    else:
        descriptor.type = {"int64": field.TYPE_INT64, "bool": field.TYPE_BOOL, "string": field.TYPE_STRING}[kind]
    return descriptor


def _model_server_config() -> type[message.Message]:
    try:
        from tensorflow_serving.config import model_server_config_pb2
    except ImportError as error:
        raise RecipeError(
            f"models.config is checked with the messages of tensorflow-serving-api, which is not there: {error}.\n"
            '  pip install "keras-committee[serving]"'
        ) from error
    return model_server_config_pb2.ModelServerConfig


def _parse(text: str, target: message.Message, file_name: str) -> message.Message:
    try:
        return text_format.Parse(text, target)
    except text_format.ParseError as error:
        raise RecipeError(f"{file_name} is no {target.DESCRIPTOR.name} in text format: line:column {error}") from error
