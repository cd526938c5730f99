"""What became of each member that trains in a process of its own, and is it started again?"""

from collections.abc import Sequence
from typing import Any

from keras_committee import errors
from keras_committee.errors import CommitteeError, DivergedError, IncompleteError
from keras_committee.run import Run
from keras_committee.training.monitoring import Monitor
from keras_committee.training.report import Settings

_HEARD = ("resumed", "steps_ended", "epoch_ended", "event", "note")  # what a worker may call of the monitor


class Outcomes:
    """The journal of the attempts at each member: told by whoever starts processes, on this machine or on others.

    Args:
        run: The run folder, locked by the caller.
        members: The indices of the members to train.
        monitor: Who is told.
        settings: How often a member is tried.
    """

    def __init__(self, run: Run, members: Sequence[int], monitor: Monitor, settings: Settings):
        self._run, self._monitor, self._settings = run, monitor, settings
        self._attempts = dict.fromkeys(members, 0)
        self.failures: dict[int, CommitteeError] = {}
        self.fatal: CommitteeError | None = None  # what would befall the other members, too

    def started(self, index: int, **fields: Any) -> None:
        """Member `index` has a process; `fields` say which."""
        if not self._attempts[index]:
            self._monitor.member_started(index)
        self._attempts[index] += 1
        self._run.journal("member_started", member=index, **fields, attempt=self._attempts[index])

    def heard(self, message: dict[str, Any]) -> None:
        """A worker called a method of its report."""
        if message["call"] in _HEARD:
            getattr(self._monitor, message["call"])(*message["args"], **message["fields"])

    def ended(
        self, index: int, seconds: float, error: dict[str, Any] | None, cause: str, stopping: bool, **fields: Any
    ) -> bool:
        """The process of member `index` is gone; returns whether the member is to be started again.

        Args:
            index: The member.
            seconds: How long the process lived.
            error: `{"kind": ..., "text": ...}` as the worker said it, None where it said nothing.
            cause: What is known of the end of a process that said nothing.
            stopping: Whether all were asked to end.
            fields: For the journal, where it died.
        """
        if self._run.member(index).finished:
            self._run.journal("member_finished", member=index, seconds=round(seconds, 1))
            self._monitor.member_ended(index)
        elif error and error["kind"] != "Stopped":
            self._give_up(index, getattr(errors, error["kind"])(error["text"]))
        elif stopping:
            self._run.journal("member_stopped", member=index)
        else:
            return self._died(index, cause, **fields)
        return False

    def _died(self, index: int, cause: str, **fields: Any) -> bool:
        """Starts it again, a bounded number of times."""
        if self._attempts[index] > self._settings.retries:
            log = self._run.log(index)
            self._give_up(index, IncompleteError(f"{cause}, {self._attempts[index]} times. Its log: {log}"))
            return False
        self._monitor.event(index, "member_died", f"{cause}; it starts again from its last checkpoint", **fields)
        return True

    def _give_up(self, index: int, error: CommitteeError) -> None:
        self.failures[index] = error
        self._monitor.event(index, "member_failed", f"error: {error}", error=str(error))
        self._monitor.member_ended(index)
        if not isinstance(error, DivergedError | IncompleteError):
            self.fatal = self.fatal or error
