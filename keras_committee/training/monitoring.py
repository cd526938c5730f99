"""What does a committee in training show, on the terminal and in TensorBoard?"""

import contextlib
import math
import time
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import TaskID

from keras_committee import metrics
from keras_committee.errors import ResourceError
from keras_committee.layers import GeometricMean, head_of
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.training.bars import Bars
from keras_committee.training.logs import Scalars

_LINES = 50
_SECONDS_BETWEEN_LINES = 60.0


class Monitor:
    """Shows a committee in training: bars on a terminal, a line for each epoch elsewhere, TensorBoard always.

    There is one bar for the committee and one for each member that is being trained. TensorBoard gets one run of
    scalars for each size of the committee so far: `committee_of_3` at epoch 7 is what the three members that have ended
    epoch 7 say together of the validation split. All that members report is written to the journal here, by the owner
    of the run folder.

    Args:
        run: The run folder.
        recipe: What is trained.
        labels: Integers `(examples,)`, the classes of the validation split.
        steps_per_epoch: Global batches in an epoch.
        members: The indices of the members still to be trained.
    """

    def __init__(self, run: Run, recipe: Recipe, labels: np.ndarray, steps_per_epoch: int, members: list[int]):
        self._run, self._recipe, self._labels = run, recipe, labels
        self._steps = recipe.epochs * steps_per_epoch
        self._head = recipe.head or GeometricMean()
        self._console = Console(stderr=True, highlight=False)
        # FORCE_COLOR makes Rich take a log for a terminal, and a dumb one cannot go back over what it has shown.
        self._live = self._console.is_interactive and self._console.file.isatty()
        self._progress = Bars(recipe.data.batch_size, console=self._console, disable=not self._live)
        self._total = self._progress.add_task(f"{len(members)} members", total=len(members) * self._steps)
        self._bars: dict[int, TaskID] = {}
        self._told: dict[int, float] = {}  # when members had their last line in a log
        self._scalars: dict[int, Scalars] = {}

    def __enter__(self) -> "Monitor":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def member_started(self, index: int) -> None:
        """Member `index` is about to be trained."""
        self._bars[index] = self._progress.add_task(self._name(index), total=self._steps, epoch="starting")

    def member_ended(self, index: int) -> None:
        """Member `index` is finished, or given up."""
        bar = self._progress.tasks[self._progress.task_ids.index(self._bars.pop(index))]
        self._progress.remove_task(bar.id)

    def resumed(self, index: int, step: int) -> None:
        """Member `index` goes on at `step`: what lies before it is not work of this process."""
        self._progress.update(self._bars[index], total=self._steps - step)
        total = self._progress.tasks[0].total or 0
        self._progress.update(self._total, total=total - step)

    def steps_ended(self, index: int, steps: int = 1) -> None:
        """Member `index` has been trained on so many more global batches."""
        self._progress.advance(self._total, steps)
        self._progress.advance(self._bars[index], steps)

    def epoch_ended(self, index: int, row: dict[str, Any]) -> None:
        """Member `index` has ended an epoch with this row of its history; its votes are on the disk."""
        self._committee_so_far(row["epoch"])
        epochs = self._recipe.epochs
        so_far = f"{min(row['epoch'] + 1, epochs)}/{epochs}"
        self._progress.update(self._bars[index], epoch=so_far, validation=f"{row['validation_accuracy']:.2%}")
        if not self._live and self._is_due(index, row["epoch"]):
            self.note(self._line(index, row))

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        """Something of member `index` that belongs into the journal, and the sentence that tells it."""
        self._run.journal(name, member=index, **fields)
        self.note(text)

    def note(self, text: str) -> None:
        """A line for the user, if anybody is still there to read it."""
        with contextlib.suppress(OSError):
            self._console.print(text, soft_wrap=True, markup=False)

    def _committee_so_far(self, epoch: int) -> None:
        files = [self._run.member(index).epoch_votes(epoch) for index in range(self._recipe.members)]
        members = [index for index, file in enumerate(files) if file.exists()]
        if not members:  # the logs have gaps, as was told
            return
        so_far = np.stack([np.load(files[index], allow_pickle=False).astype(np.float32) for index in members], axis=1)
        probabilities = keras.ops.convert_to_numpy(head_of(self._head, members)(so_far))
        summary = metrics.summary(probabilities, self._labels)
        size = len(members)
        path = self._run.path / "tensorboard" / f"committee_of_{size}"
        scalars = self._scalars.setdefault(size, Scalars(path))
        try:
            scalars.write(epoch, {f"validation_{name}": value for name, value in summary.items()})
        except ResourceError as error:
            self.note(f"warning: {error}")

    def _name(self, index: int) -> str:
        return f"member {index}"

    def _is_due(self, index: int, epoch: int) -> bool:
        """Whether a log gets a line: some fifty for each member, one a minute where epochs are long, and the last."""
        every, clock = math.ceil(self._recipe.epochs / _LINES), time.monotonic()
        due = epoch in (1, self._recipe.epochs) or epoch % every == 0
        if due or clock - self._told.get(index, clock) >= _SECONDS_BETWEEN_LINES:
            self._told[index] = clock
            return True
        return False

    def _line(self, index: int, row: dict[str, Any]) -> str:
        left = self._progress.tasks[0].time_remaining
        return (
            f"{self._name(index)}  epoch {row['epoch']}/{self._recipe.epochs}"
            f"  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}"
            f"  validation {row['validation_accuracy']:.4f}  {row['images_per_second']:.0f} images/s"
            f"  {'?' if left is None else f'{left / 60:.1f}'} min left"
        )
