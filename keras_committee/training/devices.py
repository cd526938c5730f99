"""Devices of a member's training: distribution strategies, and the machine's share of each worker process."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import tensorflow as tf

from keras_committee.choices import STRATEGIES
from keras_committee.errors import RecipeError, ResourceError, pluralize
from keras_committee.system_limits import free_memory, usable_core_count

BYTES_PER_WORKER = 2 * 1024**3  # TensorFlow and CIFAR in memory take 1.2 GiB with a small network


def make_strategy(name: str, batch_size: int) -> tf.distribute.Strategy:
    """Return the distribution strategy called `name`, checked against the global batch size.

    Args:
        name: `"single"`: one device, the first GPU if there is one. `"mirrored"`: every GPU, or every logical CPU if
            there is no GPU, each with a copy of the weights. `"auto"`: mirrored with several GPUs, else single.
            `"multiworker"`: all GPUs, or the CPU, of each host that `TF_CONFIG` lists; see `multihost.py`.
        batch_size: Examples in a global batch; each replica takes an equal part of it.

    Raises:
        RecipeError: If the name is unknown, there are too few devices, or the batch cannot be divided equally.
    """
    if name not in STRATEGIES:
        raise RecipeError(f"unknown strategy '{name}'. Use one of: {', '.join(STRATEGIES)}.")
    if name == "multiworker":
        strategy = _multiworker_strategy()  # before anything else initializes the devices
        _check_divisible(batch_size, strategy.num_replicas_in_sync)
        return strategy
    gpus = tf.config.list_logical_devices("GPU")
    if name == "single" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    devices = tuple(device.name for device in gpus or tf.config.list_logical_devices("CPU"))
    if len(devices) < 2:
        raise RecipeError(
            f"strategy 'mirrored' needs at least two devices; TensorFlow sees only: {', '.join(devices)}.\n"
            "  Use --strategy single."
        )
    _check_divisible(batch_size, len(devices))
    return _mirrored_strategy(devices)


@contextlib.contextmanager
def translate_oom(index: int) -> Iterator[None]:
    """Raise ResourceError in place of TensorFlow's out-of-memory error of member `index`."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise ResourceError(
            f"member {index} does not fit into the memory of its device: {error.message.splitlines()[0]}\n"
            "  Its last checkpoint is kept. Use fewer --workers, a smaller batch size, or "
            "Recipe(gradient_accumulation_steps=...)."
        ) from error


def uses_xla(strategy: tf.distribute.Strategy) -> bool:
    """Return whether the training step is compiled with XLA.

    On CPU it made the step of WRN-16-1 slower than TensorFlow's own kernels (`benchmarks/training.py`), so it is never
    used there; Keras 3.15 does not use it there, either. On a single GPU Keras' default is kept (not measured by us);
    Keras turns XLA off with several replicas, and so does this.
    """
    return strategy.num_replicas_in_sync == 1 and "GPU" in strategy.extended.worker_devices[0]


def distribute(stream: Callable[..., tf.data.Dataset], strategy: tf.distribute.Strategy):
    """Return the global batches of a stream, split over the replicas: replica 0 takes the first rows, and so on.

    Every host computes its own rows of the stream, which is a pure function of the seed, and reads no other image.
    TensorFlow's own sharding, which gives each host other batches, is not used.

    Args:
        stream: Returns the stream, or part of its rows with `shard=(index, num_shards)`; see `Splits.stream`.
        strategy: Distribution strategy of the model.
    """
    if strategy.num_replicas_in_sync == 1:
        return stream()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy.experimental_distribute_dataset(stream())
    return strategy.distribute_datasets_from_function(lambda context: host_shard(stream, context))


def host_shard(stream: Callable[..., tf.data.Dataset], context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Return one host's rows of each global batch, as one batch for each of its replicas."""
    shard = stream(shard=(context.input_pipeline_id, context.num_input_pipelines))
    rows: int = shard.element_spec[0].shape[0]  # pyright: ignore
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    shard = shard.rebatch(rows // replicas, drop_remainder=True) if replicas > 1 else shard
    options = tf.data.Options()
    options.autotune.enabled = False  # as in `Splits.stream`
    return shard.prefetch(2).with_options(options)


def choose_num_workers(workers: int | Literal["auto"], members: int, parallel: int | None = None) -> tuple[int, str]:
    """Return how many members to train at once, and a sentence with the reason; empty unless `"auto"`.

    One member per GPU, or per core without GPUs, as long as each has 2 GiB of free memory: independent members
    need not wait for each other, and two small networks on a core each trained 1.4 times as many images as one on both
    (`benchmarks/training.py`).

    Args:
        workers: Largest number of members at once, or `"auto"`.
        members: Number of members to train.
        parallel: How many of them can be trained at once, see `training_run.num_parallel`; None is all.

    Raises:
        RecipeError: If `workers` is neither `"auto"` nor 1 or more.
    """
    parallel = members if parallel is None else parallel
    if workers == "auto":
        gpus, cores, memory = len(tf.config.list_physical_devices("GPU")), usable_core_count(), free_memory()
        max_workers_by_memory = max(1, memory // BYTES_PER_WORKER)
        num_workers = min(parallel, gpus) if gpus else min(parallel, cores, max_workers_by_memory)
        resources = (
            pluralize(gpus, "GPU")
            if gpus
            else f"{pluralize(cores, 'core')} and {memory / 1024**3:.0f} GiB of free memory"
        )
        return num_workers, (
            f"training {num_workers} of {pluralize(members, 'member')} at once, on {resources}; "
            "use --workers N to choose another number."
        )
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise RecipeError(f"workers must be 'auto' or an integer of 1 or more. Received: {workers!r}")
    return min(workers, parallel), ""


def enable_determinism() -> None:
    """Make TensorFlow's operations deterministic in this process: equal runs on equal machines give equal bits."""
    tf.config.experimental.enable_op_determinism()


@dataclasses.dataclass(frozen=True)
class DeviceShare:
    """The cores and GPUs of one worker."""

    cores: tuple[int, ...]
    gpus: tuple[int, ...]


def partition_devices(workers: int, cores: Sequence[int], gpus: Sequence[int]) -> list[DeviceShare]:
    """Return each worker's share of the machine; several workers share a device if there are more workers."""
    return [
        DeviceShare(_devices_for_worker(cores, worker_index, workers), _devices_for_worker(gpus, worker_index, workers))
        for worker_index in range(workers)
    ]


def _check_divisible(batch_size: int, num_devices: int) -> None:
    if batch_size % num_devices:
        raise RecipeError(
            f"a global batch of {batch_size} cannot be divided equally among {num_devices} devices.\n"
            f"  Use a batch size that is a multiple of {num_devices}, or --strategy single."
        )


@functools.cache
def _multiworker_strategy() -> tf.distribute.MultiWorkerMirroredStrategy:
    """Return the only multi-worker strategy of the process; its creation waits for all hosts."""
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:  # collective operations are configured before TensorFlow's runtime starts
        raise RecipeError(
            f"strategy 'multiworker' cannot start: {error}.\n"
            "  A recipe file must not compute with tensors on import: move that into its member or optimizer function."
        ) from error


@functools.cache
def _mirrored_strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Return the only mirrored strategy of the process on these devices.

    A second one on the same devices counts its collectives from the start again, and TensorFlow 2.20 then mistakes
    them for those of the first ("Shape mismatch in the collective instance").
    """
    return tf.distribute.MirroredStrategy(devices)


def _devices_for_worker(devices: Sequence[int], worker_index: int, workers: int) -> tuple[int, ...]:
    if not devices:
        return ()
    if workers > len(devices):
        return (devices[worker_index % len(devices)],)
    return tuple(devices[worker_index * len(devices) // workers : (worker_index + 1) * len(devices) // workers])
