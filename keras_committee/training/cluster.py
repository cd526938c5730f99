"""Which hosts are there, and which one is this? What `TF_CONFIG` says, and whether all have come."""

import collections
import dataclasses
import json
import os
import socket
import time
from typing import Any

from keras_committee.errors import IncompleteError, RecipeError

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
