"""The scores of the committee after each epoch: a file of the run folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_committee.errors import RunError
from keras_committee.files import checked_line, file_lock, read_checked_lines, read_problem, write_file

_LOCK_TIMEOUT = 30.0  # seconds; another process that trains other members of the run holds it while writing


class CommitteeHistory:
    """Validation scores of the committees of the members that have finished an epoch.

    A row has `epoch`, `members`, the size of the committee, and its scores.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path):
        self.path = run / "committee_history.jsonl"

    def read(self) -> list[dict[str, Any]]:
        """Return the rows by epoch, then by size. Raises RunError if the file is damaged."""
        try:
            return read_checked_lines(self.path.read_bytes().splitlines()) if self.path.exists() else []
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.path} is damaged: {read_problem(error)}.\n  Only trackers receive it; training writes it again."
            ) from error

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, each in place of one of the same epoch and size. Raises ResourceError.

        A damaged file is replaced.
        """
        with file_lock(self.path.with_name(".committee_history.lock"), str(self.path), timeout=_LOCK_TIMEOUT):
            merged = {(row["epoch"], row["members"]): row for row in [*self.read_sound(), *rows]}
            write_file(self.path, b"".join(checked_line(merged[key]) for key in sorted(merged)))

    def read_sound(self) -> list[dict[str, Any]]:
        """Return the rows as `read`; none if the file is damaged."""
        try:
            return self.read()
        except RunError:
            return []

    def clear(self) -> None:
        """Remove the rows, as members are trained again."""
        self.path.unlink(missing_ok=True)
