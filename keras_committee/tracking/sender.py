"""The process that sends a run to its tracker: `python -m keras_committee.tracking.sender RUN [--follow]`.

With `--follow` it sends until its input ends, else once. Each line on its stdout is for the user. Its exit code is 0 if
the tracker has everything.
"""

import contextlib
import hashlib
import json
import math
import numbers
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from keras_committee.errors import CommitteeError, InUseError, RunError
from keras_committee.files import file_lock, read_record, write_record
from keras_committee.run import Run
from keras_committee.tfserving.versions import MANIFEST_FILE
from keras_committee.tracking import Tracking, mask_credentials
from keras_committee.tracking.committee_history import CommitteeHistory

_STATE_FILE = "tracking_state.json"  # in the run folder
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_AFTER_FAILURE = 30.0
_LOCK_SECONDS = 5.0
_SCORES = ("accuracy", "nll", "ece", "brier", "top_5_accuracy")
_NOT_METRICS = ("epoch", "step", "members")  # of a history: axes


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker shows of a run as a whole.

    Attributes:
        key: Unique name, by which the tracker finds the run again.
        title: Name for people, that of the run folder.
        group: Name of the recipe: the runs of one recipe are compared with each other.
        folder: The run folder.
        parameters: Recipe parameters.
        tags: Versions, precision and other facts.
        start: Time of the first start in milliseconds since 1970.
    """

    key: str
    title: str
    group: str
    folder: Path
    parameters: dict[str, Any]
    tags: dict[str, str]
    start: int


@dataclass(frozen=True)
class Row:
    """Scores of an epoch.

    Attributes:
        epoch: Counted from 1.
        time: Its end in milliseconds since 1970.
        scores: The scores by name.
    """

    epoch: int
    time: int
    scores: dict[str, float]


class Tracker(Protocol):
    """A run in a tracker. `member` is the index of a member, or None for the committee.

    Attributes:
        url: Address of its page, or how to upload it; "" if there is neither.
    """

    url: str

    def __init__(self, address: str, tracked: TrackedRun, state: dict[str, Any], save: Callable[[], None]):
        """Find the run, or create it.

        Args:
            address: See `Tracking`.
            tracked: The run.
            state: JSON values that the tracker keeps from one process to the next; it changes them in place.
            save: Function that writes the state, which is also written after each method.
        """
        ...

    def send_parameters(self) -> None:
        """Send the parameters and tags."""
        ...

    def send_rows(self, member: int | None, prefix: str, rows: list[Row]) -> None:
        """Send those of the rows that the tracker does not have yet.

        Args:
            member: Whose scores they are.
            prefix: Start of the names of the scores, such as `"committee_of_3/"`.
            rows: All rows of this kind, by epoch.
        """
        ...

    def send_scores(self, member: int | None, scores: Mapping[str, float]) -> None:
        """Send scores that do not belong to an epoch, in place of earlier ones."""
        ...

    def send_files(self, files: Mapping[str, Path]) -> None:
        """Send files, in place of earlier ones, by their names in the tracker."""
        ...

    def send_export(self, version: Path, manifest: Mapping[str, Any]) -> None:
        """Send an exported version and register it as a model, unless the tracker has it."""
        ...

    def send_member_end(self, member: int, status: str) -> None:
        """Send the end of a member: `"FINISHED"`, `"FAILED"` or `"KILLED"`."""
        ...

    def close(self, status: str) -> None:
        """Send the status of the run, `"RUNNING"` or as for members, and release the tracker."""
        ...


class _Sender:
    """Sends a run; what was sent is recorded in the run folder.

    Args:
        run: The run folder.
        tracking: Where it is logged.
    """

    def __init__(self, run: Run, tracking: Tracking):
        self._run, self._tracking = run, tracking
        self._tracker: Tracker | None = None
        self._state = self._read_state()
        self._compared: dict[str, str | None] = {}  # stamps of the histories whose first rows were compared

    def send(self) -> None:
        """Send everything that is new. Raises whatever the tracker raises."""
        if self._is_other_training():
            self._close("KILLED")
            self._state = self._new_state(self._state["generation"] + 1)
        tracker = self._tracker or self._connect()
        self._send_once("parameters", self._run.parameters(), tracker.send_parameters)
        for index in self._member_indices():
            file = self._run.member(index).history
            self._send_once(f"history {index}", _stamp(file), partial(self._send_history, tracker, index))
        history = CommitteeHistory(self._run.path)
        self._send_once("committee history", _stamp(history.path), partial(self._send_committee, tracker, history))
        self._send_results(tracker)
        for version in self._exports():
            manifest = read_record(version / MANIFEST_FILE)
            self._send_once(f"export {version}", manifest, partial(tracker.send_export, version, manifest))
        for index, status in self._ends():
            self._send_once(f"end {index}", status, partial(tracker.send_member_end, index, status))

    def close(self, *, has_ended: bool) -> None:
        """Send the status of the run, if it was sent; `has_ended` if the training has, by whatever cause."""
        last = next((e["event"] for e in reversed(self._events()) if e["event"].startswith("training_")), None)
        statuses = {"training_failed": "FAILED", "training_stopped": "KILLED", "training_started": "RUNNING"}
        status = statuses.get(last or "", "FINISHED")
        self._close("KILLED" if has_ended and status == "RUNNING" else status)

    def _close(self, status: str) -> None:
        if self._tracker:
            self._tracker.close(status)
            self._tracker = None
            self._write_state()

    def _connect(self) -> Tracker:
        if self._tracking.tracker == "mlflow":
            from keras_committee.tracking.mlflow_tracker import MLflowTracker as Library
        else:
            from keras_committee.tracking.wandb_tracker import WandbTracker as Library
        state = self._state
        library_state = state.setdefault("tracker", {})
        self._tracker = tracker = Library(self._tracking.address, self._tracked_run(), library_state, self._write_state)
        if tracker.url and state.get("url") != tracker.url:
            _print(f"{self._tracking.name}: {tracker.url}")
            state["url"] = tracker.url
        self._write_state()
        return tracker

    def _tracked_run(self) -> TrackedRun:
        environment, events = self._run.environment(), self._events()
        tags = {name: str(version) for name, version in environment["versions"].items() if version}
        for name in ("commit", "precision", "platform", "command", "smoke"):
            if environment.get(name) not in (None, False):
                tags[name] = mask_credentials(str(environment[name]))
        return TrackedRun(
            key=f"{self._tracking.key}{self._state['generation'] or ''}",
            title=self._run.path.resolve().name,
            group=environment["recipe"],
            folder=self._run.path,
            parameters=self._run.parameters(),
            tags=tags,
            start=_milliseconds(events[0]["time"]) if events else int(time.time() * 1000),
        )

    def _send_once(self, item: str, content: Any, send: Callable[[], None]) -> None:
        """Call `send` unless this content of the item was sent."""
        digest = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]
        if content is None or self._state["sent"].get(item) == digest:
            return
        try:
            send()
        except RunError as error:  # a damaged file; the others are sent
            _print(f"warning: {error}")
        self._state["sent"][item] = digest
        self._write_state()

    def _send_history(self, tracker: Tracker, index: int) -> None:
        member = self._run.member(index)
        rows = member.read_history()
        if rows:
            self._state["first_rows"][str(index)] = _first_row(rows)
        tracker.send_rows(index, "", [_row(row, member.epoch_predictions(row["epoch"])) for row in rows])

    def _send_committee(self, tracker: Tracker, history: CommitteeHistory) -> None:
        rows = history.read()
        for size in sorted({row["members"] for row in rows}):
            of_size = [_row(row, self._newest_predictions(row["epoch"])) for row in rows if row["members"] == size]
            tracker.send_rows(None, f"committee_of_{size}/", of_size)

    def _newest_predictions(self, epoch: int) -> Path:
        files = [self._run.member(index).epoch_predictions(epoch) for index in self._member_indices()]
        return max((file for file in files if file.exists()), key=lambda file: file.stat().st_mtime, default=Path())

    def _send_results(self, tracker: Tracker) -> None:
        """Send evaluations, selections and reports: their scores, and the files."""
        path = self._run.path
        evaluation, selection = path / "evaluation.json", self._selection_file()
        if evaluation.exists():
            self._send_once("evaluation", _stamp(evaluation), partial(_send_evaluation, tracker, evaluation))
        if selection:
            self._send_once("selection", _stamp(selection), partial(_send_selection, tracker, selection))
        names = ("recipe.py", "parameters.json", "environment.json", "evaluation.json", "calibration.json")
        report = sorted(file for file in (path / "report").glob("*") if file.is_file())
        files = {name: path / name for name in names}
        files |= {str(file.relative_to(path)): file for file in report}
        files |= {selection.name: selection} if selection else {}
        stamps = {name: _stamp(file) for name, file in files.items() if file.exists()}
        sent = self._state["sent"].setdefault("files", {})
        if new := {name: files[name] for name, stamp in stamps.items() if sent.get(name) != stamp}:
            tracker.send_files(new)
            sent.update({name: stamps[name] for name in new})
            self._write_state()

    def _selection_file(self) -> Path | None:
        """Return the file of the newest selection."""
        events = [event for event in self._events() if event["event"] == "selected"]
        files = [self._run.path / "selection.json", *(Path(event["file"]) for event in events)]
        return next((file for file in reversed(files) if file.is_file()), None)

    def _exports(self) -> list[Path]:
        """Return the exported versions that still exist; none if the journal is damaged."""
        with contextlib.suppress(CommitteeError):
            return [version for version in self._run.exports() if (version / MANIFEST_FILE).is_file()]
        return []

    def _ends(self) -> Iterator[tuple[int, str]]:
        """Yield the status of each member that has ended, in order of the journal."""
        names = {"member_finished": "FINISHED", "member_failed": "FAILED", "member_stopped": "KILLED"}
        ends: dict[int, str] = {}
        for event in self._events():
            if event["event"] in names:
                ends[event["member"]] = names[event["event"]]
            elif event["event"] == "member_started":
                ends.pop(event["member"], None)
        yield from ends.items()

    def _member_indices(self) -> list[int]:
        names = [folder.name for folder in (self._run.path / "members").glob("*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def _events(self) -> list[dict[str, Any]]:
        try:
            return self._run.events()
        except CommitteeError:  # a damaged journal
            return []

    def _is_other_training(self) -> bool:
        """Return whether a member was trained again with other results, whose curves would be mixed with the old."""
        for index, first in self._state["first_rows"].items():
            member = self._run.member(int(index))
            if self._compared.get(index) == (stamp := _stamp(member.history)):
                continue
            self._compared[index] = stamp
            with contextlib.suppress(RunError):
                if (rows := member.read_history()) and _first_row(rows) != first:
                    return True
        return False

    def _read_state(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            state = read_record(self._run.path / _STATE_FILE)
            if state.get("key") == self._tracking.key:
                return {name: value for name, value in state.items() if name != "checksum"}
        return self._new_state(0)

    def _new_state(self, generation: int) -> dict[str, Any]:
        return {"key": self._tracking.key, "generation": generation, "sent": {}, "first_rows": {}, "tracker": {}}

    def _write_state(self) -> None:
        write_record(self._run.path / _STATE_FILE, self._state)


def main(folder: str, *, follow: bool) -> int:
    """Send the run in `folder`, and return the exit code."""
    run = Run(Path(folder))
    tracking = Tracking.read(run.path)
    if tracking is None:
        return 0
    with contextlib.ExitStack() as stack:
        while True:
            try:
                lock = file_lock(run.path / ".tracking.lock", "the sender", timeout=_LOCK_SECONDS)
                stack.enter_context(lock)
                break
            except InUseError:
                # A sender that trains along sends what is new, too; one that a kill left behind ends soon.
                if not follow or _input_has_ended(0):
                    return 0
        return _send_until_end(run, tracking, follow)


def _send_until_end(run: Run, tracking: Tracking, follow: bool) -> int:
    sender, warned = _Sender(run, tracking), False
    while True:
        is_last = not follow or _input_has_ended(0)
        pause = _SECONDS_BETWEEN_LOOKS
        try:
            sender.send()
            if is_last:
                sender.close(has_ended=follow)
                return 0
        except Exception as error:
            traceback.print_exc()  # to the log
            if not warned:
                _print(_warning(run, tracking, error))
            if is_last:
                return 1
            warned, pause = True, _SECONDS_AFTER_FAILURE
            sender = _Sender(run, tracking)  # connects again
        _input_has_ended(pause)


def _warning(run: Run, tracking: Tracking, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = mask_credentials(lines[0])[:300]
    return (
        f"warning: cannot send to {tracking.name}: {text.rstrip('.')}.\n"
        f"  Nothing is lost: it is sent later, at the latest by the next command on {run.path}. "
        f"Details: {run.path / 'logs' / 'tracking.log'}"
    )


def _send_evaluation(tracker: Tracker, file: Path) -> None:
    document = read_record(file)
    split = document["split"]
    for member in document["members"]:
        tracker.send_scores(member["index"], _scores(f"{split}_", member))
    for committee in document["committees"]:
        scores = _scores(f"{split}_", {name: _mean(value) for name, value in committee.items()})
        tracker.send_scores(None, {f"committee_of_{committee['size']}/{name}": value for name, value in scores.items()})
    whole = document["committees"][-1]  # whose only subset is itself
    costs = {"mflops": whole["mflops"]} if whole.get("mflops") else {}
    tracker.send_scores(None, _scores(f"{split}_", {name: _mean(value) for name, value in whole.items()}) | costs)


def _send_selection(tracker: Tracker, file: Path) -> None:
    document = read_record(file)
    report = document["report"]
    scores: dict[str, float] = {"selected/members": len(document["members"])}
    for split in ("validation", "test"):
        values = {name: each["value"] for name, each in (report.get(split) or {}).items() if isinstance(each, dict)}
        scores |= _scores(f"selected/{split}_", values)
    if report.get("mflops"):
        scores["selected/mflops"] = report["mflops"]
    tracker.send_scores(None, scores)


def _mean(value: Any) -> Any:
    return value.get("mean") if isinstance(value, dict) else None


def _scores(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}{name}": float(values[name]) for name in _SCORES if isinstance(values.get(name), numbers.Real)}


def _row(row: Mapping[str, Any], predictions: Path) -> Row:
    """Return the scores of a row of a history; the file of its predictions was written at its end."""
    try:
        end = predictions.stat().st_mtime
    except OSError:
        end = time.time()
    scores = {name: float(value) for name, value in row.items() if isinstance(value, numbers.Real)}
    scores = {name: value for name, value in scores.items() if name not in _NOT_METRICS and math.isfinite(value)}
    return Row(row["epoch"], int(end * 1000), scores)


def _first_row(rows: list[dict[str, Any]]) -> str:
    kept = {name: value for name, value in rows[0].items() if name != "images_per_second"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _stamp(file: Path) -> str | None:
    """Return what changes when a file is replaced; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


def _milliseconds(timestamp: str) -> int:
    return int(datetime.fromisoformat(timestamp).timestamp() * 1000)


def _input_has_ended(seconds: float) -> bool:
    """Return whether the input ends within some seconds: the process that started this one has no more to send."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def _print(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # who started this process may be gone
        print(text, file=_user_output or sys.stdout, flush=True)


_user_output: IO[str] | None = None  # None is stdout

if __name__ == "__main__":
    # The libraries print to stdout, too; only lines for the user may go there.
    _user_output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.nice(10)
    sys.exit(main(sys.argv[1], follow="--follow" in sys.argv[2:]))
