"""How is TF Serving told what to serve, how to batch and where to show its metrics?

`models.config`, `batching.config` and `monitoring.config` are written from one `ServerConfig`, parsed back and linted.
Labels roll out in two steps, because a server refuses a label of a version that it has not loaded yet: `models.config`
loads, `models.labels.config` labels, and takes its place once every version is AVAILABLE. A rollback is the policy
`specific` with an older version; nothing is deleted. A server that starts anew meets labels before versions: give it
`--allow_version_labels_for_unavailable_models`, which lets it take new labels, but not move one.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format

from keras_committee.errors import RecipeError
from keras_committee.files import write_file
from keras_committee.serving import lint, messages

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
    config = messages.parse_models("model_config_list {}")
    for model in models:
        entry = config.model_config_list.config.add(
            name=model.name, base_path=model.base_path, model_platform="tensorflow"
        )
        if model.versions:
            entry.model_version_policy.specific.versions.extend(model.versions)
        entry.version_labels.update(model.labels)
    return _text(config, lint.lint_models, messages.parse_models, MODELS)


def batching_text(batching: Batching) -> str:
    """`batching.config`. Raises RecipeError."""
    parameters = messages.declared("BatchingParameters")(allowed_batch_sizes=batching.sizes)
    parameters.max_batch_size.value = max(batching.sizes, default=0)
    parameters.batch_timeout_micros.value = batching.timeout_micros
    parameters.num_batch_threads.value = batching.threads
    parameters.max_enqueued_batches.value = batching.queued
    return _text(parameters, lint.lint_batching, messages.parse_batching, BATCHING)


def monitoring_text(path: str) -> str:
    """`monitoring.config`. Raises RecipeError."""
    monitoring = messages.declared("MonitoringConfig")(prometheus_config={"enable": True, "path": path})
    return _text(monitoring, lint.lint_monitoring, messages.parse_monitoring, MONITORING)


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
    models = messages.parse_models(text).model_config_list.config
    return {label: version for model in models if model.name == name for label, version in model.version_labels.items()}


def _text(message, linter, parser, name: str) -> str:
    text = text_format.MessageToString(message)
    problems = linter(parser(text))
    if problems:
        raise RecipeError(f"{name} would be refused:\n  " + "\n  ".join(problems) + "\nNothing was written.")
    return text
