"""Training of many members at once, each in a process of its own, so that no member's failure affects another.

The supervisor starts attempts at members through a backend: `LocalBackend` runs them as processes of this machine,
`ray_cluster.RayBackend` as tasks of a Ray cluster. An attempt whose process dies, or that sends no message for
`TrainingOptions.stall_timeout_seconds`, is repeated, and its member resumes from its last checkpoint.
"""

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any, BinaryIO, Protocol

import tensorflow as tf

from keras_committee import errors, huge_pages
from keras_committee.errors import CommitteeError, DivergedError, IncompleteError, pluralize
from keras_committee.files import translate_os_errors
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown
from keras_committee.system_limits import usable_cores
from keras_committee.training.devices import DeviceShare, partition_devices
from keras_committee.training.reporting import Monitor, TrainingOptions
from keras_committee.training_run import startable_members

_POLL_SECONDS = 1.0
_STACK_DUMP_SECONDS = 2.0  # for a stalled worker to write its stack traces
_SHUTDOWN_SECONDS = 60.0  # for a worker to finish its step and save after a stop request
_REPORTER_METHODS = ("on_resume", "on_phase", "on_steps_end", "on_epoch_end", "event", "note")  # of workers


@dataclasses.dataclass(eq=False)
class Attempt:
    """One attempt to train a member. It may wait for resources: `last_seen` is None until its process has started."""

    index: int
    started: float = dataclasses.field(default_factory=time.monotonic)
    last_seen: float | None = None
    killed: bool = False


@dataclasses.dataclass(frozen=True)
class Exit:
    """The end of an attempt.

    Args:
        error: `{"kind": ..., "text": ...}` as sent by the worker, or None.
        cause: What is known of the end of a worker that sent no error.
        fields: For the journal, if the worker died.
        out_of_memory: Whether the worker was probably killed for lack of memory.
    """

    error: dict[str, Any] | None
    cause: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    out_of_memory: bool = False


class Backend(Protocol):
    """Where attempts run.

    An attempt sends `{"started": {...}}` with fields for the journal once its process runs, then messages of a
    `PipeReporter`; its last event is an `Exit`, also after `kill`.
    """

    capacity: int  # maximum number of attempts at once

    def start(self, index: int, *, whole_machine: bool) -> Attempt:
        """Start an attempt at member `index`, if `whole_machine` with all cores."""
        ...

    def poll(self, timeout: float) -> list[tuple[Any, dict[str, Any] | Exit]]:
        """Return the new events as `(attempt, message or Exit)`, after at most `timeout` seconds."""
        ...

    def stop(self, attempt: Any) -> None:
        """Request an attempt to save and end."""
        ...

    def kill(self, attempt: Any, cause: str) -> None:
        """End an attempt that does not respond."""
        ...

    def close(self) -> None:
        """End all attempts at once."""
        ...


class Supervisor:
    """Trains members in attempts of a backend, and keeps the journal of the attempts.

    Args:
        run: The run folder, locked by the caller.
        recipe: Its recipe.
        members: Indices of the members to train.
        backend: Where attempts run.
        monitor: Receives progress and events.
        shutdown: Requests the end of training.
        options: How to protect the members.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        members: Sequence[int],
        backend: Backend,
        monitor: Monitor,
        shutdown: GracefulShutdown,
        options: TrainingOptions,
    ):
        self._run, self._recipe, self._backend, self._monitor = run, recipe, backend, monitor
        self._shutdown, self._options = shutdown, options
        self._pending, self._running = list(members), []
        self._num_attempts = dict.fromkeys(members, 0)
        self._exclusive_members: set[int] = set()  # they ran out of memory beside others, and now run alone
        self._failures: dict[int, CommitteeError] = {}
        self._fatal_error: CommitteeError | None = None
        self._stop_time: float | None = None

    def train(self) -> dict[int, CommitteeError]:
        """Train all members, and return the errors of those that failed.

        Raises:
            TrainingStopped: If `shutdown` was requested; every running member was saved.
            CommitteeError: If a member failed for a reason that affects every member (recipe, data, run folder or
                disk). Checkpoints are kept.
        """
        try:
            with self._shutdown.mask_signals():
                while self._running or self._startable():
                    if self._shutdown.requested or self._fatal_error:
                        self._stop_all()
                    self._start_ready()
                    for attempt, event in self._backend.poll(_POLL_SECONDS):
                        self._handle(attempt, event)
                    self._kill_unresponsive()
        finally:
            self._backend.close()
        if self._fatal_error:
            raise self._fatal_error
        self._shutdown.check()
        return self._failures

    def _stop_all(self) -> None:
        if self._stop_time is None:
            self._stop_time = time.monotonic()
            self._pending.clear()
            for attempt in self._running:
                self._backend.stop(attempt)

    def _start_ready(self) -> None:
        while len(self._running) < self._backend.capacity and (startable := self._startable()):
            index = startable[0]
            if self._running and self._exclusive_members & {index, *(attempt.index for attempt in self._running)}:
                return
            attempt = self._backend.start(index, whole_machine=index in self._exclusive_members)
            self._running.append(attempt)
            self._pending.remove(index)

    def _startable(self) -> list[int]:
        if not self._pending:  # the common case of each message: nothing to look up on the disk
            return []
        return startable_members(self._recipe, self._run.finished_members(), self._pending)

    def _handle(self, attempt: Attempt, event: dict[str, Any] | Exit) -> None:
        if isinstance(event, Exit):
            self._running.remove(attempt)
            self._on_exit(attempt, event)
            return
        attempt.last_seen = time.monotonic()
        if "started" in event:
            attempt.started = attempt.last_seen
            self._on_start(attempt.index, event["started"])
        elif event["call"] in _REPORTER_METHODS:
            getattr(self._monitor, event["call"])(*event["args"], **event["fields"])

    def _on_start(self, index: int, fields: dict[str, Any]) -> None:
        if not self._num_attempts[index]:
            self._monitor.on_member_begin(index)
        self._num_attempts[index] += 1
        self._run.append_event("member_started", member=index, **fields, attempt=self._num_attempts[index])

    def _on_exit(self, attempt: Attempt, exited: Exit) -> None:
        index, stopping = attempt.index, self._stop_time is not None
        if attempt.last_seen is None:
            if stopping:
                return
            self._on_start(index, {"host": None})
        if self._run.member(index).finished:
            seconds = round(time.monotonic() - attempt.started, 1)
            self._run.append_event("member_finished", member=index, seconds=seconds)
            self._monitor.on_member_end(index)
        elif exited.error and exited.error["kind"] != "TrainingStopped":
            self._fail(index, getattr(errors, exited.error["kind"])(exited.error["text"]))
        elif stopping:
            self._run.append_event("member_stopped", member=index)
        else:
            self._retry_or_fail(index, exited)

    def _retry_or_fail(self, index: int, exited: Exit) -> None:
        if (times := self._num_attempts[index]) > self._options.max_retries:
            log = self._run.log_path(index)
            self._fail(index, IncompleteError(f"{exited.cause}, {pluralize(times, 'time')}. Its log: {log}"))
            return
        text = f"{exited.cause}; restarting it from its last checkpoint"
        self._monitor.event(index, "member_died", text, **exited.fields)
        if exited.out_of_memory:
            self._exclusive_members.add(index)
            self._pending.append(index)
        else:
            self._pending.insert(0, index)

    def _fail(self, index: int, error: CommitteeError) -> None:
        self._failures[index] = error
        self._monitor.event(index, "member_failed", f"error: {error}", error=str(error))
        self._monitor.on_member_end(index)
        if not isinstance(error, DivergedError | IncompleteError):
            self._fatal_error = self._fatal_error or error

    def _kill_unresponsive(self) -> None:
        now, stall_seconds = time.monotonic(), self._options.stall_timeout_seconds
        for attempt in self._running:
            if attempt.killed or attempt.last_seen is None:
                continue
            if now - attempt.last_seen > stall_seconds:
                cause = f"sent no message for {stall_seconds:.0f} s and was killed"
            elif self._stop_time and now - self._stop_time > _SHUTDOWN_SECONDS:
                cause = f"did not end within {_SHUTDOWN_SECONDS:.0f} s and was killed"
            else:
                continue
            attempt.killed = True
            self._backend.kill(attempt, f"member {attempt.index} {cause}")


@dataclasses.dataclass(eq=False, kw_only=True)
class _Worker(Attempt):
    """An attempt as a process of this machine, and what was received from it."""

    share: DeviceShare
    process: subprocess.Popen
    pipe: int
    buffer: bytes = b""
    error: dict[str, Any] | None = None
    kill_cause: str = ""


class LocalBackend:
    """Attempts as processes of this machine, each with its share of the cores and GPUs.

    A worker writes each message as a line of JSON into a pipe. It ends when this process ends.

    Args:
        run: The run folder.
        workers: Maximum number of processes at once.
        strategy: Name of the strategy that each worker passes to `make_strategy`.
        options: Options of the training.
    """

    def __init__(self, run: Run, workers: int, strategy: str, options: TrainingOptions):
        self.capacity = workers
        self._run, self._strategy, self._options = run, strategy, options
        gpus = range(len(tf.config.list_physical_devices("GPU")))
        tf.config.set_visible_devices([], "GPU")  # the workers use them
        self._free_shares = partition_devices(workers, usable_cores(), gpus)
        self._workers: list[_Worker] = []
        self._started: list[_Worker] = []  # since the last poll

    def start(self, index: int, *, whole_machine: bool) -> _Worker:
        share = self._free_shares.pop(0)
        cores = usable_cores() if whole_machine else share.cores
        reader, writer = os.pipe()
        task_spec = {
            "run": str(self._run.path),
            "index": index,
            "strategy": self._strategy,
            "threads": len(cores),
            "options": dataclasses.asdict(self._options),
            "messages": writer,
        }
        process = self._spawn(index, task_spec, worker_environment(share))
        os.close(writer)
        bind_to_cores(process.pid, cores)
        worker = _Worker(index, share=share, process=process, pipe=reader)
        self._workers.append(worker)
        self._started.append(worker)
        return worker

    def poll(self, timeout: float) -> list[tuple[_Worker, dict[str, Any] | Exit]]:
        events: list[tuple[_Worker, dict[str, Any] | Exit]] = []
        events += [(worker, {"started": {"pid": worker.process.pid}}) for worker in self._started]
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.pipe, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(timeout=0 if self._started else timeout)]
        self._started.clear()
        for worker in ready:
            data = os.read(worker.pipe, 65536)
            *lines, worker.buffer = (worker.buffer + data).split(b"\n")
            for message in map(json.loads, lines):
                if "error" in message:
                    worker.error = message["error"]
                else:
                    events.append((worker, message))
            if not data:  # the process has ended, or is about to
                events.append((worker, self._reap(worker)))
        return events

    def stop(self, attempt: _Worker) -> None:
        _send_signal(attempt, signal.SIGTERM)

    def kill(self, attempt: _Worker, cause: str) -> None:
        attempt.kill_cause = f"{cause} (its stack traces are in its log)"
        _send_signal(attempt, signal.SIGUSR1)  # makes it write its stack traces into its log
        time.sleep(_STACK_DUMP_SECONDS)
        _send_signal(attempt, signal.SIGKILL)

    def close(self) -> None:
        for worker in self._workers:
            _send_signal(worker, signal.SIGKILL)

    def _spawn(self, index: int, task_spec: dict[str, Any], environment: dict[str, str]) -> subprocess.Popen:
        log = self._run.log_path(index)
        with translate_os_errors(log):
            log.parent.mkdir(exist_ok=True)
            with open(log, "ab") as file:
                return start_process("keras_committee.training.worker", task_spec, environment, file)

    def _reap(self, worker: _Worker) -> Exit:
        """Wait for the end of a worker, and return its resources."""
        os.close(worker.pipe)
        code, peak_rss = _wait_for_exit(worker.process)
        worker.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess] - only now: it would end the worker
        self._workers.remove(worker)
        self._free_shares.append(worker.share)
        killed_by_system = code == -signal.SIGKILL and not worker.kill_cause
        return Exit(worker.error, _exit_cause(worker, code, peak_rss), {"code": code}, out_of_memory=killed_by_system)


def start_process(
    module: str, task_spec: dict[str, Any], environment: dict[str, str], output: BinaryIO
) -> subprocess.Popen:
    """Start `python -m module SPEC`, which sends messages to the descriptor `task_spec["messages"]`.

    Its stdin closes when this process ends, which ends the other one.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(task_spec)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=(task_spec["messages"],),
        start_new_session=True,  # Ctrl-C reaches only this process, which stops the others
        env=environment,
    )


def bind_to_cores(pid: int, cores: Collection[int]) -> None:
    """Let a process that was just started run on these cores only, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):  # before it has any threads, which inherit it
        os.sched_setaffinity(pid, cores)


def worker_environment(share: DeviceShare) -> dict[str, str]:
    """Return a worker's environment.

    GPU memory grows on demand, as several workers may share a GPU. On a CPU, memory comes in huge pages.
    """
    if not share.gpus:
        return huge_pages.environment()
    visible = ",".join(map(str, share.gpus))
    return {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def _send_signal(worker: _Worker, number: signal.Signals) -> None:
    """Send a signal to a worker that `_reap` has not waited for; one that has ended ignores it.

    `Popen.send_signal` would wait for a worker that has just ended, and `_reap` would find no such process.
    """
    os.kill(worker.process.pid, number)


def _wait_for_exit(process: subprocess.Popen) -> tuple[int, int]:
    """Wait for the end of a process; return its exit code and its peak memory in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024


def _exit_cause(worker: _Worker, code: int, peak_rss: int) -> str:
    name = f"member {worker.index}"
    if worker.kill_cause:
        return worker.kill_cause
    if code == -signal.SIGKILL:
        return f"{name} was killed (signal 9, peak RSS {peak_rss / 1e9:.1f} GB), probably for lack of memory"
    if code < 0:
        return f"{name} was killed (signal {-code}, {signal.Signals(-code).name})"
    return f"{name} failed with exit code {code}"
