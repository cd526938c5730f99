"""Progress of a committee in training: the options, the reporter interface, the terminal and TensorBoard."""

import contextlib
import dataclasses
import math
import time
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from keras_committee.data import Splits
from keras_committee.errors import pluralize
from keras_committee.progress import HiddenDisplay, use_display
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.step_display import NotebookOutput, in_notebook
from keras_committee.tables import wrap_text
from keras_committee.training.failsafe import Failsafe
from keras_committee.training.tensorboard import CommitteeTensorBoard

Phase = Literal["tracing", "training", "validating"]  # the first step of a new graph takes long: it is traced

_LOG_LINES_PER_MEMBER = 50
_SECONDS_BETWEEN_LINES = 60.0
_FULL_WIDTH, _COMPACT_WIDTH = 72, 46  # characters of all columns, and of those without bar and rate
_NON_BAR_WIDTH = 62
_PROGRESS, _TENSORBOARD = "the progress display", "the TensorBoard log of the committee"  # kinds of reports


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How members are run and protected. None of these options changes what a member learns.

    Args:
        deterministic: Whether equal runs on equal machines give equal bits, at the cost of speed.
        checkpoint_seconds: Seconds between two checkpoints within an epoch.
        max_rollbacks: How often a diverged member returns to its last checkpoint before it fails.
        max_retries: How often a worker that died is restarted before its member fails.
        stall_timeout_seconds: Seconds without a message from a worker after which it is killed and counts as dead. The
            first step of a deep network is traced for minutes. With `multiworker`: seconds without a step.
        peer_timeout_seconds: With `multiworker`, seconds after which an unresponsive host counts as lost.
        start_timeout_seconds: With `multiworker`, seconds to wait for all hosts.
        profile_steps: First and last step to profile of each member, counted from 1, or None. See `StepProfiler`.
    """

    deterministic: bool = False
    checkpoint_seconds: float = 300.0
    max_rollbacks: int = 3
    max_retries: int = 2
    stall_timeout_seconds: float = 1800.0
    peer_timeout_seconds: float = 60.0
    start_timeout_seconds: float = 600.0
    profile_steps: tuple[int, int] | None = None


class Reporter(Protocol):
    """Receives the progress of a member in training; `index` is the index of the member."""

    def on_resume(self, index: int, step: int) -> None:
        """The member resumes at `step`, counted over all epochs."""
        ...

    def on_phase(self, index: int, epoch: int, phase: Phase) -> None:
        """The member begins a phase of an epoch, counted from 1."""
        ...

    def on_steps_end(self, index: int, steps: int = 1) -> None:
        """The member was trained on this number of further global batches."""
        ...

    def on_epoch_end(self, index: int, row: dict[str, Any]) -> None:
        """The member finished an epoch with this row of its history; its validation predictions are on disk."""
        ...

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        """An event for the journal, and the line that describes it to the user."""
        ...

    def note(self, text: str) -> None:
        """A line for the user."""
        ...


class Monitor:
    """Displays a committee in training: bars on a terminal or in a notebook, log lines elsewhere, TensorBoard always.

    There is one bar for the committee and one for each member in training. If the display fails, training continues
    with a warning, see `Failsafe`. All events of members are written to the journal here, by the owner of the run
    folder.

    Args:
        run: The run folder.
        recipe: The recipe in training.
        splits: Its data.
        members: Indices of the members to train.
    """

    def __init__(self, run: Run, recipe: Recipe, splits: Splits, members: list[int]):
        self._run, self._recipe, self._failsafe = run, recipe, Failsafe(self.note)
        self._tensorboard = CommitteeTensorBoard(run, recipe, splits)
        self._steps_per_member = recipe.epochs * splits.steps_per_epoch
        self._console = Console(stderr=True, highlight=False, force_jupyter=False)
        # FORCE_COLOR makes Rich take a log for a terminal, and a dumb one cannot go back over what it has shown.
        self._is_interactive = self._console.is_interactive and self._console.file.isatty()
        self._progress = ProgressBars(recipe.data.batch_size, console=self._console, disable=not self._is_interactive)
        self._committee_task = self._progress.add_task(
            pluralize(len(members), "member"), total=len(members) * self._steps_per_member
        )
        self._member_tasks: dict[int, TaskID] = {}
        self._last_log_time: dict[int, float] = {}
        self._notebook = NotebookOutput() if in_notebook() else None
        self._hidden = contextlib.ExitStack()

    def __enter__(self) -> "Monitor":
        self._hidden.enter_context(use_display(HiddenDisplay()))  # two displays would overwrite each other
        with self._failsafe(_PROGRESS):
            self._progress.start()
        with self._failsafe(_TENSORBOARD):
            self._tensorboard.on_train_begin()
        return self

    def __exit__(self, *_) -> None:
        with self._failsafe(_PROGRESS):
            self._progress.stop()
            if self._notebook:
                self._notebook.clear()
        self._hidden.close()

    def on_member_begin(self, index: int) -> None:
        """Add the bar of member `index`."""
        with self._failsafe(_PROGRESS):
            self._member_tasks[index] = self._progress.add_task(
                f"member {index}", total=self._steps_per_member, epoch="starting"
            )

    def on_member_end(self, index: int) -> None:
        """Remove the bar of member `index`, which finished or failed."""
        with self._failsafe(_PROGRESS):
            self._progress.remove_task(self._member_tasks.pop(index))

    def on_resume(self, index: int, step: int) -> None:
        """Exclude the first `step` steps of member `index` from the work of this process."""
        with self._failsafe(_PROGRESS):
            self._progress.update(self._member_tasks[index], total=self._steps_per_member - step)
            total = self._progress.tasks[0].total or 0
            self._progress.update(self._committee_task, total=total - step)

    def on_phase(self, index: int, epoch: int, phase: Phase) -> None:
        """Display what member `index` does; without a terminal, that its training step is traced."""
        with self._failsafe(_PROGRESS):
            epoch_text = f"{epoch}/{self._recipe.epochs}"
            self._progress.update(self._member_tasks[index], epoch=epoch_text, phase=phase)
            self._show_in_notebook()
            if self._prints_lines and phase == "tracing":
                self._last_log_time[index] = time.monotonic()
                self.note(f"member {index}  epoch {epoch_text}  tracing the training step")

    def on_steps_end(self, index: int, steps: int = 1) -> None:
        """Advance the bars of the committee and of member `index`; without a terminal, print a line a minute."""
        with self._failsafe(_PROGRESS):
            self._progress.advance(self._committee_task, steps)
            self._progress.advance(self._member_tasks[index], steps)
            self._show_in_notebook()
            if self._prints_lines:
                self._print_steps(index)

    def on_epoch_end(self, index: int, row: dict[str, Any]) -> None:
        """Display an epoch of member `index`, and log the committee to TensorBoard."""
        with self._failsafe(_TENSORBOARD):
            self._tensorboard.on_epoch_end(row["epoch"])
        with self._failsafe(_PROGRESS):
            epochs = self._recipe.epochs
            self._progress.update(
                self._member_tasks[index],
                epoch=f"{min(row['epoch'] + 1, epochs)}/{epochs}",
                validation=f"{row['validation_accuracy']:.2%}",
                phase="training",
            )
            self._show_in_notebook()
            if self._prints_lines and self._is_line_due(index, row["epoch"]):
                self.note(self._log_line(index, row))

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        """Append an event of member `index` to the journal and print `text`."""
        self._run.append_event(name, member=index, **fields)
        self.note(text)

    def note(self, text: str) -> None:
        """Print a line, on a terminal wrapped between words, unless stderr is closed."""
        with contextlib.suppress(OSError, ValueError):
            text = wrap_text(text, self._console.width) if self._is_interactive else text
            self._console.print(text, soft_wrap=True, markup=False)

    @property
    def _prints_lines(self) -> bool:
        return not self._is_interactive and self._notebook is None

    def _show_in_notebook(self) -> None:
        if self._notebook:
            self._notebook.show(lambda: self._progress.make_tasks_table(self._progress.tasks))

    def _print_steps(self, index: int) -> None:
        """Print the steps of an epoch that takes long."""
        now = time.monotonic()
        if now - self._last_log_time.setdefault(index, now) < _SECONDS_BETWEEN_LINES:
            return
        self._last_log_time[index] = now
        task = next(task for task in self._progress.tasks if task.id == self._member_tasks[index])
        self.note(f"member {index}  epoch {task.fields['epoch']}  {task.completed:,.0f} of {task.total:,.0f} steps")

    def _is_line_due(self, index: int, epoch: int) -> bool:
        """Return whether to log this epoch: about fifty lines per member, one a minute in long epochs, and the last."""
        line_interval, now = math.ceil(self._recipe.epochs / _LOG_LINES_PER_MEMBER), time.monotonic()
        due = epoch in (1, self._recipe.epochs) or epoch % line_interval == 0
        if due or now - self._last_log_time.get(index, now) >= _SECONDS_BETWEEN_LINES:
            self._last_log_time[index] = now
            return True
        return False

    def _log_line(self, index: int, row: dict[str, Any]) -> str:
        seconds_left = self._progress.tasks[0].time_remaining
        return (
            f"member {index}  epoch {row['epoch']}/{self._recipe.epochs}"
            f"  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}"
            f"  validation {row['validation_accuracy']:.4f}  {row['images_per_second']:.0f} images/s"
            f"  {'?' if seconds_left is None else f'{seconds_left / 60:.1f}'} min left"
        )


class ProgressBars(Progress):
    """Progress bars whose columns fit the current width of the terminal.

    A narrow terminal loses the bar and the rate first, labels next; never the epoch, the accuracy or the time left.

    Args:
        batch_size: Examples per step; tasks count steps.
        console: Console to draw on.
        disable: Whether to draw nothing. Tasks are counted anyway.
    """

    def __init__(self, batch_size: int, *, console: Console, disable: bool):
        self._output_console, self._batch_size = console, batch_size  # before super(), which draws once
        super().__init__(console=console, disable=disable, speed_estimate_period=60)

    def add_task(self, description: str, *, epoch: str = "", validation: str = "", phase: str = "training", **fields):
        return super().add_task(description, epoch=epoch, validation=validation, phase=phase, **fields)

    def make_tasks_table(self, tasks) -> Table:
        self.columns = self._columns_for_width(self._output_console.width)
        return super().make_tasks_table(tasks)

    def _columns_for_width(self, width: int) -> tuple[ProgressColumn, ...]:
        epoch = _EpochColumn(show_phase=width < _FULL_WIDTH)
        time_remaining = TimeRemainingColumn(compact=width < _FULL_WIDTH, table_column=Column(no_wrap=True))
        if width < _COMPACT_WIDTH:
            return _MemberColumn(), epoch, _text_column("{task.fields[validation]}"), time_remaining
        name, validation = _text_column("{task.description}"), _ValidationColumn()
        if width < _FULL_WIDTH:
            return name, epoch, validation, time_remaining
        bar = BarColumn(bar_width=min(40, width - _NON_BAR_WIDTH))
        return name, epoch, bar, _ThroughputColumn(self._batch_size), validation, time_remaining


def _text_column(template: str) -> TextColumn:
    return TextColumn(template, table_column=Column(no_wrap=True))


class _MemberColumn(ProgressColumn):
    """`member 3` as `3` and `4 members` as `all`, for narrow terminals."""

    def render(self, task: Task) -> Text:
        _, _, number = task.description.partition("member ")
        return Text(number or "all", no_wrap=True)


class _EpochColumn(ProgressColumn):
    """The epoch, or in narrow terminals what is done in place of training."""

    def __init__(self, show_phase: bool):
        super().__init__(table_column=Column(no_wrap=True))
        self._show_phase = show_phase

    def render(self, task: Task) -> Text:
        has_phase = self._show_phase and task.fields["phase"] != "training"
        return Text(task.fields["phase" if has_phase else "epoch"], no_wrap=True)


class _ValidationColumn(ProgressColumn):
    """Accuracy on the validation split, from the first epoch on."""

    def render(self, task: Task) -> Text:
        value = task.fields["validation"]
        return Text(f"validation {value}" if value else "", no_wrap=True)


class _ThroughputColumn(ProgressColumn):
    """Images per second over the last minute, or what is done in place of training."""

    def __init__(self, batch_size: int):
        super().__init__(table_column=Column(no_wrap=True))
        self._batch_size = batch_size

    def render(self, task: Task) -> Text:
        if task.fields["phase"] != "training":
            return Text(task.fields["phase"], no_wrap=True)
        return Text(f"{(task.speed or 0) * self._batch_size:.0f} images/s", no_wrap=True)
