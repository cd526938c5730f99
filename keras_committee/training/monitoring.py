"""What does a committee in training show, on the terminal and in TensorBoard?"""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from keras_committee.data import Splits
from keras_committee.errors import ResourceError
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.training.bars import Bars
from keras_committee.training.board import Board

_LINES = 50
_SECONDS_BETWEEN_LINES = 60.0


class Monitor:
    """Shows a committee in training: bars on a terminal, a line for each epoch elsewhere, TensorBoard always.

    There is one bar for the committee and one for each member that is being trained. All that members report is
    written to the journal here, by the owner of the run folder.

    Args:
        run: The run folder.
        recipe: What is trained.
        splits: The data that it is trained on.
        members: The indices of the members still to be trained.
    """

    def __init__(self, run: Run, recipe: Recipe, splits: Splits, members: list[int]):
        self._run, self._recipe = run, recipe
        self._board = Board(run, recipe, splits)
        self._steps = recipe.epochs * splits.steps_per_epoch
        self._console = Console(stderr=True, highlight=False)
        # FORCE_COLOR makes Rich take a log for a terminal, and a dumb one cannot go back over what it has shown.
        self._live = self._console.is_interactive and self._console.file.isatty()
        self._progress = Bars(recipe.data.batch_size, console=self._console, disable=not self._live)
        self._total = self._progress.add_task(f"{len(members)} members", total=len(members) * self._steps)
        self._bars: dict[int, TaskID] = {}
        self._told: dict[int, float] = {}  # when members had their last line in a log

    def __enter__(self) -> "Monitor":
        self._progress.start()
        self._tolerated(self._board.began)
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
        self._tolerated(lambda: self._board.epoch_ended(row["epoch"]))
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

    def _tolerated(self, show: Callable[[], None]) -> None:
        """Training goes on without what TensorBoard would show."""
        try:
            show()
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
