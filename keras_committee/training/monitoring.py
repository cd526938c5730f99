"""What does a training run show, on the terminal and in TensorBoard?"""

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from keras_committee import metrics
from keras_committee.layers import GeometricMean, head_of
from keras_committee.recipe import Recipe
from keras_committee.run import Run


class Monitor:
    """Shows a committee in training: a bar on a terminal, a line for each epoch elsewhere, TensorBoard always.

    TensorBoard gets one run of scalars for each member, under the names of its history, and one for each size of the
    committee so far: `committee_of_3` at epoch 7 is what the three members that have ended epoch 7 say together of the
    validation split.

    Args:
        run: The run folder.
        recipe: What is trained.
        labels: Integers `(examples,)`, the classes of the validation split.
        steps_per_epoch: Global batches in an epoch.
        members: The indices of the members still to be trained.
    """

    def __init__(self, run: Run, recipe: Recipe, labels: np.ndarray, steps_per_epoch: int, members: list[int]):
        self._run, self._recipe, self._labels = run, recipe, labels
        self._head = recipe.head or GeometricMean()
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Rate(recipe.data.batch_size),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=60,
        )
        self._task = self._progress.add_task("", total=len(members) * recipe.epochs * steps_per_epoch, note="")
        self._writers: dict[pathlib.Path, tf.summary.SummaryWriter] = {}
        self._index = 0

    def __enter__(self) -> "Monitor":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()
        for writer in self._writers.values():
            writer.close()

    @contextmanager
    def member(self, index: int) -> Iterator["Monitor"]:
        """Take what is reported inside the block as the work of member `index`."""
        self._index = index
        self._describe(epoch=1)
        yield self

    def step_ended(self) -> None:
        """One global batch has been trained on."""
        self._progress.advance(self._task)

    def epoch_ended(self, row: dict, votes: np.ndarray, blocks: dict[str, np.ndarray]) -> None:
        """Log an epoch.

        Args:
            row: Its row of the history.
            votes: Log probabilities `(examples, classes)` of the validation split.
            blocks: Figures `(blocks,)` of each residual block, by their name.
        """
        each = {f"{name}/block_{i:03d}": value for name, values in blocks.items() for i, value in enumerate(values, 1)}
        self._scalars(self._run.member(self._index).tensorboard, row["epoch"], row | each)
        self._committee_so_far(row["epoch"], votes)
        self._describe(epoch=min(row["epoch"] + 1, self._recipe.epochs))
        self._progress.update(self._task, note=f"validation {row['validation_accuracy']:.2%}")
        if not self._console.is_terminal:
            self._console.print(self._line(row), soft_wrap=True)

    def _committee_so_far(self, epoch: int, votes: np.ndarray) -> None:
        files = [self._run.member(index).epoch_votes(epoch) for index in range(self._recipe.members)]
        files[self._index].parent.mkdir(parents=True, exist_ok=True)
        # In half precision two hundred epochs of 5,000 examples and 10 classes stay at 20 MB a member.
        np.save(files[self._index], votes.astype(np.float16))
        members = [index for index, file in enumerate(files) if file.exists()]
        so_far = np.stack([np.load(files[index], allow_pickle=False).astype(np.float32) for index in members], axis=1)
        probabilities = keras.ops.convert_to_numpy(head_of(self._head, members)(so_far))
        summary = metrics.summary(probabilities, self._labels)
        path = self._run.path / "tensorboard" / f"committee_of_{len(members)}"
        self._scalars(path, epoch, {f"validation_{name}": value for name, value in summary.items()})

    def _scalars(self, path: pathlib.Path, step: int, values: dict) -> None:
        if path not in self._writers:
            self._writers[path] = tf.summary.create_file_writer(str(path))
        with self._writers[path].as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writers[path].flush()

    def _describe(self, epoch: int) -> None:
        member = f"member {self._index + 1}/{self._recipe.members}"
        self._progress.update(self._task, description=f"{member}, epoch {epoch}/{self._recipe.epochs}")

    def _line(self, row: dict) -> str:
        left = self._progress.tasks[0].time_remaining
        return (
            f"member {self._index + 1}/{self._recipe.members}  epoch {row['epoch']}/{self._recipe.epochs}"
            f"  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}"
            f"  validation {row['validation_accuracy']:.4f}  {row['images_per_second']:.0f} images/s"
            f"  {'?' if left is None else f'{left / 60:.1f}'} min left"
        )


class _Rate(ProgressColumn):
    """Images per second of the last minute."""

    def __init__(self, batch_size: int):
        super().__init__()
        self._batch_size = batch_size

    def render(self, task: Task) -> Text:
        return Text(f"{(task.speed or 0) * self._batch_size:.0f} images/s")
