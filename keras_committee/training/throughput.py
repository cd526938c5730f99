"""Measurement of the training speed of a recipe on this machine, with one or several members at once.

Processes with the threads, cores, GPUs and precision of real workers train an untrained member on random images in
memory. Nothing of a run is read or written. The start of TensorFlow and the tracing of the step take longer than the
measurement itself, and neither counts.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_committee import errors, progress
from keras_committee.data import Splits
from keras_committee.errors import ResourceError
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.system_limits import free_memory, usable_cores
from keras_committee.training import supervisor
from keras_committee.training.devices import BYTES_PER_WORKER, DeviceShare, partition_devices
from keras_committee.training.reporting import TrainingOptions

_ROUNDS = 5  # the median of the rounds counts: other work on the machine slows some of them down
_ROUND_SECONDS = 1.0
_TIMEOUT_SECONDS = 300.0  # for a process to start and to trace the step, and for a round


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A recipe to measure, and the size of its data.

    Args:
        recipe_file: The recipe file; the measured processes build the recipe from it.
        parameters: All its parameters.
        precision: Dtype policy of the members, or `"auto"`.
        batch_size: Images in a step.
        image_shape: Height, width, channels.
        num_classes: Number of classes.
        num_images: Number of training images, of which there is at least one batch.
        index: The member to measure.
    """

    recipe_file: RecipeFile
    parameters: Mapping[str, Any]
    precision: str
    batch_size: int
    image_shape: tuple[int, ...]
    num_classes: int
    num_images: int
    index: int = 0

    @classmethod
    def of(
        cls,
        recipe_file: RecipeFile,
        parameters: Mapping[str, Any],
        recipe: Recipe,
        splits: Splits,
        *,
        index: int = 0,
    ) -> "Workload":
        """Return the workload of a recipe that was built from `recipe_file`, and its loaded data."""
        return cls(
            recipe_file=recipe_file,
            parameters=parameters,
            precision=recipe.precision,
            batch_size=splits.batch_size,
            image_shape=tuple(splits.train.image_shape),
            num_classes=len(splits.classes),
            num_images=len(splits.train),
            index=index,
        )


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Result of a measurement.

    Attributes:
        images_per_second: Training images per second of all processes together, by the number of members that were
            trained at once.
        failures: The reason, by the same number, where the measurement failed.
    """

    images_per_second: dict[int, float]
    failures: dict[int, str] = dataclasses.field(default_factory=dict)


def measure_throughput(
    workload: Workload,
    settings: Sequence[int],
    *,
    strategy: str = "auto",
    options: TrainingOptions | None = None,
) -> Throughput:
    """Measure how many images per second this machine trains with different numbers of members at once.

    One member has all cores, as in `train --workers 1`; several have equal shares of the cores or GPUs, as in
    `train --workers N`, and run at the same time. On a CPU all settings take turns, so that other work on the machine
    slows down all of them. It takes about 10 s for two settings, and the start of TensorFlow.

    Args:
        workload: What to train.
        settings: Numbers of members at once.
        strategy: As for `devices.make_strategy`.
        options: Options of the training; only `deterministic` matters.

    Returns:
        The throughput of the settings in which the measurement succeeded, and the reasons of the others.

    Raises:
        CommitteeError: The error of the recipe that training would raise, too.
    """
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    take_turns = not num_gpus and sum(settings) * BYTES_PER_WORKER <= free_memory()
    result = Throughput({})
    spec, done = _spec(workload, strategy, options or TrainingOptions()), itertools.count(1)
    with progress.step("measuring the training speed", _ROUNDS * len(settings)) as update:
        for group in [settings] if take_turns else [[setting] for setting in settings]:
            try:
                _measure_group(group, spec, num_gpus, result, lambda: update(next(done)))
            except OSError as error:  # a full disk, or too many processes
                result.failures.update(dict.fromkeys(group, str(error)))
    return result


def describe_setting(setting: int) -> str:
    """Return the words for a number of members at once."""
    return "one member at a time" if setting == 1 else f"{setting} members side by side"


def _spec(workload: Workload, strategy: str, options: TrainingOptions) -> dict[str, Any]:
    """Return the task of each measured process, see `throughput_worker.main`."""
    fields = {field.name: getattr(workload, field.name) for field in dataclasses.fields(workload)}
    file = fields.pop("recipe_file")
    return {
        **fields,
        "parameters": repr(dict(workload.parameters)),  # JSON has no tuples
        "recipe": str(file.path.absolute()),
        "name": file.name,
        "strategy": strategy,
        "options": dataclasses.asdict(options),
        "round_seconds": _ROUND_SECONDS,
    }


def _measure_group(
    settings: Sequence[int],
    spec: dict[str, Any],
    num_gpus: int,
    result: Throughput,
    on_round_end: Callable[[], None],
) -> None:
    """Measure settings that take turns, and add their throughputs or failures to `result`."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="measurement-")))
        groups = {setting: stack.enter_context(_processes(setting, spec, folder, num_gpus)) for setting in settings}
        rounds = {setting: [] for setting in settings}
        for setting, processes in groups.items():
            with _record_failure(setting, result):
                for process in processes:
                    process.receive()  # it is ready
        for _ in range(_ROUNDS):
            for setting in [setting for setting in settings if setting not in result.failures]:
                with _record_failure(setting, result):
                    rounds[setting].append(_train_at_once(groups[setting]))
                on_round_end()
    for setting, rates in rounds.items():
        if setting not in result.failures:
            result.images_per_second[setting] = statistics.median(rates) * spec["batch_size"]


def _train_at_once(processes: Sequence["_Process"]) -> float:
    """Let the processes train for a round, and return their steps per second together."""
    for process in processes:
        process.start_round()
    return sum(process.receive()["steps_per_second"] for process in processes)


class _MeasurementError(Exception):
    """A measured process gave no result."""


@contextlib.contextmanager
def _record_failure(setting: int, result: Throughput) -> Iterator[None]:
    try:
        yield
    except (_MeasurementError, ResourceError, OSError) as error:  # OSError: the process has died
        result.failures[setting] = str(error)


@contextlib.contextmanager
def _processes(setting: int, spec: dict[str, Any], folder: Path, num_gpus: int) -> Iterator[list["_Process"]]:
    """Start the processes of a setting, and end them with the block."""
    processes: list[_Process] = []
    try:
        for share in partition_devices(setting, usable_cores(), range(num_gpus)):
            # A single member is trained by this process, with TensorFlow's own choice of threads.
            processes.append(_Process({**spec, "threads": len(share.cores) if setting > 1 else 0}, share, folder))
        yield processes
    finally:
        for process in processes:
            process.close()


class _Process:
    """A process of `throughput_worker`, bound to its share of the machine."""

    def __init__(self, spec: dict[str, Any], share: DeviceShare, folder: Path):
        self._pipe, writer = os.pipe()
        self._buffer = b""
        file, log = tempfile.mkstemp(dir=folder)
        self._log = Path(log)
        try:
            with os.fdopen(file, "wb") as output:
                self._process: subprocess.Popen = supervisor.start_process(
                    "keras_committee.training.throughput_worker",
                    {**spec, "messages": writer},
                    # Graph functions that TensorFlow converts are files in TMPDIR until Python ends.
                    {**supervisor.worker_environment(share), "TMPDIR": str(folder)},
                    output,
                )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(writer)
        if spec["threads"]:
            supervisor.bind_to_cores(self._process.pid, share.cores)

    def start_round(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(b"\n")
        stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            CommitteeError: The error that the process sent.
            _MeasurementError: If it ended, or sends nothing.
        """
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while b"\n" not in self._buffer:
            if not select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _MeasurementError(f"no result after {_TIMEOUT_SECONDS:.0f} s")
            data = os.read(self._pipe, 65536)
            if not data:
                raise _MeasurementError(self._exit_reason())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        if error := message.get("error"):
            raise getattr(errors, error["kind"])(error["text"])
        return message

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a round that was requested of a dead process
            self._process.stdin.close()
        os.close(self._pipe)

    def _exit_reason(self) -> str:
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if code > 0 and lines else f"the process ended with exit code {code}"
