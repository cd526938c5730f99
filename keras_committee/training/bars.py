"""What do the bars of a committee in training say, in a window of any width?"""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

_WIDE, _MEDIUM = 72, 46  # places that all columns take, and those without bar and rate
_BESIDE_THE_BAR = 62


class Bars(Progress):
    """Bars whose columns are chosen anew at each drawing, by the width that the window has then.

    A narrow window loses the bar and the rate first, the words next; never the epoch, the accuracy or the time left.

    Args:
        batch_size: Examples of a step: a task counts steps.
        console: Where they are drawn.
        disable: Whether nothing is drawn at all; tasks are counted nevertheless.
    """

    def __init__(self, batch_size: int, *, console: Console, disable: bool):
        self._window, self._batch_size = console, batch_size  # it is drawn, empty, as it is made
        super().__init__(console=console, disable=disable, speed_estimate_period=60)

    def add_task(self, description: str, *, epoch: str = "", validation: str = "", **settings):
        return super().add_task(description, epoch=epoch, validation=validation, **settings)

    def make_tasks_table(self, tasks) -> Table:
        self.columns = self._columns(self._window.width)
        return super().make_tasks_table(tasks)

    def _columns(self, width: int) -> tuple[ProgressColumn, ...]:
        left = TimeRemainingColumn(compact=width < _WIDE, table_column=Column(no_wrap=True))
        if width < _MEDIUM:
            return _Words(), _text("{task.fields[epoch]}"), _text("{task.fields[validation]}"), left
        name, epoch = _text("{task.description}"), _text("{task.fields[epoch]}")
        validation = _Validation()
        if width < _WIDE:
            return name, epoch, validation, left
        return (
            name,
            epoch,
            BarColumn(bar_width=min(40, width - _BESIDE_THE_BAR)),
            _Rate(self._batch_size),
            validation,
            left,
        )


def _text(template: str) -> TextColumn:
    return TextColumn(template, table_column=Column(no_wrap=True))


class _Words(ProgressColumn):
    """`member 3` as `3`, `4 members` as `all`: what a narrow window can afford."""

    def render(self, task: Task) -> Text:
        _, _, number = task.description.partition("member ")
        return Text(number or "all", no_wrap=True)


class _Validation(ProgressColumn):
    """The accuracy on the validation split, once there is one."""

    def render(self, task: Task) -> Text:
        value = task.fields["validation"]
        return Text(f"validation {value}" if value else "", no_wrap=True)


class _Rate(ProgressColumn):
    """Images per second of the last minute."""

    def __init__(self, batch_size: int):
        super().__init__(table_column=Column(no_wrap=True))
        self._batch_size = batch_size

    def render(self, task: Task) -> Text:
        return Text(f"{(task.speed or 0) * self._batch_size:.0f} images/s", no_wrap=True)
