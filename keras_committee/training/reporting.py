"""What does a committee in training show, on the terminal and in TensorBoard?"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from keras_committee.data import Splits
from keras_committee.errors import ResourceError
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.training.tensorboard import CommitteeTensorBoard

_LOG_LINES_PER_MEMBER = 50
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
        self._tensorboard = CommitteeTensorBoard(run, recipe, splits)
        self._steps_per_member = recipe.epochs * splits.steps_per_epoch
        self._console = Console(stderr=True, highlight=False)
        # FORCE_COLOR makes Rich take a log for a terminal, and a dumb one cannot go back over what it has shown.
        self._is_interactive = self._console.is_interactive and self._console.file.isatty()
        self._progress = ProgressBars(recipe.data.batch_size, console=self._console, disable=not self._is_interactive)
        self._committee_task = self._progress.add_task(
            f"{len(members)} members", total=len(members) * self._steps_per_member
        )
        self._member_tasks: dict[int, TaskID] = {}
        self._last_log_time: dict[int, float] = {}  # when members had their last line in a log

    def __enter__(self) -> "Monitor":
        self._progress.start()
        self._warn_on_failure(self._tensorboard.on_train_begin)
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def on_member_begin(self, index: int) -> None:
        """Member `index` is about to be trained."""
        self._member_tasks[index] = self._progress.add_task(
            self._member_label(index), total=self._steps_per_member, epoch="starting"
        )

    def on_member_end(self, index: int) -> None:
        """Member `index` is finished, or given up."""
        task = self._progress.tasks[self._progress.task_ids.index(self._member_tasks.pop(index))]
        self._progress.remove_task(task.id)

    def on_resume(self, index: int, step: int) -> None:
        """Member `index` goes on at `step`: what lies before it is not work of this process."""
        self._progress.update(self._member_tasks[index], total=self._steps_per_member - step)
        total = self._progress.tasks[0].total or 0
        self._progress.update(self._committee_task, total=total - step)

    def on_steps_end(self, index: int, steps: int = 1) -> None:
        """Member `index` has been trained on so many more global batches."""
        self._progress.advance(self._committee_task, steps)
        self._progress.advance(self._member_tasks[index], steps)

    def on_epoch_end(self, index: int, row: dict[str, Any]) -> None:
        """Member `index` has ended an epoch with this row of its history; its votes are on the disk."""
        self._warn_on_failure(lambda: self._tensorboard.on_epoch_end(row["epoch"]))
        epochs = self._recipe.epochs
        epoch_text = f"{min(row['epoch'] + 1, epochs)}/{epochs}"
        self._progress.update(
            self._member_tasks[index], epoch=epoch_text, validation=f"{row['validation_accuracy']:.2%}"
        )
        if not self._is_interactive and self._is_due(index, row["epoch"]):
            self.note(self._log_line(index, row))

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        """Something of member `index` that belongs into the journal, and the sentence that tells it."""
        self._run.append_event(name, member=index, **fields)
        self.note(text)

    def note(self, text: str) -> None:
        """A line for the user, if anybody is still there to read it."""
        with contextlib.suppress(OSError):
            self._console.print(text, soft_wrap=True, markup=False)

    def _warn_on_failure(self, write: Callable[[], None]) -> None:
        """Training goes on without what TensorBoard would show."""
        try:
            write()
        except ResourceError as error:
            self.note(f"warning: {error}")

    def _member_label(self, index: int) -> str:
        return f"member {index}"

    def _is_due(self, index: int, epoch: int) -> bool:
        """Whether a log gets a line: some fifty for each member, one a minute where epochs are long, and the last."""
        line_interval, now = math.ceil(self._recipe.epochs / _LOG_LINES_PER_MEMBER), time.monotonic()
        due = epoch in (1, self._recipe.epochs) or epoch % line_interval == 0
        if due or now - self._last_log_time.get(index, now) >= _SECONDS_BETWEEN_LINES:
            self._last_log_time[index] = now
            return True
        return False

    def _log_line(self, index: int, row: dict[str, Any]) -> str:
        seconds_left = self._progress.tasks[0].time_remaining
        return (
            f"{self._member_label(index)}  epoch {row['epoch']}/{self._recipe.epochs}"
            f"  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}"
            f"  validation {row['validation_accuracy']:.4f}  {row['images_per_second']:.0f} images/s"
            f"  {'?' if seconds_left is None else f'{seconds_left / 60:.1f}'} min left"
        )


class Reporter(Protocol):
    """What a member tells while it trains; `index` is that of the member."""

    def on_resume(self, index: int, step: int) -> None:
        """It goes on at `step`, counted over all epochs."""
        ...

    def on_steps_end(self, index: int, steps: int = 1) -> None:
        """It has been trained on so many more global batches."""
        ...

    def on_epoch_end(self, index: int, row: dict[str, Any]) -> None:
        """It has ended an epoch with this row of its history; its votes are on the disk."""
        ...

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        """Something that belongs into the journal, and the sentence that tells it to the user."""
        ...

    def note(self, text: str) -> None:
        """A line for the user."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How members are run and kept safe; what comes out is the recipe's affair.

    Args:
        deterministic: Whether equal runs on equal machines give equal bits, at a price in speed (README).
        checkpoint_seconds: Seconds between two checkpoints within an epoch.
        max_rollbacks: How often a diverged member goes back to its last checkpoint before it is given up.
        max_retries: How often a worker that died is started again before its member is given up.
        stall_timeout_seconds: Seconds without a word from a worker after which it is killed and counts as dead. The first step
            of a deep network is traced for minutes. Under `multiworker`: seconds without a step.
        peer_timeout_seconds: Under `multiworker`, seconds after which another host that does not answer is given up.
        start_timeout_seconds: Under `multiworker`, seconds to wait until all hosts have come.
        profile_steps: The first and the last step that is profiled of each member, as `profiling` counts them, or None.
    """

    deterministic: bool = False
    checkpoint_seconds: float = 300.0
    max_rollbacks: int = 3
    max_retries: int = 2
    stall_timeout_seconds: float = 1800.0
    peer_timeout_seconds: float = 60.0
    start_timeout_seconds: float = 600.0
    profile_steps: tuple[int, int] | None = None


_FULL_WIDTH, _COMPACT_WIDTH = 72, 46  # places that all columns take, and those without bar and rate
_NON_BAR_WIDTH = 62


class ProgressBars(Progress):
    """Bars whose columns are chosen anew at each drawing, by the width that the window has then.

    A narrow window loses the bar and the rate first, the words next; never the epoch, the accuracy or the time left.

    Args:
        batch_size: Examples of a step: a task counts steps.
        console: Where they are drawn.
        disable: Whether nothing is drawn at all; tasks are counted nevertheless.
    """

    def __init__(self, batch_size: int, *, console: Console, disable: bool):
        self._output_console, self._batch_size = console, batch_size  # it is drawn, empty, as it is made
        super().__init__(console=console, disable=disable, speed_estimate_period=60)

    def add_task(self, description: str, *, epoch: str = "", validation: str = "", **fields):
        return super().add_task(description, epoch=epoch, validation=validation, **fields)

    def make_tasks_table(self, tasks) -> Table:
        self.columns = self._columns_for_width(self._output_console.width)
        return super().make_tasks_table(tasks)

    def _columns_for_width(self, width: int) -> tuple[ProgressColumn, ...]:
        time_remaining = TimeRemainingColumn(compact=width < _FULL_WIDTH, table_column=Column(no_wrap=True))
        if width < _COMPACT_WIDTH:
            return (
                _MemberColumn(),
                _text_column("{task.fields[epoch]}"),
                _text_column("{task.fields[validation]}"),
                time_remaining,
            )
        name, epoch = _text_column("{task.description}"), _text_column("{task.fields[epoch]}")
        validation = _ValidationColumn()
        if width < _FULL_WIDTH:
            return name, epoch, validation, time_remaining
        return (
            name,
            epoch,
            BarColumn(bar_width=min(40, width - _NON_BAR_WIDTH)),
            _ThroughputColumn(self._batch_size),
            validation,
            time_remaining,
        )


def _text_column(template: str) -> TextColumn:
    return TextColumn(template, table_column=Column(no_wrap=True))


class _MemberColumn(ProgressColumn):
    """`member 3` as `3`, `4 members` as `all`: what a narrow window can afford."""

    def render(self, task: Task) -> Text:
        _, _, number = task.description.partition("member ")
        return Text(number or "all", no_wrap=True)


class _ValidationColumn(ProgressColumn):
    """The accuracy on the validation split, once there is one."""

    def render(self, task: Task) -> Text:
        value = task.fields["validation"]
        return Text(f"validation {value}" if value else "", no_wrap=True)


class _ThroughputColumn(ProgressColumn):
    """Images per second of the last minute."""

    def __init__(self, batch_size: int):
        super().__init__(table_column=Column(no_wrap=True))
        self._batch_size = batch_size

    def render(self, task: Task) -> Text:
        return Text(f"{(task.speed or 0) * self._batch_size:.0f} images/s", no_wrap=True)
