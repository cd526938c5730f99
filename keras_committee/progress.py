"""Progress of long work: what is done now, for a display.

Nothing is displayed unless a program installs a display, as the command line and the functions of
`keras_committee.api` do. A step costs nothing then.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

_Item = TypeVar("_Item")


class Display(Protocol):
    """Displays steps, which may be nested. Threads may call `update`."""

    def begin(self, text: str, total: int | None) -> Any:
        """Display a step, and return a key for the other methods.

        Args:
            text: What is done, such as `"reading 240 images"`.
            total: Number of items of the step; None if it has none.
        """
        ...

    def update(self, key: Any, done: int) -> None:
        """Display the number of items that are done."""
        ...

    def end(self, key: Any) -> None:
        """The step has ended."""
        ...


class HiddenDisplay:
    """A display that shows nothing."""

    def begin(self, text: str, total: int | None) -> None:
        pass

    def update(self, key: Any, done: int) -> None:
        pass

    def end(self, key: Any) -> None:
        pass


_NO_DISPLAY = HiddenDisplay()
_current: ContextVar[Display] = ContextVar("progress_display", default=_NO_DISPLAY)


def has_display() -> bool:
    """Return whether a display was installed, also one that hides the steps."""
    return _current.get() is not _NO_DISPLAY


@contextlib.contextmanager
def use_display(display: Display) -> Iterator[None]:
    """Display the steps of the `with` block."""
    token = _current.set(display)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def step(text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Display what the `with` block does.

    Args:
        text: What is done, such as `"reading 240 images"`.
        total: Number of items; None if they are not counted.

    Yields:
        Function of the number of items that are done.
    """
    display = _current.get()
    key = display.begin(text, total)
    try:
        yield lambda done: display.update(key, done)
    finally:
        display.end(key)


def track(
    items: Iterable[_Item], text: str, total: int, *, size: Callable[[_Item], int] = lambda item: 1
) -> Iterator[_Item]:
    """Yield the items, and display how many of them are done.

    Args:
        items: The items.
        text: What is done with them, as in `step`.
        total: Sum of their sizes.
        size: Function that returns how many an item counts, such as the images in a batch.
    """
    done = 0
    with step(text, total) as update:
        for item in items:
            yield item
            done += size(item)
            update(done)
