"""Which members are on a Ray cluster, what do they say, and what happens when a node is lost?

The driver gives the member of a lost node to another one, where it goes on from its last checkpoint; `claim.py` says
why the lost one can do no harm.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from keras_committee.errors import CommitteeError
from keras_committee.run import Run
from keras_committee.training.claim import Claim, release
from keras_committee.training.interruption import Interruption
from keras_committee.training.monitoring import Monitor
from keras_committee.training.outcomes import Outcomes
from keras_committee.training.ray_worker import train_task
from keras_committee.training.report import Settings

_END_SECONDS = 60.0  # for a member to end its step and save, when asked to stop


@dataclasses.dataclass
class _Task:
    """A task that was handed to Ray, and what is known of it. It may wait for resources: `heard` is None then."""

    index: int
    claim: Claim
    heard: float | None = None
    started: float = 0.0
    node: str = ""


class Tasks:
    """The members of one command as tasks of a cluster that was joined.

    Args:
        run: The run folder, locked by the caller.
        members: The indices of the members to train.
        many: How many at once.
        strategy: What each task gives to `make_strategy`.
        asked: What each task asks Ray for: `num_cpus` and `num_gpus`.
        monitor: Who is told.
        stop: Who says when to stop.
        settings: How members are kept safe.
    """

    def __init__(
        self,
        run: Run,
        members: Sequence[int],
        many: int,
        strategy: str,
        asked: dict[str, float],
        monitor: Monitor,
        stop: Interruption,
        settings: Settings,
    ):
        self._run, self._many, self._stop, self._settings = run, many, stop, settings
        self._order = {
            "run": str(run.path.resolve()),
            "strategy": strategy,
            "threads": max(1, int(asked["num_cpus"])),
            "settings": dataclasses.asdict(settings),
            "folder": os.getcwd(),
        }
        self._outcomes = Outcomes(run, members, monitor, settings)
        self._waiting = list(members)
        self._running: dict[ray.ObjectRef, _Task] = {}
        self._ending: float | None = None
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # dies with no other node
        # One process for each task: TensorFlow gives nothing back. Ray's own retries would not be in the journal.
        self._remote = ray.remote(max_calls=1)(train_task)
        self._options = {"max_retries": 0, "scheduling_strategy": "SPREAD", **asked}
        self._options["runtime_env"] = {"env_vars": _environment(asked)}

    def train(self) -> dict[int, CommitteeError]:
        """As `Supervisor.train`. Raises RayError where the cluster is lost, too."""
        try:
            with self._stop.deferred():
                while self._waiting or self._running:
                    if self._stop.requested or self._outcomes.fatal:
                        self._end_all()
                    self._submit_what_may()
                    self._listen()
                    self._look_after()
        finally:
            for reference, task in self._running.items():
                release(task.claim.folder)
                ray.cancel(reference, force=True)
        if self._outcomes.fatal:
            raise self._outcomes.fatal
        self._stop.check()
        return self._outcomes.failures

    def _submit_what_may(self) -> None:
        while self._waiting and len(self._running) < self._many:
            index = self._waiting.pop(0)
            claim = Claim.take(self._run.member(index))
            order = {**self._order, "index": index, "token": claim.token}
            remote = self._remote.options(name=f"member {index}", **self._options)
            self._running[remote.remote(order, self._queue)] = _Task(index, claim)

    def _listen(self) -> None:
        """Hears what was said within a second, then what has ended."""
        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        try:
            message = self._queue.get_nowait() if ended else self._queue.get(timeout=1.0)
            while True:
                self._hear(*message)
                message = self._queue.get_nowait()
        except Empty:
            pass
        for reference in ended:
            task = self._running.pop(reference)
            self._ended(task, *_result(reference, task.index))

    def _hear(self, token: str, message: dict[str, Any]) -> None:
        task = next((task for task in self._running.values() if task.claim.token == token), None)
        if task is None:  # of an attempt that was given up
            return
        task.heard = time.monotonic()
        if "started" in message:
            task.started, task.node = task.heard, message["node"]
            self._outcomes.started(task.index, **message["started"])
        else:
            self._outcomes.heard(message)

    def _look_after(self) -> None:
        """Gives up attempts that Ray, too, may not be able to end: whatever they still do, they save nothing more."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for reference, task in list(self._running.items()):
            if cause := self._lost(task, alive):
                ray.cancel(reference, force=True)
                self._ended(self._running.pop(reference), None, cause)

    def _lost(self, task: _Task, alive: set[str]) -> str:
        """Why an attempt is given up; empty where it is not."""
        now, name = time.monotonic(), f"member {task.index}"
        if task.heard is None:
            return ""
        if task.node not in alive:  # Ray's own word on the task waits for its connection to break, for minutes
            return f"{name} was lost: its node is dead, as Ray says"
        if now - task.heard > self._settings.stall_seconds:
            return f"{name} said nothing for {self._settings.stall_seconds:.0f} s and was ended"
        if self._ending and now - self._ending > _END_SECONDS:
            return f"{name} did not end within {_END_SECONDS:.0f} s"
        return ""

    def _ended(self, task: _Task, error: dict[str, Any] | None, cause: str) -> None:
        release(task.claim.folder)
        if task.heard is None:
            if self._ending:
                return
            self._outcomes.started(task.index, host=None)
        seconds = time.monotonic() - task.started
        if self._outcomes.ended(task.index, seconds, error, cause, self._ending is not None):
            self._waiting.insert(0, task.index)

    def _end_all(self) -> None:
        """Asks every member to save and end, once."""
        if self._ending is None:
            self._ending = time.monotonic()
            self._waiting.clear()
            for reference, task in self._running.items():
                task.claim.recall()
                if task.heard is None:
                    ray.cancel(reference)


def _environment(asked: dict[str, float]) -> dict[str, str]:
    """The environment of a task. A GPU that several share must be taken bit by bit."""
    ours = {name: value for name, value in os.environ.items() if name in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")}
    return ours | ({"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if asked["num_gpus"] else {"CUDA_VISIBLE_DEVICES": "-1"})


def _result(reference: ray.ObjectRef, index: int) -> tuple[dict[str, Any] | None, str]:
    """What the task said of its end, and what is known of the end of one that said nothing."""
    try:
        return ray.get(reference), f"member {index} ended without its model"
    except RayTaskError as error:  # its own error, with a traceback
        return None, f"member {index} failed: {str(error).strip().splitlines()[-1]}"
    except RayError as error:  # whose first sentence says what happened
        return None, f"member {index} was lost: {str(error).strip().split('. ')[0]}"
