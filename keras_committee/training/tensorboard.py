"""What does a member leave: its history, its votes after each epoch, its curves in TensorBoard, the model?"""

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary

from keras_committee import metrics
from keras_committee.data import Splits
from keras_committee.errors import ResourceError
from keras_committee.figures.curves import reliability, reliability_panel
from keras_committee.figures.matrices import MOST_NAMES, square
from keras_committee.figures.style import Picture
from keras_committee.files import write_file, writing
from keras_committee.layers import GeometricMean, head_of
from keras_committee.member_dir import MemberFolder
from keras_committee.models.loading import save_member
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.summaries import knobs_summary, network_graph, picture_summary

_SECONDS_BETWEEN_WARNINGS = 60.0


class Events:
    """What TensorBoard shows of one of its runs.

    Args:
        path: The folder of the run.
        ending: Of the name of its file, by which `forget` knows it.
    """

    def __init__(self, path: Path, ending: str = ".v2"):
        self._path, self._ending = path, ending
        self._writer: tf.summary.SummaryWriter | None = None

    def write(
        self,
        step: int,
        scalars: Mapping[str, float] | None = None,
        histograms: Mapping[str, np.ndarray] | None = None,
        summaries: Iterable[Summary] = (),
    ) -> None:
        """Raises ResourceError."""
        with self._open(step):
            for name, value in (scalars or {}).items():
                tf.summary.scalar(name, value)
            for name, values in (histograms or {}).items():
                tf.summary.histogram(name, values)
            for summary in summaries:
                tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)

    def draw(self, graph: bytes) -> None:
        """A graph, a serialized `GraphDef`. Raises ResourceError."""
        with self._open(0):
            tf.summary.graph(tf.compat.v1.GraphDef.FromString(graph))

    def forget(self) -> None:
        """Removes what was written with this ending before. Raises ResourceError."""
        with writing(self._path):
            for file in self._path.glob(f"*{self._ending}"):
                file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _open(self, step: int) -> Iterator[None]:
        try:
            with writing(self._path):
                path, ending = str(self._path), self._ending
                self._writer = writer = self._writer or tf.summary.create_file_writer(path, filename_suffix=ending)
                with writer.as_default(step=step):
                    yield
                writer.flush()
        except tf.errors.OpError as error:  # a full disk, as TensorFlow tells it
            raise ResourceError(f"cannot write {self._path}: {error.message}") from error


class MemberLog:
    """The logs of one member. Training goes on without them: what cannot be written is told once a minute.

    Args:
        folder: The member's folder.
        warn: Function of a text.
    """

    def __init__(self, folder: MemberFolder, warn: Callable[[str], None]):
        self._folder, self._warn = folder, warn
        self._events = Events(folder.tensorboard)
        self._warned = -_SECONDS_BETWEEN_WARNINGS

    def began(self, model: keras.Model) -> None:
        """Draw the network, layer by layer."""
        with self._tolerant():
            self._events.draw(network_graph(model.to_json()))

    def epoch_ended(self, history: list[dict], votes: np.ndarray, blocks: dict[str, np.ndarray]) -> None:
        """Log the last epoch of `history`.

        Args:
            history: The rows of all epochs.
            votes: Log probabilities `(examples, classes)` of the validation split.
            blocks: Figures `(blocks,)` of each residual block, by their name.
        """
        row = history[-1]
        each = {f"{name}/block_{i:03d}": value for name, values in blocks.items() for i, value in enumerate(values, 1)}
        with self._tolerant():
            self.write_history(history)
        with self._tolerant():
            _save_votes(self._folder.epoch_votes(row["epoch"]), votes)
        with self._tolerant():
            shown = {f"{name}/blocks": values for name, values in blocks.items() if len(values)}
            self._events.write(row["epoch"], row | each, shown)

    def write_history(self, history: list[dict]) -> None:
        """All rows, whatever was in the file. Raises ResourceError."""
        write_file(self._folder.history, "".join(json.dumps(row) + "\n" for row in history).encode())

    def save_model(self, model: keras.Model) -> None:
        """The trained model, renamed into place whole. Raises ResourceError."""
        save_member(model, self._folder.model)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except ResourceError as error:
            if time.monotonic() - self._warned >= _SECONDS_BETWEEN_WARNINGS:
                self._warned = time.monotonic()
                self._warn(f"warning: {error}\n  Training goes on; its logs have gaps.")


def _save_votes(path: Path, votes: np.ndarray) -> None:
    content = io.BytesIO()
    # In half precision two hundred epochs of 5,000 examples and 10 classes stay at 20 MB a member.
    np.save(content, np.maximum(votes, np.finfo(np.float16).min).astype(np.float16))
    write_file(path, content.getvalue())


_KNOBS = ".knobs"  # how the name of the file ends that holds them
_TIMES = 5  # in a training that there are pictures: those of ten classes take 0.7 s of a core
_SECONDS_BEFORE = 10.0  # a shorter training is a trial, and has none


class Board:
    """The committee of the members that have ended an epoch, as TensorBoard shows it: a run for each of its sizes.

    `committee_of_3` at epoch 7 is what the three members that have ended epoch 7 say together of the validation split.
    The knobs stand beside the committee of all members, in TensorBoard's table of HParams. A few times in a training
    there are pictures of it, too: what it takes for what, and whether its confidence can be trusted.

    Args:
        run: The run folder.
        recipe: What is trained.
        splits: Its data.
    """

    def __init__(self, run: Run, recipe: Recipe, splits: Splits):
        self._run, self._recipe = run, recipe
        self._labels, self._classes = splits.validation.labels, splits.classes
        self._head = recipe.head or GeometricMean()
        self._events: dict[int, Events] = {}
        self._since, self._drawn = time.monotonic(), 0  # how often there were pictures

    def began(self) -> None:
        """Leave the knobs, in place of those of an earlier start. Raises ResourceError."""
        for folder in (self._run.path / "tensorboard").glob("committee_of_*"):
            Events(folder, _KNOBS).forget()
        knobs = Events(self._folder(self._recipe.members), _KNOBS)
        knobs.write(0, summaries=[knobs_summary(self._run.knobs(), self._run.path.resolve().name)])

    def epoch_ended(self, epoch: int) -> None:
        """Another member has ended `epoch`; its votes are on the disk. Raises ResourceError."""
        files = [self._run.member(index).epoch_votes(epoch) for index in range(self._recipe.members)]
        members = [index for index, file in enumerate(files) if file.exists()]
        if not members:  # the logs have gaps, as was told
            return
        so_far = np.stack([np.load(files[index], allow_pickle=False).astype(np.float32) for index in members], axis=1)
        said = keras.ops.convert_to_numpy(head_of(self._head, members)(so_far))
        events = self._events.setdefault(len(members), Events(self._folder(len(members))))
        scores = metrics.summary(said, self._labels)
        events.write(epoch, {f"validation_{name}": value for name, value in scores.items()})
        if len(members) == self._recipe.members and self._is_due(epoch):
            pictures = [picture_summary(each.name, each.png(100)) for each in self._pictures(so_far, said)]
            events.write(epoch, summaries=pictures)

    def _folder(self, size: int):
        return self._run.path / "tensorboard" / f"committee_of_{size}"

    def _is_due(self, epoch: int) -> bool:
        """Whether another fifth of the training has ended since there were pictures."""
        parts, before = epoch * _TIMES // self._recipe.epochs, self._drawn
        if time.monotonic() - self._since >= _SECONDS_BEFORE:
            self._drawn = max(parts, before)
        return self._drawn > before

    def _pictures(self, so_far: np.ndarray, said: np.ndarray) -> list[Picture]:
        """Of the members' log probabilities `(examples, members, classes)` and the committee's probabilities."""
        labels, classes = self._labels, self._classes
        panel = reliability_panel(f"committee of {so_far.shape[1]}", np.exp(so_far), said, labels)
        pictures = [Picture("reliability", "", lambda width: reliability([panel], width))]
        if len(classes) <= MOST_NAMES:
            matrix = metrics.confusion_matrix(said, labels)
            shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
            sides = ("true class", "answer of the committee")
            pictures.append(Picture("confusion", "", lambda width: square(shares, classes, sides, 0, width)))
        return pictures


class Profile:
    """What the machine did in some steps of a member, for TensorBoard's page Profile (extra `profile`).

    Used as a context: at its end a profile that has not reached its last step is written as far as it got. Training
    goes on without what cannot be written.

    Args:
        folder: TensorBoard's folder of the member.
        steps: The first and the last step, counted from 1 where training begins or goes on; None profiles nothing.
        tell: Function of a line for the user.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, tell: Callable[[str], None]):
        self._folder, self._steps, self._tell = folder, steps, tell
        self._taken, self._since = 0, 0  # steps; the first one of the profile that runs

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self._write()
        if self._steps and self._taken < self._steps[0]:
            self._tell(f"warning: no profile: {self._taken} steps were taken, the first to profile is {self._steps[0]}")

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around each step."""
        self._taken += 1
        if self._steps is None:
            yield
            return
        first, last = self._steps
        if self._taken == first:
            tf.profiler.experimental.start(str(self._folder))
            self._since = first
        with tf.profiler.experimental.Trace("train", step_num=self._taken, _r=1):
            yield
        if self._taken == last:
            self._write()

    def _write(self) -> None:
        since, self._since = self._since, 0
        if not since:
            return
        try:
            tf.profiler.experimental.stop()
        except tf.errors.OpError as error:
            self._tell(f"warning: the profile cannot be written: {error.message}")
        else:
            self._tell(f"profile of steps {since} to {self._taken}: {self._folder}")
