"""Errors that users can act on, with their exit codes, and helpers for their messages."""

import difflib
from collections.abc import Iterable, Iterator, Sequence

_MAX_LISTED_PROBLEMS = 20


class CommitteeError(Exception):
    """A failure the user can act on.

    The message states what is wrong, where, what was kept and what to do next. The command line prints it without a
    traceback and exits with `exit_code`. Every other exception is a bug and keeps its traceback.
    """

    exit_code = 1


class RecipeError(CommitteeError):
    """The recipe or the command line is invalid; nothing was started."""

    exit_code = 2


class DataError(CommitteeError):
    """The data is missing, unreadable or inconsistent."""

    exit_code = 3


class RunError(CommitteeError):
    """The run folder is in use, damaged, or belongs to another recipe."""

    exit_code = 4


class InUseError(RunError):
    """Another process holds the lock of the run folder or the member."""


class DivergedError(CommitteeError):
    """The loss of a member is no longer finite."""

    exit_code = 5


class IncompleteError(CommitteeError):
    """The committee lacks a requested member."""

    exit_code = 6


class ResourceError(CommitteeError):
    """Disk space, memory or permissions are insufficient."""

    exit_code = 7


class Interrupted(CommitteeError):
    """A signal stopped the command.

    Args:
        message: What was saved and how to resume.
        exit_code: 130 for Ctrl-C (SIGINT), 143 for SIGTERM.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class VerificationError(CommitteeError):
    """A model does not meet the requirements of a committee member."""

    exit_code = 8


class ExportError(CommitteeError):
    """An export failed, or its predictions differ from those of the Keras committee."""

    exit_code = 8


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those behind it: its cause, or else the error that was being handled, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def did_you_mean(word: str, candidates: Iterable[str], prefix: str = "") -> str:
    """Return `" Did you mean 'members'?"` for the candidate closest to `word`, or `""` if none is similar.

    Args:
        word: The unknown name.
        candidates: The known names.
        prefix: Text shown in front of the name, such as the folder of a file name.
    """
    matches = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean {prefix + matches[0]!r}?" if matches else ""


def pluralize(number: float, noun: str) -> str:
    """Return `"1 member"`, `"2 members"`."""
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def raise_if_problems(name: str, problems: Sequence[str], hint: str) -> None:
    """Raise a `DataError` that lists `problems`, if there are any.

    Args:
        name: The data set or folder that was checked.
        problems: One sentence per problem; the first 20 are listed.
        hint: What to do next; the last line of the message.

    Raises:
        DataError: If `problems` is not empty.
    """
    if not problems:
        return
    lines = [f"  {problem}" for problem in problems[:_MAX_LISTED_PROBLEMS]]
    if len(problems) > _MAX_LISTED_PROBLEMS:
        lines.append(f"  and {len(problems) - _MAX_LISTED_PROBLEMS} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError("\n".join([f"{name}: {count} in the data", *lines, hint]))
