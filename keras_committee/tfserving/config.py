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

METRICS = "/monitoring/prometheus/metrics"
MODELS, LABELS, BATCHING, MONITORING = (
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
class Batching:
    """How requests of several clients are put into one batch.

    Attributes:
        sizes: The batch sizes that may be run, increasing: a smaller batch is filled up with copies of a row. The last
            one is the most that a request may hold.
        timeout_micros: Microseconds that a request waits for others.
        threads: Batches run at once: the cores on a CPU, 2 or 3 on a GPU.
        queued: Batches that may wait; then requests are refused as UNAVAILABLE.
    """

    sizes: tuple[int, ...] = (1, 8, 32)
    timeout_micros: int = 2000
    threads: int = 2
    queued: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything that the three files say."""

    models: tuple[ServedModel, ...]
    batching: Batching = Batching()
    metrics_path: str = METRICS

    def texts(self) -> dict[str, str]:
        """The three files by name, linted. Raises RecipeError."""
        return {
            MODELS: models_text(self.models),
            BATCHING: batching_text(self.batching),
            MONITORING: monitoring_text(self.metrics_path),
        }


def write_config(config: ServerConfig, folder: str | Path) -> list[Path]:
    """Writes the files of `config` into `folder`, and returns their paths.

    Where labels come or move against the `models.config` that is there, that file keeps its labels and loads what the
    new ones name, and `models.labels.config` holds the second step. Raises RecipeError and ResourceError.
    """
    folder, texts = Path(folder), config.texts()
    first = models_text(tuple(_loading(model, _labels_now(folder, model.name)) for model in config.models))
    if first != texts[MODELS]:
        texts = {MODELS: first, LABELS: texts[MODELS], BATCHING: texts[BATCHING], MONITORING: texts[MONITORING]}
    else:
        (folder / LABELS).unlink(missing_ok=True)  # the second step of an earlier rollout, overtaken
    for name, text in texts.items():
        write_file(folder / name, text.encode())
    return [folder / name for name in texts]


def models_text(models: tuple[ServedModel, ...]) -> str:
    """`models.config`. Raises RecipeError."""
    config = parse_models("model_config_list {}")
    for model in models:
        entry = config.model_config_list.config.add(
            name=model.name, base_path=model.base_path, model_platform="tensorflow"
        )
        if model.versions:
            entry.model_version_policy.specific.versions.extend(model.versions)
        entry.version_labels.update(model.labels)
    return _text(config, lint_models, parse_models, MODELS)


def batching_text(batching: Batching) -> str:
    """`batching.config`. Raises RecipeError."""
    parameters = declared("BatchingParameters")(allowed_batch_sizes=batching.sizes)
    parameters.max_batch_size.value = max(batching.sizes, default=0)
    parameters.batch_timeout_micros.value = batching.timeout_micros
    parameters.num_batch_threads.value = batching.threads
    parameters.max_enqueued_batches.value = batching.queued
    return _text(parameters, lint_batching, parse_batching, BATCHING)


def monitoring_text(path: str) -> str:
    """`monitoring.config`. Raises RecipeError."""
    monitoring = declared("MonitoringConfig")(prometheus_config={"enable": True, "path": path})
    return _text(monitoring, lint_monitoring, parse_monitoring, MONITORING)


def versions_in(folder: str | Path) -> list[int]:
    """The versions in model folder `folder`, rising: folders whose names are decimal numbers. Raises RecipeError."""
    try:
        names = [child.name for child in Path(folder).iterdir() if child.is_dir()]
    except OSError as error:
        raise RecipeError(
            f"{folder} is no model folder: {error.strerror}. `keras-committee export` makes one."
        ) from error
    versions = sorted(int(name) for name in names if re.fullmatch(r"[0-9]{1,18}", name))
    twice = sorted({version for version in versions if versions.count(version) > 1})
    if twice:
        raise RecipeError(f"{folder} has two folders of version {twice[0]}, such as 7 and 007: the server picks one.")
    return versions


def _loading(model: ServedModel, labels: Mapping[str, int]) -> ServedModel:
    """The first step of a rollout: `model` under the `labels` of now, with every version that either step names."""
    if model.labels.items() <= labels.items():  # to take a label away needs no version
        return model
    versions = sorted({*model.versions, *labels.values()})
    return dataclasses.replace(model, versions=tuple(versions), labels=labels)


def _labels_now(folder: Path, name: str) -> dict[str, int]:
    try:
        text = (folder / MODELS).read_text()
    except FileNotFoundError:
        return {}
    models = parse_models(text).model_config_list.config
    return {label: version for model in models if model.name == name for label, version in model.version_labels.items()}


def _text(message, linter, parser, name: str) -> str:
    text = text_format.MessageToString(message)
    problems = linter(parser(text))
    if problems:
        raise RecipeError(f"{name} would be refused:\n  " + "\n  ".join(problems) + "\nNothing was written.")
    return text


_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


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
    problems = [f"{name} is below {least}" for name, least in _LEAST.items() if _below(batching, name, least)]
    sizes = list(batching.allowed_batch_sizes)
    splits = batching.enable_large_batch_splitting.value
    if batching.HasField("max_execution_batch_size") and not splits:
        problems.append("max_execution_batch_size counts only with enable_large_batch_splitting")
    if not batching.HasField("max_batch_size"):
        problems.append("max_batch_size is missing: the server would take 1000")
    if sizes != sorted(set(sizes)) or any(size < 1 for size in sizes):
        problems.append(f"allowed_batch_sizes must be positive and increase. They are {sizes}")
    return problems + _lint_last(batching, sizes, splits)


def lint_monitoring(monitoring: Any) -> list[str]:
    """The problems of a `MonitoringConfig`."""
    prometheus = monitoring.prometheus_config
    problems = [] if prometheus.enable else ["prometheus_config is not enabled: nothing would be measured"]
    if prometheus.path and not prometheus.path.startswith("/"):
        problems.append(f"the path of the metrics must begin with /. It is {prometheus.path!r}")
    return problems


_LEAST = {
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "num_batch_threads": 1,
    "max_execution_batch_size": 1,
}


def _below(batching: Any, name: str, least: int) -> bool:
    return batching.HasField(name) and getattr(batching, name).value < least


def _lint_last(batching: Any, sizes: list[int], splits: bool) -> list[str]:
    bound = "max_batch_size"
    if splits and batching.HasField("max_execution_batch_size"):
        bound = "max_execution_batch_size"
    most = getattr(batching, bound).value
    if sizes and sizes[-1] != most:
        return [f"the last of allowed_batch_sizes must be {bound}, {most}. It is {sizes[-1]}"]
    return []


def _lint_model(model: Any) -> list[str]:
    problems = []
    if not _NAME.fullmatch(model.name):
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
    problems = [f"no request can name the label {name!r}" for name in sorted(labels) if not _NAME.fullmatch(name)]
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


_INT = ".google.protobuf.Int64Value"
_BATCHING = {
    "max_batch_size": _INT,
    "batch_timeout_micros": _INT,
    "max_enqueued_batches": _INT,
    "num_batch_threads": _INT,
    "thread_pool_name": ".google.protobuf.StringValue",
    "allowed_batch_sizes": "repeated int64",
    "pad_variable_length_inputs": "bool",
    "enable_large_batch_splitting": ".google.protobuf.BoolValue",
    "max_execution_batch_size": _INT,
}
_PROMETHEUS = {"enable": "bool", "path": "string"}
_MONITORING = {"prometheus_config": ".keras_committee.config.PrometheusConfig"}


def parse_models(text: str) -> Any:
    """The `ModelServerConfig` in `text`. Raises RecipeError."""
    return _parse(text, _model_server_config()(), "models.config")


def parse_batching(text: str) -> Any:
    """The `BatchingParameters` in `text`. Raises RecipeError."""
    return _parse(text, declared("BatchingParameters")(), "batching.config")


def parse_monitoring(text: str) -> Any:
    """The `MonitoringConfig` in `text`. Raises RecipeError."""
    return _parse(text, declared("MonitoringConfig")(), "monitoring.config")


@functools.cache
def declared(name: str) -> Any:
    """The class of "BatchingParameters" or "MonitoringConfig"."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"keras_committee.config.{name}"))


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_committee/config.proto", package="keras_committee.config", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    for name, fields in (
        ("BatchingParameters", _BATCHING),
        ("PrometheusConfig", _PROMETHEUS),
        ("MonitoringConfig", _MONITORING),
    ):
        declaration = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            declaration.field.append(_field(field, number, kind))
    return file


def _field(name: str, number: int, kind: str) -> descriptor_pb2.FieldDescriptorProto:
    field = descriptor_pb2.FieldDescriptorProto
    repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
    made = field(name=name, number=number, label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL)
    if kind.startswith("."):
        made.type, made.type_name = field.TYPE_MESSAGE, kind
    else:
        made.type = {"int64": field.TYPE_INT64, "bool": field.TYPE_BOOL, "string": field.TYPE_STRING}[kind]
    return made


def _model_server_config() -> type[message.Message]:
    try:
        from tensorflow_serving.config import model_server_config_pb2
    except ImportError as error:
        raise RecipeError(
            f"models.config is checked with the messages of tensorflow-serving-api, which is not there: {error}.\n"
            '  pip install "keras-committee[serving]"'
        ) from error
    return model_server_config_pb2.ModelServerConfig


def _parse(text: str, into: message.Message, what: str) -> message.Message:
    try:
        return text_format.Parse(text, into)
    except text_format.ParseError as error:
        raise RecipeError(f"{what} is no {into.DESCRIPTOR.name} in text format: line:column {error}") from error
