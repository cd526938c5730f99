"""How long does each member of a pool take for one image, on this machine?"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from keras_committee.evaluation.pool import Pool
from keras_committee.evaluation.votes import load_member
from keras_committee.models.predict import Predictor
from keras_committee.run import MemberFolder

_WARM_UP, _TIMES = 5, 30


def member_latencies(pool: Pool) -> list[float]:
    """Median milliseconds of each member of a pool for a batch of one image.

    A committee asks its members one after another, so its time is the sum.
    """
    models = [load_member(MemberFolder(each.run, each.index).model) for each in pool.members]
    images = np.random.default_rng(0).integers(0, 256, (1, *models[0].input_shape[1:])).astype(np.uint8)
    predictors = [Predictor(model) for model in models]
    return median_milliseconds([lambda each=each: each([images]) for each in predictors])


def median_milliseconds(calls: Sequence[Callable[[], object]], times: int = _TIMES) -> list[float]:
    """Of each call. They take turns, so that all meet the same load; the first turns do not count."""
    turns = [[_milliseconds(call) for call in calls] for _ in range(_WARM_UP + times)]
    return [statistics.median(each) for each in zip(*turns[_WARM_UP:], strict=True)]


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)
