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

from keras_committee.errors import ResourceError
from keras_committee.files import write_file, writing
from keras_committee.member_dir import MemberFolder
from keras_committee.models.loading import save_member
from keras_committee.summaries import network_graph

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
