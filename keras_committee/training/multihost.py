"""Which hosts train a member together, what do they tell each other, and what if one of them is gone?

Every host gives the same command and differs in `TF_CONFIG` only. Each takes its part of every global batch; gradients,
losses and batch statistics are summed over all, so the weights are equal on all (checked as each epoch begins). The
chief, the first host of the cluster, alone owns the run folder: it validates, saves and logs; the others follow it
(`follower.py`). After each step the hosts exchange a few numbers, so that a signal to one, or a weight of the chief's
that is no number, ends the step of all. What each replica keeps for itself, the batch statistics of branches that
stochastic depth skips, is the chief's in checkpoints and in the model; training does not read it.

A process that dies closes its connections, and TensorFlow 2.20 mostly raises `UnavailableError` on the others within a
second; where it goes on waiting, the refused port tells after ten. One that stands still, or whose network is cut, is
found by asking every peer for its health: after `peer_seconds` without an answer, at most 1.5 times that, this process
tells who is gone and ends itself, as no thread can make a collective operation of another one return.

TensorFlow's server has no authentication, runs whatever it is sent, and listens on every interface of the host,
whatever the address in `TF_CONFIG`: use a private network, or close the ports to all but the hosts.
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

from keras_committee.errors import IncompleteError, RecipeError, RunError
from keras_committee.run import Run
from keras_committee.training.checkpoint import Checkpoints
from keras_committee.training.reporting import Settings
from keras_committee.training.signals import Interruption, Stopped

_EXAMPLE = """  On the first of two hosts, for example:
    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:4321", "10.0.0.2:4321"]}, "task": {"type": "worker", "index": 0}}'
  and on the second the same with "index": 1. Use a private network: TensorFlow's server knows no authentication."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The hosts of a cluster in order, the chief first.

    Args:
        tasks: Kind, number and address of each, such as `("worker", 0, "10.0.0.1:4321")`.
        index: The place of this one.
    """

    tasks: tuple[tuple[str, int, str], ...]
    index: int

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    @property
    def others(self) -> list[int]:
        return [place for place in range(len(self.tasks)) if place != self.index]

    def jobs(self) -> dict[str, int]:
        """How many tasks there are of each kind."""
        return dict(collections.Counter(kind for kind, _, _ in self.tasks))

    def name(self, place: int) -> str:
        """`worker 1 (10.0.0.2:4321)`."""
        kind, number, address = self.tasks[place]
        return f"{kind} {number} ({address})"

    def device(self, place: int) -> str:
        """`/job:worker/replica:0/task:1`, as TensorFlow calls it."""
        kind, number, _ = self.tasks[place]
        return f"/job:{kind}/replica:0/task:{number}"


def read_cluster() -> Cluster:
    """The cluster of the environment variable `TF_CONFIG`.

    Raises:
        RecipeError: If there is none, or it is not such a cluster of two hosts or more.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        raise RecipeError(f"strategy 'multiworker' needs the environment variable TF_CONFIG.\n{_EXAMPLE}")
    try:
        document = json.loads(text)
        tasks, task = _tasks(document["cluster"]), (document["task"]["type"], int(document["task"]["index"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _wrong(text, f"{type(error).__name__}: {error}") from error
    if len(tasks) < 2:
        raise _wrong(text, "it names fewer than two hosts; on one, use --strategy one or mirrored")
    if task not in (names := [(kind, number) for kind, number, _ in tasks]):
        raise _wrong(text, f"its task {task[0]} {task[1]} is not among its hosts")
    return Cluster(tasks, names.index(task))


def meet(cluster: Cluster, seconds: float) -> None:
    """Wait until every other host listens at its address, as this one does meanwhile. TensorFlow takes the port next.

    Raises:
        RecipeError: If the port of this host is taken.
        IncompleteError: If a host does not come within so many seconds.
    """
    until, absent = time.monotonic() + seconds, cluster.others
    try:
        listener = socket.create_server(("", _port(cluster.tasks[cluster.index][2])), backlog=128)
    except OSError as error:
        raise RecipeError(
            f"{cluster.name(cluster.index)} cannot listen at its port: {error.strerror}.\n"
            "  Give this host a free port in TF_CONFIG, or end the process that has it."
        ) from error
    with listener:
        while absent := [place for place in absent if not _listens(cluster.tasks[place][2])]:
            if time.monotonic() > until:
                names = ", ".join(cluster.name(place) for place in absent)
                raise IncompleteError(
                    f"{names} did not come within {seconds:g} s.\n  Give the same command on every host of TF_CONFIG."
                )
            time.sleep(0.1)


def refuses(address: str) -> bool:
    """Whether nobody listens there any more: the process is gone, not only silent."""
    try:
        _connect(address)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _port(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def _connect(address: str) -> None:
    """Knocks and leaves. Raises OSError where nobody opens within two seconds."""
    host = address.rsplit(":", 1)[0].strip("[]")
    socket.create_connection((host, _port(address)), timeout=2).close()


def _listens(address: str) -> bool:
    try:
        _connect(address)
    except OSError:
        return False
    return True


def _tasks(cluster: dict[str, Any]) -> tuple[tuple[str, int, str], ...]:
    if unknown := set(cluster) - {"chief", "worker"}:
        raise ValueError(f"a cluster has workers and perhaps a chief, no {', '.join(sorted(unknown))}")
    tasks = [(kind, number, cluster[kind][number]) for kind in sorted(cluster) for number in range(len(cluster[kind]))]
    for *_, address in tasks:
        host, port = address.rsplit(":", 1)
        if not host or not 0 < int(port) < 65536:
            raise ValueError(f"'{address}' is not host:port")
    return tuple(tasks)


def _wrong(text: str, why: str) -> RecipeError:
    shown = text if len(text) < 200 else f"{text[:200]}..."
    return RecipeError(f"TF_CONFIG does not describe a cluster: {why}.\n  Received: {shown}\n{_EXAMPLE}")


_WIDTH = 4  # numbers that a host tells at once: one shape, so one trace
_NO_MEMBER = -1
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_AFTER_END = 1.0  # for the chief to hear that it was heard
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


class Alone:
    """The only host: there is nobody to agree with."""

    is_chief, several = True, False

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_) -> None:
        pass

    def joined(self, strategy: tf.distribute.Strategy) -> None:
        """The strategy exists."""

    def begin_member(self, index: int, stop: Interruption) -> None:
        """The others are told which member is trained next."""

    def agree(self, step: int, data: str, model: keras.Model) -> None:
        """Everybody is at `step` of the same data, with the same weights."""

    def together(self, stop: Interruption, diverged: type[BaseException]) -> contextlib.AbstractContextManager:
        """What ends the block on one host ends it on all."""
        return contextlib.nullcontext()

    def from_chief(self, value: bool) -> bool:
        """What the chief says."""
        return value


class Team(Alone):
    """Several hosts, seen from one of them. Enter it before the strategy is made: it watches from then on.

    Args:
        cluster: Who they are.
        run: The run folder, for the step that is safe.
        settings: How long to wait for whom.

    Raises:
        IncompleteError: On entering, where a host does not come within `start_seconds`; on leaving, where one was lost.
            One that is silent for `peer_seconds` ends this process with the message and the exit code of that error.
    """

    several = True

    def __init__(self, cluster: Cluster, run: Run, settings: Settings):
        self._cluster, self._run, self._settings = cluster, run, settings
        self._ended = threading.Event()
        self._strategy: Any = None
        self._heard = time.monotonic()
        self.is_chief = cluster.is_chief

    def __enter__(self) -> "Team":
        meet(self._cluster, self._settings.start_seconds)
        # TensorFlow, too, waits until all have come: an hour, and with Python standing still.
        faulthandler.dump_traceback_later(self._settings.start_seconds, exit=True)
        eager_context.context().configure_coordination_service(
            "standalone",
            service_leader=self._cluster.device(0),
            cluster_register_timeout_in_ms=int(self._settings.start_seconds * 1000),
            heartbeat_timeout_in_ms=int(self._settings.peer_seconds * 2000),  # later than ours, which tells more
            shutdown_barrier_timeout_in_ms=int(self._settings.peer_seconds * 1000),
            coordinated_jobs=[CoordinatedJob(name=name, num_tasks=many) for name, many in self._cluster.jobs().items()],
        )
        return self

    def __exit__(self, _kind, error, _traceback) -> None:
        if error is None and self.is_chief:
            with contextlib.suppress(*_LOST):  # all is saved, and whoever has heard it may be gone already
                self._exchange(_NO_MEMBER)
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()
        if isinstance(error, _LOST):
            raise IncompleteError(self._lost(getattr(error, "message", ""))) from error

    def joined(self, strategy: tf.distribute.Strategy) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._strategy, self._heard = strategy, time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()
        local = len(strategy.extended.worker_devices)

        def share(table):
            replica = tf.distribute.get_replica_context()
            first = tf.equal(replica.replica_id_in_sync_group % local, 0)  # one replica speaks for its host
            return replica.all_reduce("SUM", table * tf.cast(first, table.dtype))

        self._sum = tf.function(lambda table: strategy.run(share, args=(table,)))

    def begin_member(self, index: int, stop: Interruption) -> None:
        self._exchange(index)
        with self.together(stop, Stopped):
            pass

    def next_member(self, stop: Interruption) -> int | None:
        """The member that the chief begins, or None after the last one; called by the others."""
        index = int(self._exchange(_NO_MEMBER)[0, 0])
        if index == _NO_MEMBER:
            time.sleep(_SECONDS_AFTER_END)
            return None
        with self.together(stop, Stopped):
            pass
        return index

    def agree(self, step: int, data: str, model: keras.Model) -> None:
        """Raises RunError, on all hosts, unless all are at one step and have equal weights and equal training data."""
        table = self._exchange(step, _digest([data.encode()]), _digest(map(_bytes, model.trainable_variables)))
        unequal = np.argwhere(table != table[0])
        if not len(unequal):
            return
        column = unequal[:, 1].min()
        other = unequal[unequal[:, 1] == column][0, 0]
        what, mend = [
            (f"is at step {table[other, 0]:.0f}, the chief at step {table[0, 0]:.0f}", "the same run folder"),
            ("has other training data than the chief", "the same files"),
            ("has other weights than the chief", "the same versions, and the same command again"),
        ][column]
        raise RunError(f"{self._cluster.name(other)} {what}.\n  Give every host {mend}. Run folder: {self._run.path}")

    @contextlib.contextmanager
    def together(self, stop: Interruption, diverged: type[BaseException]) -> Iterator[None]:
        error = None
        try:
            yield
        except (Stopped, diverged) as raised:
            error = raised
        astray = isinstance(error, diverged) and not isinstance(error, Stopped)
        table = self._exchange(stop.requested or 0, astray)
        if table[:, 1].any():
            raise error if astray and error else diverged(f"a step ({self._cluster.name(0)} says so)")
        if asked := int(table[:, 0].max()):
            stop.requested = stop.requested or signal.Signals(asked)
            raise Stopped

    def from_chief(self, value: bool) -> bool:
        return bool(self._exchange(value)[0, 0])

    def _exchange(self, *values: float) -> np.ndarray:
        """What each host says, float64 `(hosts, 4)`; all must call it, in the same order."""
        table = np.zeros((len(self._cluster.tasks), _WIDTH))
        table[self._cluster.index, : len(values)] = values
        total = self._strategy.experimental_local_results(self._sum(tf.constant(table)))[0].numpy()
        self._heard = time.monotonic()
        return total

    def _watch(self) -> None:
        """Ends the process when a host does not answer or does not go on."""
        settings, others = self._settings, self._cluster.others
        answered = dict.fromkeys(others, time.monotonic())
        while not self._ended.wait(min(_SECONDS_BETWEEN_LOOKS, settings.peer_seconds / 4)):
            now = time.monotonic()
            if now - self._heard > settings.stall_seconds:
                self._end(f"no host ended a step for {settings.stall_seconds:g} s.")
            for other in others:
                if refuses(self._cluster.tasks[other][2]) and not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
                    self._end(self._lost("its process has ended", other))
                if self._answers(other):
                    answered[other] = time.monotonic()
                elif time.monotonic() - answered[other] >= settings.peer_seconds and not self._ended.is_set():
                    self._end(self._lost(f"no answer for {settings.peer_seconds:g} s", other))

    def _answers(self, other: int) -> bool:
        wait = max(1, int(self._settings.peer_seconds / 4 * 1000))
        try:
            eager_context.context().check_collective_ops_peer_health(self._cluster.device(other), timeout_in_ms=wait)
        except tf.errors.OpError:
            return False
        return True

    def _lost(self, why: str, other: int | None = None) -> str:
        """What to tell of a lost host; which one it is stands in TensorFlow's message, where it knows."""
        told = [place for place in self._cluster.others if self._cluster.device(place) in why]
        place = told[0] if told and other is None else other
        if place is None and len(self._cluster.others) == 1:
            place = self._cluster.others[0]
        who = "another host" if place is None else self._cluster.name(place)
        cause = (why or "its connection is closed").split("aborted by: ")[-1].splitlines()[0]
        return f"{who} is gone: {cause}.\n  The same command on every host goes on from {self._safe()}."

    def _safe(self) -> str:
        unfinished = [folder for folder in (self._run.path / "members").glob("*/state") if folder.is_dir()]
        steps = [step for folder in unfinished for step in Checkpoints(folder, read_only=True).steps()]
        return f"step {max(steps)}" if steps else "the members that are finished"

    def _end(self, message: str) -> None:
        os.write(2, f"\nerror: {message}\n".encode())
        os._exit(IncompleteError.exit_code)


def team(strategy: str, run: Run, settings: Settings) -> Alone:
    """Those that train with this process under the strategy called so. Raises RecipeError for a wrong TF_CONFIG."""
    return Team(read_cluster(), run, settings) if strategy == "multiworker" else Alone()


def _digest(parts: Iterable[bytes]) -> int:
    """48 bits of a digest, which a float64 holds."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return int(digest.hexdigest()[:12], 16)


def _bytes(variable) -> bytes:
    return keras.ops.convert_to_numpy(variable).tobytes()
