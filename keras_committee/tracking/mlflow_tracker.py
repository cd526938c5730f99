"""Runs in MLflow: a parent run for the committee, with one nested run for each member."""

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import yaml
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Metric, Param, RunTag
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from keras_committee.tracking import mask_credentials

if TYPE_CHECKING:
    from keras_committee.tracking.sender import Row, TrackedRun

_KEY_TAG, _MEMBER_TAG, _EXPORT_TAG = "keras_committee.run", "keras_committee.member", "keras_committee.export"
_MARKER = "validation_accuracy"  # of each row; the last of its metrics, so that the row is there if it is
_MAX_METRICS, _MAX_PARAMETERS = 1000, 100  # of one request
_MAX_VALUE = 6000  # characters of a parameter or tag
_COMMITTEE = None  # in place of the index of a member


class MLflowTracker:
    """A committee in MLflow, as `sender.Tracker`.

    The run is found by its tag, and the rows that it has by the steps of their metrics: both come from the server, so
    that no kill between a request and its record leaves a second run or a doubled row.
    """

    def __init__(self, address: str, tracked: "TrackedRun", state: dict[str, Any], save: Callable[[], None]):
        self._tracked = tracked
        self._uri = _tracking_uri(address, state)
        mlflow.set_tracking_uri(self._uri)
        self._client = MlflowClient(self._uri)
        self._experiment = self._find_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or tracked.group)
        self._runs: dict[int | None, str] = {}
        self._steps: dict[tuple[int | None, str], set[int]] = {}  # epochs that the server has
        state["run_id"] = self._run_id(_COMMITTEE)
        state["uri"] = mask_credentials(self._uri)
        self._client.update_run(state["run_id"], status="RUNNING")
        is_page = self._uri.startswith("http")
        page = f"{self._uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{state['run_id']}"
        self.url = mask_credentials(page) if is_page else ""

    def send_parameters(self) -> None:
        run = self._client.get_run(self._runs[_COMMITTEE])
        values = {name: str(value)[:_MAX_VALUE] for name, value in self._tracked.parameters.items()}
        new = [Param(name, value) for name, value in values.items() if name not in run.data.params]
        # A parameter of MLflow cannot be changed; that of a run can, such as the path of data that were moved.
        changed = {name: value for name, value in values.items() if run.data.params.get(name, value) != value}
        tags = {**self._tracked.tags, **{f"changed.{name}": value for name, value in changed.items()}}
        tag_list = [RunTag(name, value[:_MAX_VALUE]) for name, value in tags.items()]
        for first in range(0, max(len(new), len(tag_list)), _MAX_PARAMETERS):
            part = slice(first, first + _MAX_PARAMETERS)
            self._client.log_batch(run.info.run_id, params=new[part], tags=tag_list[part])

    def send_rows(self, member: int | None, prefix: str, rows: "list[Row]") -> None:
        run_id, sent = self._run_id(member), self._sent_steps(member, prefix)
        batch: list[Metric] = []
        for row in rows:
            if row.epoch in sent or _MARKER not in row.scores:  # those of a diverged member have no scores
                continue
            names = sorted(row.scores, key=lambda name: name == _MARKER)
            metrics = [Metric(prefix + name, row.scores[name], row.time, row.epoch) for name in names]
            if len(batch) + len(metrics) > _MAX_METRICS:
                self._client.log_batch(run_id, metrics=batch)
                batch = []
            batch += metrics
        if batch:
            self._client.log_batch(run_id, metrics=batch)
        sent.update(row.epoch for row in rows)

    def send_scores(self, member: int | None, scores: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in scores.items()]
        self._client.log_batch(self._run_id(member), metrics=metrics)

    def send_files(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            self._client.log_artifact(self._runs[_COMMITTEE], str(path), os.path.dirname(name) or None)

    def send_export(self, version: Path, manifest: Mapping[str, Any]) -> None:
        name, tag = version.parent.name, f"{self._tracked.key}:{version}"
        if manifest.get("model_format", "saved-model") != "saved-model":
            self._client.log_artifacts(self._runs[_COMMITTEE], str(version), f"exports/{name}/{version.name}")
            return
        versions = self._client.search_model_versions(f"name='{name}'")
        if any(each.tags.get(_EXPORT_TAG) == tag for each in versions):
            return
        Model.log(
            None,
            _ServedModel(version, manifest),
            name=name,
            run_id=self._runs[_COMMITTEE],
            registered_model_name=name,
            tags={_EXPORT_TAG: tag, "kind": manifest["kind"], "version": str(version)},
        )

    def send_member_end(self, member: int, status: str) -> None:
        self._client.set_terminated(self._run_id(member), status)

    def close(self, status: str) -> None:
        if status != "RUNNING":
            self._client.set_terminated(self._runs[_COMMITTEE], status)

    def _find_experiment(self, name: str) -> str:
        """Return the id of the experiment, which is created if there is none."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # another process was faster
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id

    def _run_id(self, member: int | None) -> str:
        """Return the id of the run of the committee or of a member, which is created if there is none."""
        if member not in self._runs:
            tags = {_KEY_TAG: self._tracked.key, _MEMBER_TAG: "committee" if member is _COMMITTEE else str(member)}
            condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
            found = self._client.search_runs([self._experiment], condition, max_results=1)
            self._runs[member] = found[0].info.run_id if found else self._create_run(member, tags)
        return self._runs[member]

    def _create_run(self, member: int | None, tags: dict[str, str]) -> str:
        title = self._tracked.title if member is _COMMITTEE else f"{self._tracked.title} member {member}"
        if member is not _COMMITTEE:
            tags = {**tags, "mlflow.parentRunId": self._runs[_COMMITTEE]}
        run = self._client.create_run(self._experiment, self._tracked.start, tags, title)
        return run.info.run_id

    def _sent_steps(self, member: int | None, prefix: str) -> set[int]:
        if (member, prefix) not in self._steps:
            history = self._client.get_metric_history(self._run_id(member), prefix + _MARKER)
            self._steps[member, prefix] = {metric.step for metric in history}
        return self._steps[member, prefix]


class _ServedModel:
    """A SavedModel in the place of MLflow's TensorFlow flavor, which would save a model again.

    The files are those that were verified. `tf1-estimator` is the type of that flavor that loads a signature of a
    SavedModel and returns its outputs by name; `tf2-module` needs a callable object, and gives up the names.
    """

    __name__ = "tensorflow"

    def __init__(self, version: Path, manifest: Mapping[str, Any]):
        self._version, self._manifest = version, manifest

    def save_model(self, path: str, mlflow_model: Model) -> None:
        """Write the model folder `path`."""
        folder, image = Path(path), self._manifest["image"]
        shutil.copytree(self._version, folder / "saved_model")
        shape = (-1, *(image[name] or -1 for name in ("height", "width", "channels")))
        mlflow_model.signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.float32), shape, "image")]))
        # MLflow's server encodes the outputs `label` in base64.
        mlflow_model.metadata = {"classes": self._manifest["labels"]}
        options = {
            "saved_model_dir": "saved_model",
            "meta_graph_tags": ["serve"],
            "signature_def_key": "serving_default",
        }
        mlflow_model.add_flavor("tensorflow", code=None, model_type="tf1-estimator", **options)
        mlflow.pyfunc.add_to_model(
            mlflow_model, loader_module="mlflow.tensorflow", python_env={"virtualenv": "python_env.yaml"}
        )
        requirements = [f"mlflow=={mlflow.__version__}", f"tensorflow=={importlib.metadata.version('tensorflow')}"]
        (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
        python = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
        (folder / "python_env.yaml").write_text(yaml.safe_dump(python))
        mlflow_model.save(str(folder / "MLmodel"))


def _tracking_uri(address: str, state: Mapping[str, Any]) -> str:
    """Return the address of the server: the given one, or that of the environment or of the first time."""
    current = mlflow.get_tracking_uri()  # MLFLOW_TRACKING_URI, or a database in the current folder
    recorded = address or state.get("uri") or current
    return current if mask_credentials(current) == recorded else recorded
