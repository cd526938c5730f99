"""Training on a Ray cluster, one task per member.

If a node is lost, the driver starts its member on another one, where it resumes from its last checkpoint; `lease.py`
describes how the lost attempt is fenced off.
"""

import contextlib
import dataclasses
import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import ray
import tensorflow as tf
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from keras_committee.errors import CommitteeError, RecipeError, ResourceError, pluralize
from keras_committee.files import translate_os_errors
from keras_committee.precision import Device, training_device
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown
from keras_committee.system_limits import usable_core_count
from keras_committee.training.lease import Lease, LeaseShutdown, release
from keras_committee.training.reporting import Monitor, TrainingOptions
from keras_committee.training.supervisor import Attempt, Exit, Supervisor
from keras_committee.training.worker import PipeReporter, capture_error, configure_threads, train_one

_CONNECT_TIMEOUT_SECONDS = 10.0  # Ray itself tries an address that does not answer for minutes
_LOCAL_OBJECT_STORE_BYTES = 100 * 2**20  # hardly anything is passed between processes


class RayCluster:
    """A Ray cluster, joined inside the `with` block.

    Args:
        address: `"auto"` for the cluster that this machine belongs to, `"host:port"` of its head, or `"local"` to start
            Ray on this machine alone, on 127.0.0.1 and without a dashboard.
        cpus: CPUs for each member; None divides the cores of a node among the members on it.
        gpus: GPUs for each member; None uses one if any node has one. A fraction shares a GPU.
    """

    def __init__(self, address: str, cpus: int | None = None, gpus: float | None = None):
        self._address, self._cpus, self._gpus = address, cpus, gpus

    def __enter__(self) -> Self:
        """Join the cluster.

        Raises:
            RecipeError: If the address has an unsupported form.
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
                "  --ray-address local starts Ray on this machine alone; without --ray-address members train on this "
                "machine without Ray."
            ) from error
        return self

    def __exit__(self, *_) -> None:
        ray.shutdown()

    def member_device(self) -> Device:
        """Return the device that a member's task has, on the node where Ray starts one.

        Raises:
            RecipeError: If no node has the resources of a member.
            ResourceError: If the connection to the cluster is lost.
        """
        resources = resources_per_member(_alive_nodes(), 1, self._cpus, self._gpus) | {"num_cpus": 1}
        task = ray.remote(max_calls=1)(training_device)  # one process: TensorFlow never frees its memory
        environment = {"env_vars": _task_environment(resources)}
        with _translate_ray_errors():
            return ray.get(task.options(runtime_env=environment, **resources).remote())

    def train(
        self,
        run: Run,
        recipe: Recipe,
        members: Sequence[int],
        workers: int,
        strategy: str,
        monitor: Monitor,
        shutdown: GracefulShutdown,
        options: TrainingOptions,
    ) -> dict[int, CommitteeError]:
        """Train `members`, at most `workers` at once, and return the errors of those that failed.

        Raises:
            RecipeError: If no node has the resources of a member.
            TrainingStopped: If `shutdown` was requested; every running member was saved.
            ResourceError: If the connection to the cluster is lost.
            CommitteeError: If a member failed for a reason that affects every member (recipe, data, run folder or
                disk). Checkpoints are kept.
        """
        tf.config.set_visible_devices([], "GPU")  # the members use them
        nodes = _alive_nodes()
        resources = resources_per_member(nodes, min(workers, len(members)), self._cpus, self._gpus)
        backend = RayBackend(run, workers, strategy, resources, options)
        counts = f"{pluralize(len(members), 'member')} on {pluralize(len(nodes), 'Ray node')}"
        monitor.note(f"{counts}, {_format_resources(resources)} per member")
        with _translate_ray_errors():
            return Supervisor(run, recipe, members, backend, monitor, shutdown, options).train()


@dataclasses.dataclass(eq=False, kw_only=True)
class _RayTask(Attempt):
    """An attempt as a task of a Ray cluster. It may wait for resources; its node is known once it runs."""

    lease: Lease
    reference: ray.ObjectRef
    node: str = ""


class RayBackend:
    """Attempts as tasks of a Ray cluster that this process has joined.

    Args:
        run: The run folder.
        workers: Maximum number of tasks at once.
        strategy: Name of the strategy that each task passes to `make_strategy`.
        resources: Resources of each task: `num_cpus` and `num_gpus`.
        options: Options of the training.
    """

    def __init__(self, run: Run, workers: int, strategy: str, resources: dict[str, float], options: TrainingOptions):
        self.capacity = workers
        self._run = run
        self._task_spec = {
            "run": str(run.path.resolve()),
            "strategy": strategy,
            "threads": max(1, int(resources["num_cpus"])),
            "options": dataclasses.asdict(options),
            "folder": os.getcwd(),
        }
        self._tasks: list[_RayTask] = []
        self._killed: list[tuple[_RayTask, Exit]] = []  # since the last poll
        # On the driver's node, as the queue is lost with its node.
        driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": driver_node})
        # One process per task: TensorFlow never frees its memory. Ray's own retries would not be in the journal.
        self._remote_train_task = ray.remote(max_calls=1)(train_task)
        self._ray_options = {"max_retries": 0, "scheduling_strategy": "SPREAD", **resources}
        self._ray_options["runtime_env"] = {"env_vars": _task_environment(resources)}

    def start(self, index: int, *, whole_machine: bool) -> _RayTask:
        lease = Lease.acquire(self._run.member(index))
        task_spec = {**self._task_spec, "index": index, "token": lease.token}
        remote = self._remote_train_task.options(name=f"member {index}", **self._ray_options)
        task = _RayTask(index, lease=lease, reference=remote.remote(task_spec, self._queue))
        self._tasks.append(task)
        return task

    def poll(self, timeout: float) -> list[tuple[_RayTask, dict[str, Any] | Exit]]:
        events: list[tuple[_RayTask, dict[str, Any] | Exit]] = []
        # Finished tasks first: all their messages are in the queue by then.
        finished = self._finished_tasks()
        for token, message in self._read_messages(0 if finished or self._killed else timeout):
            task = next((task for task in self._tasks if task.lease.token == token), None)
            if task is None:  # from a killed attempt
                continue
            task.node = message.get("node", task.node)
            events.append((task, message))
        for task in finished:
            self._remove(task)
            events.append((task, _task_result(task)))
        # Ray's own result of the task waits for its connection to break, for minutes.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for task in [task for task in self._tasks if task.node and task.node not in alive]:
            self.kill(task, f"member {task.index} was lost: its node is dead")
        events += self._killed
        self._killed.clear()
        return events

    def stop(self, attempt: _RayTask) -> None:
        attempt.lease.revoke()
        if attempt.last_seen is None:
            ray.cancel(attempt.reference)

    def kill(self, attempt: _RayTask, cause: str) -> None:
        """Give up an attempt that Ray may be unable to end: without its lease it saves nothing more."""
        ray.cancel(attempt.reference, force=True)
        self._remove(attempt)
        self._killed.append((attempt, Exit(None, cause)))

    def close(self) -> None:
        for task in list(self._tasks):
            self._remove(task)
            ray.cancel(task.reference, force=True)

    def _finished_tasks(self) -> list[_RayTask]:
        tasks = {task.reference: task for task in self._tasks}
        ready = ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0] if tasks else []
        return [tasks[reference] for reference in ready]

    def _read_messages(self, timeout: float) -> list[tuple[str, dict[str, Any]]]:
        """Return the messages in the queue, as `(token, message)`; wait up to `timeout` seconds for the first."""
        messages = []
        try:
            messages.append(self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait())
            while True:
                messages.append(self._queue.get_nowait())
        except Empty:
            return messages

    def _remove(self, task: _RayTask) -> None:
        release(task.lease.member_dir)
        self._tasks.remove(task)


def resources_per_member(
    nodes: Sequence[dict[str, float]], members: int, cpus: int | None, gpus: float | None
) -> dict[str, float]:
    """Return the resources of each member's task: `{"num_cpus": ..., "num_gpus": ...}`.

    Args:
        nodes: Resources of each node.
        members: Number of members that train at once.
        cpus: As in `RayCluster`.
        gpus: As in `RayCluster`.

    Raises:
        RecipeError: If no node has these resources.
    """
    gpus = float(any(node.get("GPU") for node in nodes)) if gpus is None else gpus
    eligible_nodes = [node for node in nodes if node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= (cpus or 1)]
    if not eligible_nodes:
        required = _format_resources({"num_cpus": cpus or 1, "num_gpus": gpus})
        available = "; ".join(
            _format_resources({"num_cpus": node.get("CPU", 0), "num_gpus": node.get("GPU", 0)}) for node in nodes
        )
        raise RecipeError(
            f"no node has the resources of a member: {required}. The nodes have: {available}.\n"
            "  Request less: --resources-per-member cpus=N,gpus=N."
        )
    if cpus is None:
        members_per_node = -(-members // len(eligible_nodes))
        cpus = min(_cpus_per_member(node, gpus, members_per_node) for node in eligible_nodes)
    return {"num_cpus": cpus, "num_gpus": gpus}


def train_task(task_spec: dict[str, Any], queue: Any) -> dict[str, str] | None:
    """Train a member in a Ray task, and return its error as `worker.capture_error` does.

    Args:
        task_spec: Member, lease and options, see `RayBackend.start`.
        queue: Queue of `(token, message)` to the driver.
    """
    run = Run(Path(task_spec["run"]))
    lease = Lease(run.member(task_spec["index"]), task_spec["token"])

    def write(message: dict[str, Any]) -> None:
        queue.put((lease.token, message))

    def train() -> None:
        lease.require_shared_folder()
        _redirect_output(run.log_path(task_spec["index"]))
        if os.path.isdir(task_spec["folder"]):  # a recipe may have data paths relative to it
            os.chdir(task_spec["folder"])
        node = ray.get_runtime_context().get_node_id()
        write({"started": {"host": socket.gethostname(), "pid": os.getpid()}, "node": node})
        options = TrainingOptions(**task_spec["options"])
        configure_threads(task_spec["threads"], options)
        shutdown = LeaseShutdown(lease)
        train_one(Run.open(run.path), task_spec["index"], task_spec["strategy"], PipeReporter(write), shutdown, options)

    try:
        error = capture_error(train)
    except Exception:
        traceback.print_exc()  # into the member's log
        raise
    if error:  # of an attempt that was given up, nothing else reports it
        print(f"pid {os.getpid()} on {socket.gethostname()} ends: {error['kind']}: {error['text']}", flush=True)
    return error


def _alive_nodes() -> list[dict[str, float]]:
    """Return the resources of each node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def _translate_ray_errors() -> Iterator[None]:
    """Raise ResourceError in place of an error of Ray's."""
    try:
        yield
    except RayError as error:
        raise ResourceError(
            f"lost the connection to the Ray cluster: {str(error).strip().splitlines()[0]}\n"
            "  The last checkpoints are kept. To resume, run the same command again once the cluster is back."
        ) from error


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local") and (not host or not port.isdecimal() or "/" in host):
        raise RecipeError(
            f"--ray-address expected auto, local or host:port. Received: '{address}'.\n"
            "  ray:// addresses are not supported: the driver writes the run folder, so it must run on a node itself."
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


def _task_environment(resources: dict[str, float]) -> dict[str, str]:
    """Return a task's environment. GPU memory grows on demand, as several tasks may share a GPU."""
    inherited = {name: value for name, value in os.environ.items() if name in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")}
    return inherited | (
        {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if resources["num_gpus"] else {"CUDA_VISIBLE_DEVICES": "-1"}
    )


def _task_result(task: _RayTask) -> Exit:
    try:
        return Exit(ray.get(task.reference), f"member {task.index} ended without its model")
    except RayTaskError as error:  # an exception of the task, with a traceback
        return Exit(None, f"member {task.index} failed: {str(error).strip().splitlines()[-1]}")
    except RayError as error:  # the first sentence describes what happened
        return Exit(None, f"member {task.index} was lost: {str(error).strip().split('. ')[0]}")


def _cpus_per_member(node: dict[str, float], gpus: float, members: int) -> int:
    """Return the cores of a node per member on it: as many members as its GPUs allow, else `members`."""
    members_per_node = int(node["GPU"] // gpus) if gpus else members
    return max(1, int(node["CPU"]) // members_per_node)


def _format_resources(resources: dict[str, float]) -> str:
    return f"{pluralize(resources['num_cpus'], 'CPU')} and {pluralize(resources['num_gpus'], 'GPU')}"


def _redirect_output(log: Path) -> None:
    """Append everything that this process prints to `log`."""
    with translate_os_errors(log):
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
