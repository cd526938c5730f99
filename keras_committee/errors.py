"""What can go wrong for the user, and with which exit code?"""

from collections.abc import Sequence

_MAX_LISTED = 20  # problems of the data that are listed in full


class CommitteeError(Exception):
    """A failure the user can act on: what is wrong, where, what was kept, what to do next.

    The command line prints the message without a traceback and exits with `exit_code`; every other exception is a
    bug of ours and keeps its traceback.
    """

    exit_code = 1


class RecipeError(CommitteeError):
    """The recipe or the command is wrong: nothing was started."""

    exit_code = 2


class DataError(CommitteeError):
    """The data is missing, unreadable or inconsistent."""

    exit_code = 3


class RunError(CommitteeError):
    """The run folder is in use, damaged, or belongs to something else."""

    exit_code = 4


class InUseError(RunError):
    """Another process owns the run folder or the member."""


class DivergedError(CommitteeError):
    """A member's loss is no longer a finite number."""

    exit_code = 5


class IncompleteError(CommitteeError):
    """The committee lacks a member that was asked for."""

    exit_code = 6


class ResourceError(CommitteeError):
    """Disk, memory or permissions do not suffice."""

    exit_code = 7


class Interrupted(CommitteeError):
    """The user or the machine asked to stop. `exit_code` is 130 for Ctrl-C (SIGINT) and 143 for SIGTERM."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class VerificationError(CommitteeError):
    """A member is not what a member of a committee must be."""

    exit_code = 8


class ExportError(CommitteeError):
    """An export could not be made, or does not answer like the committee it came from."""

    exit_code = 8


def raise_if_problems(name: str, problems: Sequence[str], hint: str) -> None:
    """Raise a `DataError` that lists `problems`, the first 20 in full, and ends with `hint`; return where none."""
    if not problems:
        return
    lines = [f"  {problem}" for problem in problems[:_MAX_LISTED]]
    if len(problems) > _MAX_LISTED:
        lines.append(f"  and {len(problems) - _MAX_LISTED} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError("\n".join([f"{name}: {count} in the data", *lines, hint]))
