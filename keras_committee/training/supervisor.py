"""How do many members train at once, each in its own process, so that the end of one is the end of no other?

The supervisor starts a process for each running member, gives it its share of the cores or GPUs, and listens: a worker
writes a line of JSON for whatever its member reports. A worker whose parent is gone ends itself. One that dies, or that
says nothing for `Settings.stall_seconds`, is started again, and its member goes on from its last checkpoint.
"""

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_committee import errors
from keras_committee.errors import CommitteeError, DivergedError, IncompleteError
from keras_committee.files import translate_os_errors
from keras_committee.run import Run
from keras_committee.system_limits import usable_cores
from keras_committee.training.devices import DeviceShare, partition_devices
from keras_committee.training.reporting import Monitor, TrainingOptions
from keras_committee.training.signals import GracefulShutdown

_STACK_DUMP_SECONDS = 2.0  # for a stalled worker to write its stacks
_SHUTDOWN_SECONDS = 60.0  # for a worker to end its step and save, when asked to stop


@dataclasses.dataclass
class _Worker:
    """A running process and what is known of it."""

    index: int
    share: DeviceShare
    process: subprocess.Popen
    pipe: int
    last_seen: float
    started: float
    buffer: bytes = b""
    error: dict[str, Any] | None = None
    stalled: bool = False


class Supervisor:
    """Trains members in processes of their own.

    Args:
        run: The run folder, locked by the caller.
        members: The indices of the members to train.
        workers: How many at once.
        strategy: What each worker gives to `make_strategy`.
        monitor: Who is told.
        shutdown: Who says when to stop.
        options: How members are kept safe.
    """

    def __init__(
        self,
        run: Run,
        members: Sequence[int],
        workers: int,
        strategy: str,
        monitor: Monitor,
        shutdown: GracefulShutdown,
        options: TrainingOptions,
    ):
        self._run, self._shutdown, self._options = run, shutdown, options
        self._outcomes = MemberOutcomes(run, members, monitor, options)
        self._strategy = strategy
        self._pending = list(members)
        gpus = range(len(tf.config.list_physical_devices("GPU")))
        tf.config.set_visible_devices([], "GPU")  # they are the workers'
        self._free_shares = partition_devices(workers, usable_cores(), gpus)
        self._running: list[_Worker] = []
        self._exclusive_members: set[int] = set()  # those that want the whole machine
        self._stop_time: float | None = None

    def train(self) -> dict[int, CommitteeError]:
        """Trains all, and returns the errors of those that could not be.

        Raises:
            Stopped: If asked to; every running member was saved.
            CommitteeError: If a worker says that the recipe, the data, the run folder or the disk is at fault, which
                would befall the others, too; they were saved.
        """
        try:
            with self._shutdown.mask_signals():
                while self._pending or self._running:
                    if self._shutdown.requested or self._outcomes.fatal_error:
                        self._stop_all()
                    self._start_ready()
                    self._receive()
                    self._poll()
        finally:
            for worker in self._running:
                worker.process.kill()
        if self._outcomes.fatal_error:
            raise self._outcomes.fatal_error
        self._shutdown.check()
        return self._outcomes.failures

    def _start_ready(self) -> None:
        while self._pending and self._free_shares:
            exclusive = self._exclusive_members & {self._pending[0], *(worker.index for worker in self._running)}
            if exclusive and self._running:
                return
            self._start(self._pending.pop(0), self._free_shares.pop(0))

    def _start(self, index: int, share: DeviceShare) -> None:
        cores = usable_cores() if index in self._exclusive_members else share.cores
        reader, writer = os.pipe()
        task_spec = {
            "run": str(self._run.path),
            "index": index,
            "strategy": self._strategy,
            "threads": len(cores),
            "settings": dataclasses.asdict(self._options),
            "messages": writer,
        }
        process = self._spawn(index, task_spec, _worker_environment(share))
        os.close(writer)
        if hasattr(os, "sched_setaffinity"):  # before it has any threads, which inherit it
            os.sched_setaffinity(process.pid, cores)
        now = time.monotonic()
        self._running.append(_Worker(index, share, process, reader, now, now))
        self._outcomes.on_start(index, pid=process.pid)

    def _spawn(self, index: int, task_spec: dict[str, Any], environment: dict[str, str]) -> subprocess.Popen:
        log = self._run.log_path(index)
        with translate_os_errors(log):
            log.parent.mkdir(exist_ok=True)
            with open(log, "ab") as file:
                return subprocess.Popen(
                    [sys.executable, "-m", "keras_committee.training.worker", json.dumps(task_spec)],
                    stdin=subprocess.PIPE,  # never written to: its end tells the worker that the parent is gone
                    stdout=file,
                    stderr=file,
                    pass_fds=(task_spec["messages"],),
                    start_new_session=True,  # Ctrl-C goes to the parent, who passes it on
                    env=environment,
                )

    def _receive(self) -> None:
        """Hears what is said within a second."""
        with selectors.DefaultSelector() as selector:
            for worker in self._running:
                selector.register(worker.pipe, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(timeout=1.0)]
        for worker in ready:
            data = os.read(worker.pipe, 65536)
            worker.heard = time.monotonic()
            *lines, worker.said = (worker.said + data).split(b"\n")
            for line in lines:
                self._handle_message(worker, json.loads(line))
            if not data:
                self._on_exit(worker)

    def _handle_message(self, worker: _Worker, message: dict[str, Any]) -> None:
        if "error" in message:
            worker.error = message["error"]
        else:
            self._outcomes.on_message(message)

    def _poll(self) -> None:
        """Kills those that say nothing for too long."""
        now = time.monotonic()
        for worker in self._running:
            if now - worker.last_seen > self._options.stall_timeout_seconds and not worker.stalled:
                worker.stalled = True
                worker.process.send_signal(signal.SIGUSR1)  # writes its stacks into its log
                time.sleep(_STACK_DUMP_SECONDS)
                worker.process.kill()
            elif self._stop_time and now - self._stop_time > _SHUTDOWN_SECONDS:
                worker.process.kill()

    def _on_exit(self, worker: _Worker) -> None:
        """Its pipe is closed: it has ended, or is about to."""
        os.close(worker.pipe)
        code, peak = _wait_for_exit(worker.process)
        worker.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess] - only now: it would end the worker
        self._running.remove(worker)
        self._free_shares.append(worker.share)
        cause = _exit_cause(worker, code, peak, self._options.stall_timeout_seconds)
        seconds = time.monotonic() - worker.started
        if self._outcomes.on_exit(worker.index, seconds, worker.error, cause, self._stop_time is not None, code=code):
            self._requeue(worker, code)

    def _requeue(self, worker: _Worker, code: int) -> None:
        """As the next one; but what ran out of memory beside others, alone."""
        if code == -signal.SIGKILL and not worker.stalled:
            self._exclusive_members.add(worker.index)
            self._pending.append(worker.index)
        else:
            self._pending.insert(0, worker.index)

    def _stop_all(self) -> None:
        """Asks every worker to save and end, once."""
        if self._stop_time is None:
            self._stop_time = time.monotonic()
            self._pending.clear()
            for worker in self._running:
                worker.process.send_signal(signal.SIGTERM)


def _worker_environment(share: DeviceShare) -> dict[str, str]:
    """The worker's environment. A GPU that several workers share must be taken bit by bit."""
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, share.gpus)), "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    return {**os.environ, **(gpus if share.gpus else {})}


def _wait_for_exit(process: subprocess.Popen) -> tuple[int, int]:
    """Waits for the end of a process; its exit code, and the most memory that it ever had, in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024


def _exit_cause(worker: _Worker, code: int, peak_rss: int, stall_seconds: float) -> str:
    name = f"member {worker.index}"
    if worker.stalled:
        return f"{name} said nothing for {stall_seconds:.0f} s and was killed (its stacks are in its log)"
    if code == -signal.SIGKILL:
        return f"{name} was killed (signal 9, peak RSS {peak_rss / 1e9:.1f} GB), likely for want of memory"
    if code < 0:
        return f"{name} was killed (signal {-code}, {signal.Signals(-code).name})"
    return f"{name} failed with exit code {code}"


_REPORTER_METHODS = (
    "on_resume",
    "on_steps_end",
    "on_epoch_end",
    "event",
    "note",
)  # what a worker may call of the monitor


class MemberOutcomes:
    """The journal of the attempts at each member: told by whoever starts processes, on this machine or on others.

    Args:
        run: The run folder, locked by the caller.
        members: The indices of the members to train.
        monitor: Who is told.
        options: How often a member is tried.
    """

    def __init__(self, run: Run, members: Sequence[int], monitor: Monitor, options: TrainingOptions):
        self._run, self._monitor, self._options = run, monitor, options
        self._attempts = dict.fromkeys(members, 0)
        self.failures: dict[int, CommitteeError] = {}
        self.fatal_error: CommitteeError | None = None  # what would befall the other members, too

    def on_start(self, index: int, **fields: Any) -> None:
        """Member `index` has a process; `fields` say which."""
        if not self._attempts[index]:
            self._monitor.on_member_begin(index)
        self._attempts[index] += 1
        self._run.append_event("member_started", member=index, **fields, attempt=self._attempts[index])

    def on_message(self, message: dict[str, Any]) -> None:
        """A worker called a method of its report."""
        if message["call"] in _REPORTER_METHODS:
            getattr(self._monitor, message["call"])(*message["args"], **message["fields"])

    def on_exit(
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
            self._run.append_event("member_finished", member=index, seconds=round(seconds, 1))
            self._monitor.on_member_end(index)
        elif error and error["kind"] != "Stopped":
            self._record_failure(index, getattr(errors, error["kind"])(error["text"]))
        elif stopping:
            self._run.append_event("member_stopped", member=index)
        else:
            return self._retry_or_fail(index, cause, **fields)
        return False

    def _retry_or_fail(self, index: int, cause: str, **fields: Any) -> bool:
        """Starts it again, a bounded number of times."""
        if self._attempts[index] > self._options.max_retries:
            log = self._run.log_path(index)
            self._record_failure(index, IncompleteError(f"{cause}, {self._attempts[index]} times. Its log: {log}"))
            return False
        self._monitor.event(index, "member_died", f"{cause}; it starts again from its last checkpoint", **fields)
        return True

    def _record_failure(self, index: int, error: CommitteeError) -> None:
        self.failures[index] = error
        self._monitor.event(index, "member_failed", f"error: {error}", error=str(error))
        self._monitor.on_member_end(index)
        if not isinstance(error, DivergedError | IncompleteError):
            self.fatal_error = self.fatal_error or error
