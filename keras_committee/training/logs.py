"""What does a member leave: its history, its votes after each epoch, its curves in TensorBoard, the model?"""

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_committee.errors import ResourceError
from keras_committee.files import write_file, writing
from keras_committee.models.loading import save_member
from keras_committee.run import MemberFolder

_SECONDS_BETWEEN_WARNINGS = 60.0


class Scalars:
    """TensorBoard's scalars of one run.

    Args:
        path: The folder of the run.
    """

    def __init__(self, path: Path):
        self._path = path
        self._writer: tf.summary.SummaryWriter | None = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Raises ResourceError."""
        try:
            with writing(self._path):
                self._writer = writer = self._writer or tf.summary.create_file_writer(str(self._path))
                with writer.as_default(step=step):
                    for name, value in values.items():
                        tf.summary.scalar(name, value)
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
        self._scalars = Scalars(folder.tensorboard)
        self._warned = -_SECONDS_BETWEEN_WARNINGS

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
            self._scalars.write(row["epoch"], row | each)

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
