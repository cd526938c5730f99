"""Training logs: the history, validation predictions and model of a member, and TensorBoard's event files."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary

from keras_committee import aggregation, metrics
from keras_committee.data import Splits
from keras_committee.errors import ResourceError
from keras_committee.figures.curves import reliability_data, reliability_diagrams
from keras_committee.figures.matrices import MAX_LABELED_ROWS, confusion_heatmap
from keras_committee.figures.style import Picture
from keras_committee.files import translate_os_errors
from keras_committee.layers import GeometricMean, subset_head
from keras_committee.member_dir import DataInfo, MemberDir
from keras_committee.models.loading import save_member
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.summaries import hparams_summary, image_summary, network_graph
from keras_committee.tracking.committee_history import CommitteeHistory
from keras_committee.training.failsafe import Failsafe

_HPARAMS_SUFFIX = ".hparams"
_PLOTS_PER_TRAINING = 5  # plots for ten classes take 0.7 s of a core
_MIN_SECONDS_BEFORE_PLOTS = 10.0  # a shorter training is a trial and has no plots


class SummaryWriter:
    """Writes the event file of one TensorBoard run.

    Args:
        path: Folder of the run.
        suffix: Ending of the file name; `delete` finds the file by it.
    """

    def __init__(self, path: Path, suffix: str = ".v2"):
        self._path, self._suffix = path, suffix
        self._writer: tf.summary.SummaryWriter | None = None

    def write(
        self,
        step: int,
        scalars: Mapping[str, float] | None = None,
        histograms: Mapping[str, np.ndarray] | None = None,
        summaries: Iterable[Summary] = (),
    ) -> None:
        """Write scalars, histograms and summaries of one step. Raises ResourceError."""
        with self._open(step):
            for name, value in (scalars or {}).items():
                tf.summary.scalar(name, value)
            for name, values in (histograms or {}).items():
                tf.summary.histogram(name, values)
            for summary in summaries:
                tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)

    def write_graph(self, graph: bytes) -> None:
        """Write a graph, a serialized `GraphDef`. Raises ResourceError."""
        with self._open(0):
            tf.summary.graph(tf.compat.v1.GraphDef.FromString(graph))

    def delete(self) -> None:
        """Remove earlier event files with this suffix. Raises ResourceError."""
        with translate_os_errors(self._path):
            for file in self._path.glob(f"*{self._suffix}"):
                file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _open(self, step: int) -> Iterator[None]:
        try:
            with translate_os_errors(self._path):
                path, suffix = str(self._path), self._suffix
                self._writer = writer = self._writer or tf.summary.create_file_writer(path, filename_suffix=suffix)
                with writer.as_default(step=step):
                    yield
                writer.flush()
        except tf.errors.OpError as error:  # for example a full disk
            raise ResourceError(f"cannot write {self._path}: {error.message}") from error


class MemberLog:
    """The logs of one member. If one cannot be written, training continues with a warning, see `Failsafe`.

    Args:
        member_dir: Folder of the member.
        warn: Function of the text of a warning.
    """

    def __init__(self, member_dir: MemberDir, warn: Callable[[str], None]):
        self._member_dir, self._warn, self._failsafe = member_dir, warn, Failsafe(warn)
        self._writer = SummaryWriter(member_dir.tensorboard)

    def on_train_begin(self, model: keras.Model) -> None:
        """Write the graph of the network, layer by layer."""
        with self._failsafe("TensorBoard's graph of the network"):
            self._writer.write_graph(network_graph(model.to_json()))

    def on_epoch_end(self, history: list[dict], log_probs: np.ndarray, block_values: dict[str, np.ndarray]) -> None:
        """Log the last epoch of `history`.

        Args:
            history: Rows of all epochs so far.
            log_probs: Log-probabilities of the validation split, `(examples, classes)`.
            block_values: Values of the residual blocks, `(blocks,)`, by their name.
        """
        row = history[-1]
        block_scalars = {
            f"{name}/block_{i:03d}": value for name, values in block_values.items() for i, value in enumerate(values, 1)
        }
        with self._failsafe("the history"):
            self._member_dir.write_history(history)
        with self._failsafe("the record of the validation predictions"):
            self._member_dir.write_epoch_predictions(row["epoch"], log_probs)
        with self._failsafe("the TensorBoard log of the member"):
            histograms = {f"{name}/blocks": values for name, values in block_values.items() if len(values)}
            scalars = {name: value for name, value in row.items() if not isinstance(value, list)}
            self._writer.write(row["epoch"], scalars | block_scalars, histograms)

    def on_train_end(self, history: list[dict], model: keras.Model, data_info: DataInfo) -> None:
        """Write the whole history and the trained model, which marks the member as finished.

        A member without its history is complete; TensorBoard's log has its scores, too.

        Raises:
            ResourceError: If the model cannot be written.
        """
        with Failsafe(self._warn)("the history"):  # a new one: the last warning, whatever was printed before
            self._member_dir.write_history(history)
        save_member(model, self._member_dir.model, data_info)


class CommitteeTensorBoard:
    """TensorBoard logs of the committee, one TensorBoard run for each committee size, and its `CommitteeHistory`.

    `committee_of_3` at epoch 7 is the committee of the first three members that finished epoch 7, on the validation
    split. The run of the full committee also has the recipe parameters, for the HParams table, and five times in a
    training a confusion matrix and a reliability diagram.

    Args:
        run: The run folder.
        recipe: The recipe in training.
        splits: Its data.
    """

    def __init__(self, run: Run, recipe: Recipe, splits: Splits):
        self._run, self._recipe = run, recipe
        self._labels, self._classes = splits.validation.labels, splits.classes
        self._head, self._history = recipe.head or GeometricMean(), CommitteeHistory(run.path)
        self._writers: dict[int, SummaryWriter] = {}
        self._start_time, self._num_plots_written = time.monotonic(), 0

    def on_train_begin(self) -> None:
        """Write the recipe parameters in place of those of an earlier start, and scores that a kill left out.

        Raises ResourceError.
        """
        for folder in (self._run.path / "tensorboard").glob("committee_of_*"):
            SummaryWriter(folder, _HPARAMS_SUFFIX).delete()
        writer = SummaryWriter(self._log_dir(self._recipe.members), _HPARAMS_SUFFIX)
        writer.write(0, summaries=[hparams_summary(self._run.parameters(), self._run.path.resolve().name)])

        known = {(row["epoch"], row["members"]) for row in self._history.read_sound()}
        finished = {epoch: self._finished(epoch) for epoch in range(1, self._recipe.epochs + 1)}
        missing = {epoch: each for epoch, each in finished.items() if each and (epoch, len(each)) not in known}
        if rows := [self._combine(epoch, members)[0] for epoch, members in missing.items()]:
            self._history.add(rows)

    def on_epoch_end(self, epoch: int) -> None:
        """Log the committee of the members that finished `epoch`. Raises ResourceError."""
        members = self._finished(epoch)
        if not members:  # the predictions could not be written
            return
        row, predictions, probabilities = self._combine(epoch, members)
        self._history.add([row])
        size, scores = row["members"], {name: row[name] for name in row if name.startswith("validation_")}
        writer = self._writers.setdefault(size, SummaryWriter(self._log_dir(size)))
        writer.write(epoch, scores)
        if size == self._recipe.members and self._plots_due(epoch):
            plots = [image_summary(plot.name, plot.png(100)) for plot in self._make_plots(predictions, probabilities)]
            writer.write(epoch, summaries=plots)

    def _finished(self, epoch: int) -> list[int]:
        """Return the members whose predictions after an epoch are there."""
        members = range(self._recipe.members)
        return [index for index in members if self._run.member(index).epoch_predictions(epoch).exists()]

    def _combine(self, epoch: int, members: list[int]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Return the row of the history for the committee after an epoch, and the predictions as `_make_plots`."""
        predictions = np.stack([self._run.member(index).read_epoch_predictions(epoch) for index in members], axis=1)
        probabilities = aggregation.combine(subset_head(self._head, members), predictions)
        scores = metrics.classification_metrics(probabilities, self._labels)
        row = {"epoch": epoch, "members": len(members)}
        return row | {f"validation_{name}": value for name, value in scores.items()}, predictions, probabilities

    def _log_dir(self, size: int) -> Path:
        return self._run.path / "tensorboard" / f"committee_of_{size}"

    def _plots_due(self, epoch: int) -> bool:
        """Return whether another fifth of the training has passed since the last plots."""
        num_due, num_written = epoch * _PLOTS_PER_TRAINING // self._recipe.epochs, self._num_plots_written
        if time.monotonic() - self._start_time >= _MIN_SECONDS_BEFORE_PLOTS:
            self._num_plots_written = max(num_due, num_written)
        return self._num_plots_written > num_written

    def _make_plots(self, predictions: np.ndarray, probabilities: np.ndarray) -> list[Picture]:
        """Draw the reliability diagram and, unless there are too many classes, the confusion matrix.

        Args:
            predictions: Log-probabilities of the members, `(examples, members, classes)`.
            probabilities: Probabilities of the committee, `(examples, classes)`.
        """
        labels, classes = self._labels, self._classes
        panel = reliability_data(f"committee of {predictions.shape[1]}", np.exp(predictions), probabilities, labels)
        plots = [Picture("reliability_diagram", "", lambda width: reliability_diagrams([panel], width))]
        if len(classes) <= MAX_LABELED_ROWS:
            matrix = metrics.confusion_matrix(probabilities, labels)
            row_fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
            plots.append(
                Picture("confusion_matrix", "", lambda width: confusion_heatmap(row_fractions, classes, width))
            )
        return plots


class StepProfiler:
    """Profiles some steps of a member, for TensorBoard's Profile page (extra `profile`).

    Use it as a context manager: on exit an unfinished profile is written with the steps so far. If profiling fails,
    training continues.

    Args:
        folder: TensorBoard folder of the member.
        steps: First and last step to profile, counted from 1 where training starts or resumes; None profiles nothing.
        notify: Function of a line for the user.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, notify: Callable[[str], None]):
        self._folder, self._steps, self._notify, self._failsafe = folder, steps, notify, Failsafe(notify)
        self._num_steps, self._active_since = 0, 0  # first step of the running profile, or 0

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *_) -> None:
        self._write()
        if self._steps and self._num_steps < self._steps[0]:
            self._notify(
                f"warning: no profile was written: training took {self._num_steps} steps; the first step to profile "
                f"is {self._steps[0]}."
            )

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Wrap one training step."""
        self._num_steps += 1
        if self._steps is None:
            yield
            return
        first, last = self._steps
        if self._num_steps == first:
            with self._failsafe("the profile"):
                tf.profiler.experimental.start(str(self._folder))
                self._active_since = first
        with tf.profiler.experimental.Trace("train", step_num=self._num_steps, _r=1):
            yield
        if self._num_steps == last:
            self._write()

    def _write(self) -> None:
        since, self._active_since = self._active_since, 0
        if not since:
            return
        with self._failsafe("the profile"):
            tf.profiler.experimental.stop()
            self._notify(f"profile of steps {since} to {self._num_steps}: {self._folder}")
