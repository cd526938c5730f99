"""Which members are on a Ray cluster, what do they say, and what happens when a node is lost?

The driver gives the member of a lost node to another one, where it goes on from its last checkpoint; `claim.py` says
why the lost one can do no harm.
"""

import dataclasses
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import ray
import tensorflow as tf
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from keras_committee.errors import CommitteeError, RecipeError, ResourceError
from keras_committee.files import writing
from keras_committee.run import Run
from keras_committee.system_limits import usable_core_count
from keras_committee.training.lease import Claim, ClaimInterruption, release
from keras_committee.training.reporting import Monitor, Settings
from keras_committee.training.signals import Interruption
from keras_committee.training.supervisor import Outcomes
from keras_committee.training.worker import Messages, outcome, prepare, train_one

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


_CONNECT_SECONDS = 10.0  # Ray itself tries an address that does not answer for minutes
_LOCAL_STORE = 100 * 2**20  # bytes; next to nothing is passed between processes


class Cluster:
    """A Ray cluster, joined inside the `with` block.

    Args:
        address: `"auto"` for the cluster that this machine belongs to, `"host:port"` of its head, or `"local"` to start
            a Ray on this machine alone, on 127.0.0.1 and without a dashboard.
        cpus: CPUs for each member; None divides the cores of a node among the members on it.
        gpus: GPUs for each member; None takes one where any node has one. A fraction shares a GPU.
    """

    def __init__(self, address: str, cpus: int | None = None, gpus: float | None = None):
        self._address, self._cpus, self._gpus = address, cpus, gpus

    def __enter__(self) -> Self:
        """Joins.

        Raises:
            RecipeError: If the address is of a kind that cannot work.
            ResourceError: If no cluster answers there.
        """
        _check_address(self._address)
        try:
            _init(self._address)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise ResourceError(
                f"cannot join a Ray cluster at '{self._address}': {str(error).strip().splitlines()[0]}\n"
                "  This machine must be a node of it: ray start --head here, or ray start --address=HEAD:6379, with "
                "the RAY_AUTH_MODE and the token of the others.\n"
                "  --ray local starts a Ray of its own; without --ray members train on this machine."
            ) from error
        return self

    def __exit__(self, *_) -> None:
        ray.shutdown()

    def train(
        self,
        run: Run,
        members: Sequence[int],
        workers: int,
        strategy: str,
        monitor: Monitor,
        stop: Interruption,
        settings: Settings,
    ) -> dict[int, CommitteeError]:
        """Trains `members`, at most `workers` at once, and returns the errors of those that could not be.

        Raises:
            RecipeError: If no node has what a member asks for.
            Stopped: If asked to; every running member was saved.
            ResourceError: If the cluster is lost.
            CommitteeError: If a member says that the recipe, the data, the run folder or the disk is at fault.
        """
        tf.config.set_visible_devices([], "GPU")  # they are the members'
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        asked = needs(nodes, min(workers, len(members)), self._cpus, self._gpus)
        tasks = Tasks(run, members, workers, strategy, asked, monitor, stop, settings)
        monitor.note(f"{len(members)} members on {len(nodes)} nodes of Ray, each with {_told(asked)}")
        try:
            return tasks.train()
        except RayError as error:
            raise ResourceError(
                f"the Ray cluster is lost: {str(error).strip().splitlines()[0]}\n"
                "  The last checkpoints are kept. The same command goes on from there, once there is a cluster again."
            ) from error


def needs(nodes: Sequence[dict[str, float]], members: int, cpus: int | None, gpus: float | None) -> dict[str, float]:
    """What each member asks Ray for: `{"num_cpus": ..., "num_gpus": ...}`.

    Args:
        nodes: The resources of each node.
        members: How many train at once.
        cpus: As in `Cluster`.
        gpus: As in `Cluster`.

    Raises:
        RecipeError: If no node has so much.
    """
    gpus = float(any(node.get("GPU") for node in nodes)) if gpus is None else gpus
    hosts = [node for node in nodes if node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= (cpus or 1)]
    if not hosts:
        there = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise RecipeError(
            f"no node has the {cpus or 1} CPUs and {gpus:g} GPUs that each member asks for. The nodes have: {there}.\n"
            "  Ask for less: --per-member cpus=N,gpus=N."
        )
    return {"num_cpus": cpus or min(_cpus(node, gpus, -(-members // len(hosts))) for node in hosts), "num_gpus": gpus}


def _cpus(node: dict[str, float], gpus: float, members: int) -> int:
    """The cores of a node for each of the members on it: as many as its GPUs take, else `members`."""
    there = int(node["GPU"] // gpus) if gpus else members
    return max(1, int(node["CPU"]) // there)


def _told(asked: dict[str, float]) -> str:
    return f"{asked['num_cpus']:g} CPUs and {asked['num_gpus']:g} GPUs"


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local") and (not host or not port.isdecimal() or "/" in host):
        raise RecipeError(
            f"--ray expected auto, local or host:port. Received: '{address}'.\n"
            "  ray:// is no address for this: the driver writes the run folder, so it must run on a node itself."
        )


def _init(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": usable_core_count(), "object_store_memory": _LOCAL_STORE}
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    elif address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    ray.init(address=address, **options)


def train_task(order: dict[str, Any], queue: Any) -> dict[str, str] | None:
    """Trains a member, and returns why it is not finished, as `worker.outcome` does.

    Args:
        order: What the driver asks for.
        queue: Takes `(token, message)`.
    """
    run = Run(Path(order["run"]))
    claim = Claim(run.member(order["index"]), order["token"])

    def write(message: dict[str, Any]) -> None:
        queue.put((claim.token, message))

    def train() -> None:
        claim.require_shared()
        _write_into(run.log(order["index"]))
        if os.path.isdir(order["folder"]):  # a recipe may name its data from there
            os.chdir(order["folder"])
        node = ray.get_runtime_context().get_node_id()
        write({"started": {"host": socket.gethostname(), "pid": os.getpid()}, "node": node})
        settings = Settings(**order["settings"])
        prepare(order["threads"], settings)
        stop = ClaimInterruption(claim)
        train_one(Run.open(run.path), order["index"], order["strategy"], Messages(write), stop, settings)

    try:
        error = outcome(train)
    except Exception:
        traceback.print_exc()  # into the log of the member
        raise
    if error:  # of a process that was given up, nobody else hears it
        print(f"pid {os.getpid()} on {socket.gethostname()} ends: {error['kind']}: {error['text']}", flush=True)
    return error


def _write_into(log: Path) -> None:
    """Lets all that this process prints end in `log`."""
    with writing(log):
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
