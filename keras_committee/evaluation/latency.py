"""How long does a model take to answer on this machine?"""

import dataclasses
import random
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_committee.models.predict import Predictor

BATCHES = (1, 32)
REPEATS = 30
_WARM_UP = 3  # the first call traces and compiles, the next ones fill caches


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


def latency(
    models: Sequence[keras.Model],
    batches: Sequence[int] = BATCHES,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[Latency]]:
    """The latency of several models, measured by turns: what else the machine does slows all of them.

    In each round every model answers one batch of every size, in an order drawn anew.

    Args:
        models: Functional models of one image of known size.
        batches: Sizes of the batches.
        repeats: Rounds after the warm-up.
        clock: Seconds since some moment.

    Returns:
        For each model the latency at each size of batch.

    Raises:
        ValueError: If the size of a model's image is not known, or nothing is to be timed.
    """
    if repeats < 1 or not batches or min(batches) < 1:
        raise ValueError(f"Time at least one repeat of batches of one image. Received: {repeats} of {list(batches)}")
    calls = {
        (place, batch): _call(model, batch) for place, model in enumerate(models) for batch in dict.fromkeys(batches)
    }
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    seconds = _by_turns(calls, repeats, clock)
    return [[_summary(batch, seconds[place, batch]) for batch in batches] for place in range(len(models))]


def _call(model, batch):
    shape = model.inputs[0].shape[1:]
    if None in shape:
        raise ValueError(f"Latency wants an image of known size. Received: {model.name!r} of {tuple(shape)}")
    images = np.random.default_rng(0).integers(0, 256, (batch, *shape)).astype("float32")
    predictor = Predictor(model)
    return lambda: predictor([images])


def _by_turns(calls, repeats, clock):
    draw, seconds = random.Random(0), {key: [] for key in calls}
    for _ in range(repeats):
        for key in draw.sample(list(calls), len(calls)):
            start = clock()
            calls[key]()
            seconds[key].append(clock() - start)
    return seconds


def _summary(batch, seconds):
    lower, median, upper = (float(each) for each in 1000 * np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Latency(batch=batch, median=median, lower=lower, upper=upper, repeats=len(seconds))
