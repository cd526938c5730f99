"""Check that MLflow has each row of the run's histories once: `python mlflow_run.py RUN DATABASE`."""

import sys
from pathlib import Path

from mlflow import MlflowClient

from keras_committee.run import Run

run = Run(Path(sys.argv[1]))
client = MlflowClient(f"sqlite:///{Path(sys.argv[2]).absolute()}")
experiment = client.get_experiment_by_name("digits_wrn")
tracked = {each.data.tags["keras_committee.member"]: each for each in client.search_runs([experiment.experiment_id])}
for index in run.finished_members():
    history = client.get_metric_history(tracked[str(index)].info.run_id, "validation_accuracy")
    expected = [(row["epoch"], row["validation_accuracy"]) for row in run.member(index).read_history()]
    if not expected or [(metric.step, metric.value) for metric in history] != expected:
        sys.exit(f"error: member {index} has {len(history)} rows in MLflow and {len(expected)} in its history")
if "test_accuracy" not in tracked["committee"].data.metrics:
    sys.exit("error: MLflow has no test accuracy of the committee")
