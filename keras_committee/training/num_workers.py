"""How many members to train at once, and how long that takes: `train --workers auto` and `describe --measure`."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from keras_committee.data import Splits
from keras_committee.errors import ResourceError, RunError, pluralize
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.system_limits import free_memory, processor_name, usable_core_count
from keras_committee.training.devices import BYTES_PER_WORKER, choose_num_workers
from keras_committee.training.reporting import TrainingOptions
from keras_committee.training.throughput import Workload, describe_setting, measure_throughput
from keras_committee.training_run import load_training_data, num_parallel

_TIE = 1.05  # a setting that is faster by less than this is not better than the one without a measurement
_EVENT = "throughput_measured"
# What the fastest networks reach: a run is too short to be measured if they would finish it within the seconds below.
# Two cores with AMX train 1,650 images of 32x32 pixels per second of WRN-16-1; an H200 30,000.
_MAX_PIXELS_PER_SECOND_OF_CORE, _MAX_PIXELS_PER_SECOND_OF_GPU = 1e6, 5e7
_MIN_SECONDS = 180.0
_READING_SECONDS, _MAX_READING_STEPS = 2.0, 1_000_000
_VALIDATION_COST = 1 / 3  # a prediction, relative to a training step, which also computes two gradients
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the members of a run share.

    Attributes:
        cpu: Name of the model of the CPU.
        cores: Number of usable cores.
        gpus: Names of the models of the GPUs.
        max_workers: Number of processes that the free memory holds.
    """

    cpu: str
    cores: int
    gpus: tuple[str, ...]
    max_workers: int

    @classmethod
    def current(cls) -> "Machine":
        """Return this machine."""
        gpus = tf.config.list_physical_devices("GPU")
        names = tuple(str(tf.config.experimental.get_device_details(gpu).get("device_name")) for gpu in gpus)
        return cls(processor_name(), usable_core_count(), names, max(1, free_memory() // BYTES_PER_WORKER))

    def settings(self, members: int) -> list[int]:
        """Return the numbers of members at once that are worth a measurement; the first one is today's rule.

        Without GPUs: a member per core, half as many, and one on all cores. With GPUs: a member, two and four per GPU.
        """
        if self.gpus:
            per_gpu = min(members, len(self.gpus))
            limit = max(per_gpu, min(members, self.max_workers, self.cores))
            candidates = [per_gpu, min(2 * per_gpu, limit), min(4 * per_gpu, limit)]
        else:
            per_core = min(members, self.cores, self.max_workers)
            candidates = [per_core, max(1, per_core // 2), 1]
        return list(dict.fromkeys(candidates))

    def is_long(self, pixels: float) -> bool:
        """Return whether training on this number of pixels takes long enough to measure first."""
        if self.gpus:
            return pixels > _MIN_SECONDS * _MAX_PIXELS_PER_SECOND_OF_GPU * len(self.gpus)
        return pixels > _MIN_SECONDS * _MAX_PIXELS_PER_SECOND_OF_CORE * self.cores

    def as_json(self) -> dict[str, Any]:
        """Return what a measurement depends on."""
        return {"cpu": self.cpu, "cores": self.cores, "gpus": list(self.gpus)}


def choose_measured(
    run: Run,
    recipe: Recipe,
    splits: Splits,
    members: list[int],
    strategy: str,
    options: TrainingOptions,
) -> tuple[int, str]:
    """Return how many of the members to train at once on this machine, and a sentence with the reason.

    The fastest number is measured if there is a choice and the run is long enough, and written into the journal: the
    run resumes with it on equal machines. Otherwise, and where two are about equally fast, it is that of
    `devices.choose_num_workers`. The number of members at once does not change what a member learns.

    Args:
        run: The run folder, locked by the caller.
        recipe: Its recipe, with the precision in which it trains.
        splits: The data.
        members: Indices of the members to train.
        strategy: As for `devices.make_strategy`.
        options: Options of the training.

    Raises:
        CommitteeError: The error of the recipe that training would raise, too.
    """
    parallel = num_parallel(recipe, members)
    default, reason = choose_num_workers("auto", len(members), parallel)
    machine = Machine.current()
    settings = machine.settings(parallel)
    pixels = len(members) * recipe.epochs * len(splits.train) * math.prod(splits.train.image_shape[:2])
    key = {"machine": machine.as_json(), "precision": recipe.precision, "batch_size": splits.batch_size}
    rates, source = _recorded(run, key, settings), "measured before"
    if len(settings) == 1 or not (rates or (machine.is_long(pixels) and not run.smoke)):
        return default, reason
    if not rates:
        workload = Workload.of(run.recipe_file(), run.parameters(), recipe, splits, index=members[0])
        result, source = measure_throughput(workload, settings, strategy=strategy, options=options), "measured"
        for setting, failure in result.failures.items():
            _log.warning("warning: the measurement of %s failed: %s", describe_setting(setting), failure)
        rates = result.images_per_second
        if not rates:
            return default, reason
        recorded = {str(setting): round(rate, 1) for setting, rate in rates.items()}
        run.append_event(_EVENT, **key, images_per_second=recorded)
    chosen = fastest(rates, parallel, default)
    return chosen, explain_choice(rates, chosen, len(members), source)


def fastest(images_per_second: Mapping[int, float], members: int, default: int) -> int:
    """Return the number of members at once with which all members are trained first.

    Members that are left over train with their share of the machine: three members, two at once, take as long as four.

    Args:
        images_per_second: Images per second of all processes together, by the number of members at once; not empty.
        members: Number of members to train.
        default: The number to prefer unless another is faster by more than 5 %.
    """
    times = {setting: _relative_time(rate, setting, members) for setting, rate in images_per_second.items()}
    best = min(times, key=lambda setting: times[setting])
    return default if default in times and times[default] <= _TIE * times[best] else best


def explain_choice(images_per_second: Mapping[int, float], chosen: int, members: int, source: str) -> str:
    """Return the sentence with the measured rates and the choice.

    Args:
        images_per_second: As for `fastest`.
        chosen: The chosen number of members at once.
        members: Number of members to train.
        source: `"measured"` or `"measured before"`.
    """
    times = sorted(_relative_time(rate, setting, members) for setting, rate in images_per_second.items())
    remark = ""
    if len(times) > 1 and times[1] <= _TIE * times[0]:
        remark = " (about equally fast)"
    elif max(images_per_second.values()) > images_per_second[chosen]:
        remark = f" (the last of {members} members would train on a part of the machine)"
    return (
        f"training {chosen} of {pluralize(members, 'member')} at once; {source}: {format_rates(images_per_second)}"
        f"{remark}. Use --workers N to choose another number."
    )


def format_rates(images_per_second: Mapping[int, float]) -> str:
    """Return the measured rates as text, the highest first."""
    rates = sorted(images_per_second.items(), key=lambda item: -item[1])
    return ", ".join(f"{describe_setting(setting)} {rate:,.0f} images/s" for setting, rate in rates)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How long the training of a recipe takes on this machine.

    Attributes:
        minutes: Time of all members together.
        workers: The number of members at once.
        images_per_second: Measured throughput by number of members at once, as in `Throughput`.
        reading: Images per second that are read and augmented, in memory or from files.
    """

    minutes: float
    workers: int
    images_per_second: dict[int, float]
    reading: float | None


def estimate_training(
    workload: Workload, *, members: int, epochs: int, num_validation: int = 0, reading: float | None = None
) -> Estimate:
    """Measure a recipe and return how long its training takes on this machine, with `--workers auto`.

    It takes about 20 s, most of it the start of TensorFlow in other processes.

    Args:
        workload: What to measure. `Workload.of` makes it from loaded data; without them, give the size of the data.
        members: Number of members to train.
        epochs: Number of epochs.
        num_validation: Number of validation images.
        reading: Images per second of the input pipeline, see `measure_reading`; None counts no time for it.

    Raises:
        ResourceError: If nothing could be measured.
        CommitteeError: The error of the recipe that training would raise, too.

    Example:
        >>> file = RecipeFile.read("recipes/mine.py")
        >>> parameters = file.resolve([])
        >>> recipe = file.build(parameters)
        >>> workload = Workload(recipe_file=file, parameters=parameters, precision=recipe.precision, batch_size=64,
        ...                     image_shape=(64, 64, 3), num_classes=5, num_images=4_000)
        >>> estimate_training(workload, members=recipe.members, epochs=recipe.epochs).minutes
    """
    machine, (default, _) = Machine.current(), choose_num_workers("auto", members)
    result = measure_throughput(workload, machine.settings(members))
    rates = result.images_per_second
    if not rates:
        raise ResourceError(f"the training speed could not be measured: {next(iter(result.failures.values()))}")
    workers = fastest(rates, members, default)
    images = epochs * (workload.num_images + _VALIDATION_COST * num_validation)
    seconds = images * _relative_time(rates[workers], workers, members)
    if reading:
        # GPUs train while the CPU reads; on a CPU both need the same cores.
        reading_seconds = images * members / reading
        seconds = max(seconds, reading_seconds) if machine.gpus else seconds + reading_seconds
    return Estimate(seconds / 60, workers, rates, reading)


def estimate_recipe(recipe_file: RecipeFile, parameters: Mapping[str, Any], recipe: Recipe) -> Estimate:
    """Load the data of a recipe, measure it, and return how long its training takes on this machine.

    Args:
        recipe_file: The recipe file.
        parameters: All its parameters.
        recipe: The recipe that was built from them.

    Raises:
        CommitteeError: As `estimate_training`, and if the data are invalid.
    """
    splits = load_training_data(recipe)
    return estimate_training(
        Workload.of(recipe_file, parameters, recipe, splits),
        members=num_parallel(recipe, range(recipe.members)),
        epochs=recipe.epochs * min(recipe.snapshots, recipe.members),  # a chain trains as long as one member
        num_validation=len(splits.validation),
        reading=measure_reading(recipe, splits),
    )


def measure_reading(recipe: Recipe, splits: Splits) -> float:
    """Return how many training images per second this process reads and augments with all cores."""
    batches = iter(splits.stream(recipe.seed, 0, _MAX_READING_STEPS, batch_augment=recipe.batch_augment))
    next(batches)
    started, num_batches = time.monotonic(), 0
    while (seconds := time.monotonic() - started) < _READING_SECONDS or not num_batches:
        next(batches)
        num_batches += 1
    return num_batches * splits.batch_size / seconds


def _relative_time(rate: float, setting: int, members: int) -> float:
    """Return the seconds for one image of each member."""
    return math.ceil(members / setting) * setting / rate


def _recorded(run: Run, key: Mapping[str, Any], settings: Iterable[int]) -> dict[int, float]:
    """Return the throughputs of the settings as measured before under the same key; an empty dict if unknown."""
    try:
        events = run.events()
    except RunError:  # a damaged journal
        return {}
    rates: dict[int, float] = {}
    for event in events:
        if event.get("members_changed"):  # another network
            rates = {}
        if event["event"] == _EVENT and all(event.get(name) == value for name, value in key.items()):
            rates = {int(setting): rate for setting, rate in event["images_per_second"].items()}
    return {setting: rates[setting] for setting in settings} if set(settings) <= set(rates) else {}
