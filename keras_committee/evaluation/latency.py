"""Inference latency of models on this machine."""

import dataclasses
import random
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_committee.models.predict import Predictor
from keras_committee.progress import track

_BATCH_SIZES = (1, 32)
_REPEATS = 30
_WARM_UP_CALLS = 3  # the first call traces and compiles, the next ones fill caches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Time from a batch of images in memory to its log-probabilities in memory, in milliseconds, in this process.

    Attributes:
        batch: Batch size.
        median, lower, upper: Median and quartiles over the repeats, for the whole batch.
        repeats: Number of timed calls.
    """

    batch: int
    median: float
    lower: float
    upper: float
    repeats: int


def measure_latencies(
    models: Sequence[keras.Model],
    batch_sizes: Sequence[int] = _BATCH_SIZES,
    repeats: int = _REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[Latency]]:
    """Measure the latency of several models in interleaved rounds, so that other load affects all of them.

    In each round every model predicts one batch of every size, in random order.

    Args:
        models: Functional models with one image input of known size.
        batch_sizes: Batch sizes.
        repeats: Rounds after the warm-up.
        clock: Function that returns a time in seconds.

    Returns:
        For each model the latency at each batch size.

    Raises:
        ValueError: If the image size of a model is unknown, or there is nothing to time.
    """
    if repeats < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(
            f"repeats and batch sizes must be at least 1. Received: repeats={repeats}, batch_sizes={list(batch_sizes)}"
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
    return [[_summarize(batch, seconds[index, batch]) for batch in batch_sizes] for index in range(len(models))]


def _make_call(model: keras.Model, batch_size: int) -> Callable[[], np.ndarray]:
    shape = model.inputs[0].shape[1:]
    if None in shape:
        raise ValueError(f"Latency needs a model of known image size. Received: {model.name!r} of {tuple(shape)}")
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *shape)).astype("float32")
    predictor = Predictor(model)
    return lambda: predictor([images])


def _interleaved(calls: dict, repeats: int, clock: Callable[[], float]) -> dict[tuple[int, int], list[float]]:
    rng, seconds = random.Random(0), {key: [] for key in calls}
    for _ in track(range(repeats), "measuring the latency", repeats):
        for key in rng.sample(list(calls), len(calls)):
            start = clock()
            calls[key]()
            seconds[key].append(clock() - start)
    return seconds


def _summarize(batch_size: int, seconds: list[float]) -> Latency:
    lower, median, upper = (1000 * np.quantile(seconds, [0.25, 0.5, 0.75])).tolist()
    return Latency(batch=batch_size, median=median, lower=lower, upper=upper, repeats=len(seconds))
