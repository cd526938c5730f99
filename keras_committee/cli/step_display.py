"""Display of what a command does now, on stderr: a line with bar and time on a terminal, plain lines elsewhere."""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from keras_committee.progress import Display

_SECONDS_BETWEEN_LINES = 10.0  # of one step that counts items, without a terminal
_ELAPSED_WIDTH, _BAR_WIDTH = 12, 20  # spinner and time, bar and slash of the count, with the blanks between them


def make_display() -> Display:
    """Return the display that suits stderr."""
    if sys.stderr.isatty():
        from rich.console import Console

        if (console := Console(stderr=True, highlight=False)).is_interactive:
            return _TerminalDisplay(console)
    return LineDisplay()


@dataclasses.dataclass
class _LineStep:
    text: str
    total: int | None
    last_line: float


class LineDisplay:
    """Prints a line when a step begins, and the number of items that are done every ten seconds.

    Args:
        clock: Function that returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._last_text = clock, ""

    def begin(self, text: str, total: int | None) -> _LineStep:
        if text != self._last_text:  # such as "loading TensorFlow", which goes on in another step
            self._last_text = text
            click.echo(text, err=True)
        return _LineStep(text, total, self._clock())

    def update(self, key: _LineStep, done: int) -> None:
        now = self._clock()
        if key.total is not None and now - key.last_line >= _SECONDS_BETWEEN_LINES:
            key.last_line = now
            click.echo(f"{key.text}: {done:,} of {key.total:,}", err=True)

    def end(self, key: _LineStep) -> None:
        pass


class _TerminalDisplay:
    """Displays the current steps below each other; a line disappears with the end of its step."""

    def __init__(self, console: Any):
        from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        # What is printed meanwhile goes above the lines, unless stdout is a file.
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            _counted(_bar_column()),
            _counted(MofNCompleteColumn()),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def begin(self, text: str, total: int | None) -> Any:
        width = self._progress.console.width - _ELAPSED_WIDTH
        if total is not None:
            width -= _BAR_WIDTH + 2 * len(str(total))
        # Rich would leave out the other columns for a long text.
        key = self._progress.add_task(text if len(text) <= width else f"{text[: width - 3]}...", total=total)
        self._progress.start()
        return key

    def update(self, key: Any, done: int) -> None:
        self._progress.update(key, completed=done)

    def end(self, key: Any) -> None:
        self._progress.remove_task(key)
        if not self._progress.tasks:
            self._progress.stop()


def _bar_column() -> Any:
    from rich.progress import BarColumn

    return BarColumn(bar_width=_BAR_WIDTH - 4)


def _counted(column: Any) -> Any:
    """Let a column be empty for steps that count nothing."""
    from rich.text import Text

    render = column.render
    column.render = lambda task: Text("") if task.total is None else render(task)
    return column
