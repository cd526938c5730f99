"""How long does a model take to answer on this machine?"""

import dataclasses
import random
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_committee.models.predict import Predictor

BATCH_SIZES = (1, 32)
REPEATS = 30
_WARM_UP_CALLS = 3  # the first call traces and compiles, the next ones fill caches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds from a batch of images in memory to its log probabilities in memory, in this process.

    Attributes:
        batch: Images asked about at once.
        median, lower, upper: Median and quartiles over the repeats, for the whole batch.
        repeats: Calls timed.
    """

    batch: int
    median: float
    lower: float
    upper: float
    repeats: int


def measure_latencies(
    models: Sequence[keras.Model],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[Latency]]:
    """The latency of several models, measured by turns: what else the machine does slows all of them.

    In each round every model answers one batch of every size, in an order drawn anew.

    Args:
        models: Functional models of one image of known size.
        batch_sizes: Sizes of the batches.
        repeats: Rounds after the warm-up.
        clock: Seconds since some moment.

    Returns:
        For each model the latency at each size of batch.

    Raises:
        ValueError: If the size of a model's image is not known, or nothing is to be timed.
    """
    if repeats < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(
            f"Time at least one repeat of batches of one image. Received: {repeats} of {list(batch_sizes)}"
        )
    calls = {
        (model_index, batch): _make_call(model, batch)
        for model_index, model in enumerate(models)
        for batch in dict.fromkeys(batch_sizes)
    }
    for call in calls.values():
        for _ in range(_WARM_UP_CALLS):
            call()
    seconds = _interleaved(calls, repeats, clock)
    return [[_summarize(batch, seconds[place, batch]) for batch in batch_sizes] for place in range(len(models))]


def _make_call(model, batch_size):
    shape = model.inputs[0].shape[1:]
    if None in shape:
        raise ValueError(f"Latency wants an image of known size. Received: {model.name!r} of {tuple(shape)}")
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *shape)).astype("float32")
    predictor = Predictor(model)
    return lambda: predictor([images])


def _interleaved(calls, repeats, clock):
    rng, seconds = random.Random(0), {key: [] for key in calls}
    for _ in range(repeats):
        for key in rng.sample(list(calls), len(calls)):
            start = clock()
            calls[key]()
            seconds[key].append(clock() - start)
    return seconds


def _summarize(batch_size, seconds):
    lower, median, upper = (float(each) for each in 1000 * np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Latency(batch=batch_size, median=median, lower=lower, upper=upper, repeats=len(seconds))
