"""How do the members of a committee train as tasks on a Ray cluster?

The driver, `keras-committee train RECIPE --ray ADDRESS`, owns the run folder: its lock, its journal, and what is shown.
Each member is a task in a process of its own on some node, with the CPUs and GPUs that it asks Ray for. Members report
over a queue; checkpoints go into the run folder, which all nodes must share.

Whoever reaches a Ray cluster can run code on it: it belongs into a private network, with `RAY_AUTH_MODE=token`.
"""

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, Self

import ray
import tensorflow as tf
from ray.exceptions import RayError

from keras_committee.errors import CommitteeError, RecipeError, ResourceError
from keras_committee.run import Run
from keras_committee.system_limits import usable_core_count
from keras_committee.training.interruption import Interruption
from keras_committee.training.monitoring import Monitor
from keras_committee.training.ray_tasks import Tasks
from keras_committee.training.report import Settings

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
