"""Display of what is done now: a line with bar and time on a terminal or in a notebook, plain lines elsewhere.

The lines go to stderr.
"""

import contextlib
import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import click

from keras_committee.progress import Display, has_display, use_display

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_SECONDS_BETWEEN_LINES = 10.0  # of one step that counts items, without a terminal
_SECONDS_BETWEEN_UPDATES = 0.25  # of the output of a notebook
_ELAPSED_WIDTH, _BAR_WIDTH = 12, 20  # spinner and time, bar and slash of the count, with the blanks between them


def displayed(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a function display its steps, unless its caller does. TensorFlow logs only errors meanwhile."""

    @functools.wraps(function)
    def wrapper(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with _errors_of_tensorflow_only(), contextlib.nullcontext() if has_display() else use_display(make_display()):
            return function(*args, **kwargs)

    return wrapper


@contextlib.contextmanager
def _errors_of_tensorflow_only() -> Iterator[None]:
    """Hide what TensorFlow logs below the cell of a notebook: that it traces again, and which files it writes."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger = logging.getLogger("tensorflow")  # whose level TensorFlow sets when it is imported
    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


def make_display() -> Display:
    """Return the display that suits the notebook, or else stderr."""
    if in_notebook():
        return _NotebookDisplay()
    if sys.stderr.isatty():
        from rich.console import Console

        if (console := Console(stderr=True, highlight=False)).is_interactive:
            return _TerminalDisplay(console)
    return LineDisplay()


def in_notebook() -> bool:
    """Return whether this program is the kernel of a Jupyter notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class NotebookOutput:
    """An output below the cell of a notebook that is replaced in place."""

    def __init__(self):
        self._handle: Any = None
        self._last_update = 0.0

    def show(self, make_content: Callable[[], Any]) -> None:
        """Show what a function returns, such as a table of Rich; at most four times a second."""
        now = time.monotonic()
        if now - self._last_update >= _SECONDS_BETWEEN_UPDATES:
            self._last_update = now
            self._replace(make_content())

    def clear(self) -> None:
        """Remove the content."""
        self._last_update = 0.0
        if self._handle is not None:
            html: Any = sys.modules["IPython.display"].HTML
            self._replace(html(""))

    def _replace(self, content: Any) -> None:
        from IPython.display import display  # a notebook has it  # pyright: ignore[reportMissingImports]

        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


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
        # What is printed meanwhile goes above the lines, unless stdout is a file.
        self._progress = _rich_progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty())

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


class _NotebookDisplay:
    """Displays the current steps below the cell; the output is empty when the last one has ended."""

    def __init__(self):
        self._progress, self._output = _rich_progress(disable=True), NotebookOutput()  # disabled: it only counts

    def begin(self, text: str, total: int | None) -> Any:
        key = self._progress.add_task(text, total=total)
        self._show()
        return key

    def update(self, key: Any, done: int) -> None:
        self._progress.update(key, completed=done)
        self._show()

    def end(self, key: Any) -> None:
        self._progress.remove_task(key)
        if self._progress.tasks:
            self._show()
        else:
            self._output.clear()

    def _show(self) -> None:
        self._output.show(lambda: self._progress.make_tasks_table(self._progress.tasks))


def _rich_progress(**options: Any) -> Any:
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        _counted(_bar_column()),
        _counted(MofNCompleteColumn()),
        TimeElapsedColumn(),
        **options,
    )


def _bar_column() -> Any:
    from rich.progress import BarColumn

    return BarColumn(bar_width=_BAR_WIDTH - 4)


def _counted(column: Any) -> Any:
    """Let a column be empty for steps that count nothing."""
    from rich.text import Text

    render = column.render
    column.render = lambda task: Text("") if task.total is None else render(task)
    return column
