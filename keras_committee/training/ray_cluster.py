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
from keras_committee.files import translate_os_errors
from keras_committee.run import Run
from keras_committee.system_limits import usable_core_count
from keras_committee.training.lease import Lease, LeaseShutdown, release
from keras_committee.training.reporting import Monitor, TrainingOptions
from keras_committee.training.signals import GracefulShutdown
from keras_committee.training.supervisor import MemberOutcomes
from keras_committee.training.worker import PipeReporter, capture_error, configure_threads, train_one

_SHUTDOWN_SECONDS = 60.0  # for a member to end its step and save, when asked to stop


@dataclasses.dataclass
class _RayTask:
    """A task that was handed to Ray, and what is known of it. It may wait for resources: `last_seen` is None then."""

    index: int
    lease: Lease
    last_seen: float | None = None
    started: float = 0.0
    node: str = ""


class RayTasks:
    """The members of one command as tasks of a cluster that was joined.

    Args:
        run: The run folder, locked by the caller.
        members: The indices of the members to train.
        num_workers: How many at once.
        strategy: What each task gives to `make_strategy`.
        resources: What each task asks Ray for: `num_cpus` and `num_gpus`.
        monitor: Who is told.
        shutdown: Who says when to stop.
        options: How members are kept safe.
    """

    def __init__(
        self,
        run: Run,
        members: Sequence[int],
        num_workers: int,
        strategy: str,
        resources: dict[str, float],
        monitor: Monitor,
        shutdown: GracefulShutdown,
        options: TrainingOptions,
    ):
        self._run, self._num_workers, self._shutdown, self._options = run, num_workers, shutdown, options
        self._task_spec = {
            "run": str(run.path.resolve()),
            "strategy": strategy,
            "threads": max(1, int(resources["num_cpus"])),
            "settings": dataclasses.asdict(options),
            "folder": os.getcwd(),
        }
        self._outcomes = MemberOutcomes(run, members, monitor, options)
        self._pending = list(members)
        self._running: dict[ray.ObjectRef, _RayTask] = {}
        self._stop_time: float | None = None
        driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(
            actor_options={"num_cpus": 0, "scheduling_strategy": driver_node}
        )  # dies with no other node
        # One process for each task: TensorFlow gives nothing back. Ray's own retries would not be in the journal.
        self._remote_train_task = ray.remote(max_calls=1)(train_task)
        self._ray_options = {"max_retries": 0, "scheduling_strategy": "SPREAD", **resources}
        self._ray_options["runtime_env"] = {"env_vars": _task_environment(resources)}

    def train(self) -> dict[int, CommitteeError]:
        """As `Supervisor.train`. Raises RayError where the cluster is lost, too."""
        try:
            with self._shutdown.mask_signals():
                while self._pending or self._running:
                    if self._shutdown.requested or self._outcomes.fatal_error:
                        self._stop_all()
                    self._submit_ready()
                    self._receive()
                    self._poll()
        finally:
            for reference, task in self._running.items():
                release(task.lease.member_dir)
                ray.cancel(reference, force=True)
        if self._outcomes.fatal_error:
            raise self._outcomes.fatal_error
        self._shutdown.check()
        return self._outcomes.failures

    def _submit_ready(self) -> None:
        while self._pending and len(self._running) < self._num_workers:
            index = self._pending.pop(0)
            lease = Lease.acquire(self._run.member(index))
            task_spec = {**self._task_spec, "index": index, "token": lease.token}
            remote = self._remote_train_task.options(name=f"member {index}", **self._ray_options)
            self._running[remote.remote(task_spec, self._queue)] = _RayTask(index, lease)

    def _receive(self) -> None:
        """Hears what was said within a second, then what has ended."""
        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        try:
            message = self._queue.get_nowait() if ended else self._queue.get(timeout=1.0)
            while True:
                self._handle_message(*message)
                message = self._queue.get_nowait()
        except Empty:
            pass
        for reference in ended:
            task = self._running.pop(reference)
            self._on_exit(task, *_task_result(reference, task.index))

    def _handle_message(self, token: str, message: dict[str, Any]) -> None:
        task = next((task for task in self._running.values() if task.lease.token == token), None)
        if task is None:  # of an attempt that was given up
            return
        task.last_seen = time.monotonic()
        if "started" in message:
            task.started, task.node = task.last_seen, message["node"]
            self._outcomes.on_start(task.index, **message["started"])
        else:
            self._outcomes.on_message(message)

    def _poll(self) -> None:
        """Gives up attempts that Ray, too, may not be able to end: whatever they still do, they save nothing more."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for reference, task in list(self._running.items()):
            if cause := self._failure_reason(task, alive):
                ray.cancel(reference, force=True)
                self._on_exit(self._running.pop(reference), None, cause)

    def _failure_reason(self, task: _RayTask, alive: set[str]) -> str:
        """Why an attempt is given up; empty where it is not."""
        now, name = time.monotonic(), f"member {task.index}"
        if task.last_seen is None:
            return ""
        if task.node not in alive:  # Ray's own word on the task waits for its connection to break, for minutes
            return f"{name} was lost: its node is dead, as Ray says"
        if now - task.last_seen > self._options.stall_timeout_seconds:
            return f"{name} said nothing for {self._options.stall_timeout_seconds:.0f} s and was ended"
        if self._stop_time and now - self._stop_time > _SHUTDOWN_SECONDS:
            return f"{name} did not end within {_SHUTDOWN_SECONDS:.0f} s"
        return ""

    def _on_exit(self, task: _RayTask, error: dict[str, Any] | None, cause: str) -> None:
        release(task.lease.member_dir)
        if task.last_seen is None:
            if self._stop_time:
                return
            self._outcomes.on_start(task.index, host=None)
        seconds = time.monotonic() - task.started
        if self._outcomes.on_exit(task.index, seconds, error, cause, self._stop_time is not None):
            self._pending.insert(0, task.index)

    def _stop_all(self) -> None:
        """Asks every member to save and end, once."""
        if self._stop_time is None:
            self._stop_time = time.monotonic()
            self._pending.clear()
            for reference, task in self._running.items():
                task.lease.revoke()
                if task.last_seen is None:
                    ray.cancel(reference)


def _task_environment(resources: dict[str, float]) -> dict[str, str]:
    """The environment of a task. A GPU that several share must be taken bit by bit."""
    inherited = {name: value for name, value in os.environ.items() if name in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")}
    return inherited | (
        {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if resources["num_gpus"] else {"CUDA_VISIBLE_DEVICES": "-1"}
    )


def _task_result(reference: ray.ObjectRef, index: int) -> tuple[dict[str, Any] | None, str]:
    """What the task said of its end, and what is known of the end of one that said nothing."""
    try:
        return ray.get(reference), f"member {index} ended without its model"
    except RayTaskError as error:  # its own error, with a traceback
        return None, f"member {index} failed: {str(error).strip().splitlines()[-1]}"
    except RayError as error:  # whose first sentence says what happened
        return None, f"member {index} was lost: {str(error).strip().split('. ')[0]}"


_CONNECT_TIMEOUT_SECONDS = 10.0  # Ray itself tries an address that does not answer for minutes
_LOCAL_OBJECT_STORE_BYTES = 100 * 2**20  # bytes; next to nothing is passed between processes


class RayCluster:
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
            _init_ray(self._address)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise ResourceError(
                f"cannot join a Ray cluster at '{self._address}': {str(error).strip().splitlines()[0]}\n"
                "  This machine must be a node of it: ray start --head here, or ray start --address=HEAD:6379, with "
                "the RAY_AUTH_MODE and the token of the others.\n"
                "  --ray-address local starts a Ray of its own; without --ray-address members train on this machine."
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
        shutdown: GracefulShutdown,
        options: TrainingOptions,
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
        resources = resources_per_member(nodes, min(workers, len(members)), self._cpus, self._gpus)
        tasks = RayTasks(run, members, workers, strategy, resources, monitor, shutdown, options)
        monitor.note(f"{len(members)} members on {len(nodes)} nodes of Ray, each with {_format_resources(resources)}")
        try:
            return tasks.train()
        except RayError as error:
            raise ResourceError(
                f"the Ray cluster is lost: {str(error).strip().splitlines()[0]}\n"
                "  The last checkpoints are kept. The same command goes on from there, once there is a cluster again."
            ) from error


def resources_per_member(
    nodes: Sequence[dict[str, float]], members: int, cpus: int | None, gpus: float | None
) -> dict[str, float]:
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
    eligible_nodes = [node for node in nodes if node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= (cpus or 1)]
    if not eligible_nodes:
        available = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise RecipeError(
            f"no node has the {cpus or 1} CPUs and {gpus:g} GPUs that each member asks for. The nodes have: {available}.\n"
            "  Ask for less: --resources-per-member cpus=N,gpus=N."
        )
    return {
        "num_cpus": cpus
        or min(_cpus_per_member(node, gpus, -(-members // len(eligible_nodes))) for node in eligible_nodes),
        "num_gpus": gpus,
    }


def _cpus_per_member(node: dict[str, float], gpus: float, members: int) -> int:
    """The cores of a node for each of the members on it: as many as its GPUs take, else `members`."""
    members_per_node = int(node["GPU"] // gpus) if gpus else members
    return max(1, int(node["CPU"]) // members_per_node)


def _format_resources(resources: dict[str, float]) -> str:
    return f"{resources['num_cpus']:g} CPUs and {resources['num_gpus']:g} GPUs"


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local") and (not host or not port.isdecimal() or "/" in host):
        raise RecipeError(
            f"--ray-address expected auto, local or host:port. Received: '{address}'.\n"
            "  ray:// is no address for this: the driver writes the run folder, so it must run on a node itself."
        )


def _init_ray(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": usable_core_count(), "object_store_memory": _LOCAL_OBJECT_STORE_BYTES}
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    elif address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_SECONDS).close()
    ray.init(address=address, **options)


def train_task(task_spec: dict[str, Any], queue: Any) -> dict[str, str] | None:
    """Trains a member, and returns why it is not finished, as `worker.capture_error` does.

    Args:
        task_spec: What the driver asks for.
        queue: Takes `(token, message)`.
    """
    run = Run(Path(task_spec["run"]))
    lease = Lease(run.member(task_spec["index"]), task_spec["token"])

    def write(message: dict[str, Any]) -> None:
        queue.put((lease.token, message))

    def train() -> None:
        lease.require_shared_folder()
        _redirect_output(run.log_path(task_spec["index"]))
        if os.path.isdir(task_spec["folder"]):  # a recipe may name its data from there
            os.chdir(task_spec["folder"])
        node = ray.get_runtime_context().get_node_id()
        write({"started": {"host": socket.gethostname(), "pid": os.getpid()}, "node": node})
        options = TrainingOptions(**task_spec["settings"])
        configure_threads(task_spec["threads"], options)
        shutdown = LeaseShutdown(lease)
        train_one(Run.open(run.path), task_spec["index"], task_spec["strategy"], PipeReporter(write), shutdown, options)

    try:
        error = capture_error(train)
    except Exception:
        traceback.print_exc()  # into the log of the member
        raise
    if error:  # of a process that was given up, nobody else hears it
        print(f"pid {os.getpid()} on {socket.gethostname()} ends: {error['kind']}: {error['text']}", flush=True)
    return error


def _redirect_output(log: Path) -> None:
    """Lets all that this process prints end in `log`."""
    with translate_os_errors(log):
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
