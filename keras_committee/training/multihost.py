"""Training of one member on several hosts: the cluster, the agreement between its hosts, and lost hosts.

Every host runs the same command and differs in `TF_CONFIG` only. Each takes its part of every global batch; gradients,
losses and batch statistics are summed over all hosts, so the weights are equal on all (checked at the start of each
epoch). The chief, the first host of the cluster, alone owns the run folder: it validates, saves and logs; the others
follow it (`multihost_worker.py`). After each step the hosts exchange a few numbers, so that a signal to one host, or a
weight of the chief's that is not finite, ends the step on all hosts. State that each replica keeps for itself, the
batch statistics of branches that stochastic depth skips, is saved from the chief; training does not read it.

A process that dies closes its connections, and TensorFlow 2.20 usually raises `UnavailableError` on the others within a
second; if it keeps waiting, the refused port reveals the loss after ten. A process that hangs, or whose network is cut,
is found by polling the health of every peer: after `peer_timeout_seconds` without an answer, at most 1.5 times that,
this process names the lost host and ends, as no thread can make a collective operation of another one return.

TensorFlow's server has no authentication, executes whatever it receives, and listens on every interface of the host,
whatever the address in `TF_CONFIG`: use a private network, or close the ports to all other hosts.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context as eager_context

from keras_committee.checkpoints import Checkpoints
from keras_committee.errors import IncompleteError, RecipeError, RunError
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown, TrainingStopped
from keras_committee.training.reporting import TrainingOptions

_TF_CONFIG_EXAMPLE = """  On the first of two hosts, for example:
    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:4321", "10.0.0.2:4321"]}, "task": {"type": "worker", "index": 0}}'
  and on the second the same with "index": 1. Use a private network: TensorFlow's server has no authentication."""

_EXCHANGE_WIDTH = 4  # numbers that a host sends per exchange: one shape, so one trace
_NO_MEMBER = -1
_POLL_SECONDS = 5.0
_CLOSE_DELAY_SECONDS = 1.0  # for the chief to receive the result of the last exchange
_LOST_HOST_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The hosts of a cluster in order, the chief first.

    Args:
        tasks: Kind, number and address of each host, such as `("worker", 0, "10.0.0.1:4321")`.
        index: Index of this host.
    """

    tasks: tuple[tuple[str, int, str], ...]
    index: int

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    @property
    def other_indices(self) -> list[int]:
        return [index for index in range(len(self.tasks)) if index != self.index]

    def tasks_per_job(self) -> dict[str, int]:
        """Return the number of tasks of each kind."""
        return dict(collections.Counter(kind for kind, _, _ in self.tasks))

    def host_name(self, index: int) -> str:
        """Return the name for users, `worker 1 (10.0.0.2:4321)`."""
        kind, number, address = self.tasks[index]
        return f"{kind} {number} ({address})"

    def device(self, index: int) -> str:
        """Return TensorFlow's name, `/job:worker/replica:0/task:1`."""
        kind, number, _ = self.tasks[index]
        return f"/job:{kind}/replica:0/task:{number}"


def read_cluster() -> Cluster:
    """Return the cluster of the environment variable `TF_CONFIG`.

    Raises:
        RecipeError: If it is not set, or does not describe a cluster of two or more hosts.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        raise RecipeError(f"strategy 'multiworker' needs the environment variable TF_CONFIG.\n{_TF_CONFIG_EXAMPLE}")
    try:
        document = json.loads(text)
        tasks, task = _parse_tasks(document["cluster"]), (document["task"]["type"], int(document["task"]["index"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _invalid_tf_config(text, f"{type(error).__name__}: {error}") from error
    if len(tasks) < 2:
        raise _invalid_tf_config(text, "it has fewer than two hosts; on one, use --strategy single or mirrored")
    if task not in (names := [(kind, number) for kind, number, _ in tasks]):
        raise _invalid_tf_config(text, f"its task {task[0]} {task[1]} is not among its hosts")
    return Cluster(tasks, names.index(task))


def make_host_group(strategy: str, run: Run, options: TrainingOptions) -> "SingleHost":
    """Return the hosts that train under the strategy called `strategy`. Raises RecipeError for an invalid TF_CONFIG."""
    return HostGroup(read_cluster(), run, options) if strategy == "multiworker" else SingleHost()


class SingleHost:
    """Single-host implementation of `HostGroup`: every agreement is trivial."""

    is_chief, is_multi_host = True, False

    def __enter__(self) -> "SingleHost":
        return self

    def __exit__(self, *_) -> None:
        pass

    def on_strategy_created(self, strategy: tf.distribute.Strategy | None) -> None:
        """Start the agreement between the hosts, once the strategy exists."""

    def begin_member(self, index: int, shutdown: GracefulShutdown) -> None:
        """Announce to the other hosts which member is trained next."""

    def assert_in_sync(self, step: int, data_fingerprint: str, model: keras.Model) -> None:
        """Raise RunError, on all hosts, unless step, training data and weights are equal on all."""

    def in_sync(
        self, shutdown: GracefulShutdown, divergence_type: type[BaseException]
    ) -> contextlib.AbstractContextManager:
        """End the block on all hosts if a signal or an error of type `divergence_type` ends it on one."""
        return contextlib.nullcontext()

    def broadcast(self, value: bool) -> bool:
        """Return the value of the chief."""
        return value


class HostGroup(SingleHost):
    """Several hosts, seen from one of them. Enter it before creating the strategy: it detects lost hosts from then on.

    Args:
        cluster: The hosts.
        run: The run folder, for the step to resume from.
        options: Timeouts.

    Raises:
        IncompleteError: On entering, if a host does not start within `start_timeout_seconds`; on leaving, if one was
            lost. A host that does not answer for `peer_timeout_seconds` ends this process with the message and the exit
            code of that error.
    """

    is_multi_host = True

    def __init__(self, cluster: Cluster, run: Run, options: TrainingOptions):
        self._cluster, self._run, self._options = cluster, run, options
        self._closed = threading.Event()
        self._strategy: Any = None
        self._last_exchange = time.monotonic()
        self.is_chief = cluster.is_chief

    def __enter__(self) -> "HostGroup":
        _wait_for_hosts(self._cluster, self._options.start_timeout_seconds)
        # TensorFlow, too, waits until all hosts have started: for an hour, and with Python blocked.
        faulthandler.dump_traceback_later(self._options.start_timeout_seconds, exit=True)
        eager_context.context().configure_coordination_service(
            "standalone",
            service_leader=self._cluster.device(0),
            cluster_register_timeout_in_ms=int(self._options.start_timeout_seconds * 1000),
            # later than our own, whose message says more
            heartbeat_timeout_in_ms=int(self._options.peer_timeout_seconds * 2000),
            shutdown_barrier_timeout_in_ms=int(self._options.peer_timeout_seconds * 1000),
            coordinated_jobs=[
                CoordinatedJob(name=name, num_tasks=count) for name, count in self._cluster.tasks_per_job().items()
            ],
        )
        return self

    def __exit__(self, _kind, error, _traceback) -> None:
        if error is None and self.is_chief:
            with contextlib.suppress(*_LOST_HOST_ERRORS):  # all is saved, and the others may have ended already
                self._exchange(_NO_MEMBER)
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()
        if isinstance(error, _LOST_HOST_ERRORS):
            raise IncompleteError(self._lost_host_message(getattr(error, "message", ""))) from error

    def on_strategy_created(self, strategy: tf.distribute.Strategy) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._strategy, self._last_exchange = strategy, time.monotonic()
        threading.Thread(target=self._watch_peers, daemon=True).start()
        num_local_replicas = len(strategy.extended.worker_devices)

        def sum_over_hosts(table):
            replica = tf.distribute.get_replica_context()
            # The first replica of each host contributes the host's row.
            is_first = tf.equal(replica.replica_id_in_sync_group % num_local_replicas, 0)
            return replica.all_reduce("SUM", table * tf.cast(is_first, table.dtype))

        self._sum_over_hosts = tf.function(lambda table: strategy.run(sum_over_hosts, args=(table,)))

    def begin_member(self, index: int, shutdown: GracefulShutdown) -> None:
        self._exchange(index)
        with self.in_sync(shutdown, TrainingStopped):
            pass

    def next_member(self, shutdown: GracefulShutdown) -> int | None:
        """Return the member that the chief begins, or None after the last one. Called by all hosts but the chief."""
        index = int(self._exchange(_NO_MEMBER)[0, 0])
        if index == _NO_MEMBER:
            time.sleep(_CLOSE_DELAY_SECONDS)
            return None
        with self.in_sync(shutdown, TrainingStopped):
            pass
        return index

    def assert_in_sync(self, step: int, data_fingerprint: str, model: keras.Model) -> None:
        weights = _digest(keras.ops.convert_to_numpy(weight).tobytes() for weight in model.trainable_variables)
        table = self._exchange(step, _digest([data_fingerprint.encode()]), weights)
        unequal = np.argwhere(table != table[0])
        if not len(unequal):
            return
        column = unequal[:, 1].min()
        other = unequal[unequal[:, 1] == column][0, 0]
        problem, hint = [
            (f"is at step {table[other, 0]:.0f}, the chief at step {table[0, 0]:.0f}", "the same run folder"),
            ("has other training data than the chief", "the same files"),
            ("has other weights than the chief", "the same versions, and run the same command again"),
        ][column]
        raise RunError(
            f"{self._cluster.host_name(other)} {problem}.\n  Give every host {hint}. Run folder: {self._run.path}"
        )

    @contextlib.contextmanager
    def in_sync(self, shutdown: GracefulShutdown, divergence_type: type[BaseException]) -> Iterator[None]:
        error = None
        try:
            yield
        except (TrainingStopped, divergence_type) as raised:
            error = raised
        has_diverged = isinstance(error, divergence_type) and not isinstance(error, TrainingStopped)
        table = self._exchange(shutdown.requested or 0, has_diverged)
        if table[:, 1].any():
            raise error if has_diverged and error else divergence_type(f"a step on {self._cluster.host_name(0)}")
        if signal_number := int(table[:, 0].max()):
            shutdown.requested = shutdown.requested or signal.Signals(signal_number)
            raise TrainingStopped

    def broadcast(self, value: bool) -> bool:
        return bool(self._exchange(value)[0, 0])

    def _exchange(self, *values: float) -> np.ndarray:
        """Return the values of all hosts, float64 `(hosts, 4)`. All hosts must call it, in the same order."""
        table = np.zeros((len(self._cluster.tasks), _EXCHANGE_WIDTH))
        table[self._cluster.index, : len(values)] = values
        total = self._strategy.experimental_local_results(self._sum_over_hosts(tf.constant(table)))[0].numpy()
        self._last_exchange = time.monotonic()
        return total

    def _watch_peers(self) -> None:
        """End the process when a host does not answer or makes no progress."""
        options, last_healthy = self._options, dict.fromkeys(self._cluster.other_indices, time.monotonic())
        while not self._closed.wait(min(_POLL_SECONDS, options.peer_timeout_seconds / 4)):
            if time.monotonic() - self._last_exchange > options.stall_timeout_seconds:
                self._exit_process(f"no host finished a step for {options.stall_timeout_seconds:g} s.")
            for other in last_healthy:
                if _connection_refused(self._cluster.tasks[other][2]) and not self._closed.wait(_POLL_SECONDS):
                    self._exit_process(self._lost_host_message("its process has ended", other))
                if self._is_healthy(other):
                    last_healthy[other] = time.monotonic()
                timed_out = time.monotonic() - last_healthy[other] >= options.peer_timeout_seconds
                if timed_out and not self._closed.is_set():
                    cause = f"no answer for {options.peer_timeout_seconds:g} s"
                    self._exit_process(self._lost_host_message(cause, other))

    def _is_healthy(self, other: int) -> bool:
        timeout_ms = max(1, int(self._options.peer_timeout_seconds / 4 * 1000))
        try:
            eager_context.context().check_collective_ops_peer_health(
                self._cluster.device(other), timeout_in_ms=timeout_ms
            )
        except tf.errors.OpError:
            return False
        return True

    def _lost_host_message(self, reason: str, other: int | None = None) -> str:
        """Return the message about a lost host. If `other` is None, the `reason` of TensorFlow may mention it."""
        mentioned = [index for index in self._cluster.other_indices if self._cluster.device(index) in reason]
        if other is None and mentioned:
            other = mentioned[0]
        if other is None and len(self._cluster.other_indices) == 1:
            other = self._cluster.other_indices[0]
        host_name = "another host" if other is None else self._cluster.host_name(other)
        cause = (reason or "its connection is closed").split("aborted by: ")[-1].splitlines()[0]
        return (
            f"lost connection to {host_name}: {cause}.\n"
            f"  To resume from {self._resume_point()}, run the same command on every host."
        )

    def _resume_point(self) -> str:
        unfinished = [folder for folder in (self._run.path / "members").glob("*/state") if folder.is_dir()]
        steps = [step for folder in unfinished for step in Checkpoints(folder, read_only=True).steps()]
        return f"step {max(steps)}" if steps else "the finished members"

    def _exit_process(self, message: str) -> None:
        os.write(2, f"\nerror: {message}\n".encode())
        os._exit(IncompleteError.exit_code)


def _parse_tasks(cluster: dict[str, Any]) -> tuple[tuple[str, int, str], ...]:
    if unknown := set(cluster) - {"chief", "worker"}:
        raise ValueError(f"a cluster may have workers and a chief, but no {', '.join(sorted(unknown))}")
    tasks = [(kind, number, cluster[kind][number]) for kind in sorted(cluster) for number in range(len(cluster[kind]))]
    for *_, address in tasks:
        host, port = address.rsplit(":", 1)
        if not host or not 0 < int(port) < 65536:
            raise ValueError(f"'{address}' is not host:port")
    return tuple(tasks)


def _invalid_tf_config(text: str, reason: str) -> RecipeError:
    excerpt = text if len(text) < 200 else f"{text[:200]}..."
    return RecipeError(f"TF_CONFIG does not describe a cluster: {reason}.\n  Received: {excerpt}\n{_TF_CONFIG_EXAMPLE}")


def _wait_for_hosts(cluster: Cluster, timeout_seconds: float) -> None:
    """Wait until every other host listens at its address, while this one does. TensorFlow takes the port afterwards.

    Raises:
        RecipeError: If the port of this host is in use.
        IncompleteError: If a host does not start within `timeout_seconds`.
    """
    deadline, missing = time.monotonic() + timeout_seconds, cluster.other_indices
    try:
        listener = socket.create_server(("", _port(cluster.tasks[cluster.index][2])), backlog=128)
    except OSError as error:
        raise RecipeError(
            f"{cluster.host_name(cluster.index)} cannot listen at its port: {error.strerror}.\n"
            "  Give this host a free port in TF_CONFIG, or end the process that uses it."
        ) from error
    with listener:
        while missing := [index for index in missing if not _is_listening(cluster.tasks[index][2])]:
            if time.monotonic() > deadline:
                names = ", ".join(cluster.host_name(index) for index in missing)
                raise IncompleteError(
                    f"{names} did not start within {timeout_seconds:g} s.\n"
                    "  Run the same command on every host of TF_CONFIG."
                )
            time.sleep(0.1)


def _is_listening(address: str) -> bool:
    try:
        _probe(address)
    except OSError:
        return False
    return True


def _connection_refused(address: str) -> bool:
    """Return whether nothing listens at the address any more: the process has ended, and does not merely hang."""
    try:
        _probe(address)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _probe(address: str) -> None:
    """Connect and disconnect. Raises OSError if there is no connection within two seconds."""
    host = address.rsplit(":", 1)[0].strip("[]")
    socket.create_connection((host, _port(address)), timeout=2).close()


def _port(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def _digest(parts: Iterable[bytes]) -> int:
    """Return 48 bits of a SHA-256, which a float64 holds."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return int(digest.hexdigest()[:12], 16)
