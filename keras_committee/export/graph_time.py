"""Measured time of exported graphs on this machine, from which `select` predicts that of a cascade."""

import importlib.metadata
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee import aggregation
from keras_committee.errors import pluralize
from keras_committee.export import export_members
from keras_committee.export.export import save_committee
from keras_committee.progress import step, track
from keras_committee.selection import SelectedMember, Selection, Stage
from keras_committee.stage_time import TimedGraph
from keras_committee.system_limits import processor_name, usable_cores
from keras_committee.tfserving.session import Session

_REPEATS = 15
_WARM_UP_CALLS = 3
_ALL_CONTINUE = 2.0  # a threshold that no confidence reaches
_GROUP_SIZES = (2, 3, 4)  # and all members
_NUM_ROUTING_IMAGES = 512
_ROUTING_BATCH_SIZE = 128


def measure_stages(
    models: Sequence[keras.Model],
    architectures: Sequence[str],
    batch_size: int,
    precision: str,
    repeats: int = _REPEATS,
) -> list[TimedGraph]:
    """Measure exported graphs: each architecture alone, members side by side, and two stages.

    Each graph is saved as by `export`, loaded as in TF Serving, and called in interleaved rounds.

    Args:
        models: The members, as `export_members.load_exportable` loads them.
        architectures: The architecture of each.
        batch_size: The largest number of images per call.
        precision: `"float32"` or `"bfloat16"`, in which the graphs compute.
        repeats: Number of timed calls of each graph with each number of images.
    """
    first_models = dict(reversed(list(zip(architectures, models, strict=True))))
    sizes = sorted({size for size in (*_GROUP_SIZES, len(models)) if 1 < size <= len(models)})
    groups: list[tuple[tuple[str, ...], list[keras.Model], tuple[Stage, ...] | None]] = [
        ((architecture,), [model], None) for architecture, model in first_models.items()
    ]
    groups += [(tuple(architectures[:size]), list(models[:size]), None) for size in sizes]
    if len(models) > 1:
        stages = (Stage(members=1, threshold=_ALL_CONTINUE), Stage(members=2, threshold=None))
        groups.append((tuple(architectures[:2]), list(models[:2]), stages))
    rows = tuple(sorted({1, max(2, batch_size // 4), max(2, batch_size)}))
    committees = [(_selection(members, stages), members) for _, members, stages in groups]
    seconds = _time_committees(committees, rows, precision, repeats)
    return [
        TimedGraph(
            architectures=names[:1] if stages else names,
            second_stage=names[1:] if stages else (),
            rows=rows,
            milliseconds=tuple(1000 * float(np.median(seconds[index, count])) for count in rows),
        )
        for index, (names, _, stages) in enumerate(groups)
    ]


def measure_cascade(
    models: Sequence[keras.Model],
    sizes: Sequence[int],
    shares: Sequence[float],
    committee: Sequence[keras.Model],
    batch_size: int,
    precision: str,
    repeats: int = 2 * _REPEATS,
) -> tuple[float, float]:
    """Measure a cascade and a committee as exported graphs, in interleaved calls.

    The images are random, and the thresholds such that as many continue as the cascade has on real ones.

    Args:
        models: The members of the cascade in their order.
        sizes: Number of members at the end of each stage.
        shares: Fraction of the images that each stage but the last passes on to the next one.
        committee: The members of the committee.
        batch_size: Number of images per call.
        precision: `"float32"` or `"bfloat16"`, in which the graphs compute.
        repeats: Number of timed calls.

    Returns:
        Median milliseconds per image of the cascade and of the committee.
    """
    images = _random_images(models, max(_NUM_ROUTING_IMAGES, 4 * batch_size))
    thresholds = _thresholds(_predict_members(models, images, precision), sizes, shares)
    stages = tuple(Stage(members=size, threshold=each) for size, each in zip(sizes, (*thresholds, None), strict=True))
    committees = [(_selection(models, stages), models), (_selection(committee), committee)]
    seconds = _time_committees(committees, (batch_size,), precision, repeats, images)
    cascade_ms, committee_ms = (1000 * float(np.median(seconds[index, batch_size])) / batch_size for index in range(2))
    return cascade_ms, committee_ms


def describe_machine() -> dict[str, Any]:
    """Return what the measurements depend on: the processor, the cores of this process, and TensorFlow's version."""
    return {
        "processor": processor_name(),
        "cores": len(usable_cores()),
        "tensorflow": importlib.metadata.version("tensorflow"),
    }


def _selection(models: Sequence[keras.Model], stages: tuple[Stage, ...] | None = None) -> Selection:
    member = SelectedMember(run="", index=0, weights="", name="", parameters=0, mflops=None)
    classes = tuple(str(index) for index in range(models[0].outputs[0].shape[1]))
    return Selection(members=(member,) * len(models), head="geometric_mean", classes=classes, stages=stages)


def _time_committees(
    committees: Sequence[tuple[Selection, Sequence[keras.Model]]],
    rows: Sequence[int],
    precision: str,
    repeats: int,
    images: np.ndarray | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[tuple[int, int], list[float]]:
    """Return the seconds of the calls of each committee, by its index and the number of images."""
    text = f"building {pluralize(len(committees), 'graph')} to measure"
    sessions: list[tuple[Session, np.ndarray]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for index, (selection, models) in enumerate(track(committees, text, len(committees))):
            save_committee(selection, models, Path(temporary) / str(index), precision=precision)
            session = Session.load(Path(temporary) / str(index))
            sessions.append((session, _random_images(models, max(rows)) if images is None else images))
    seconds = {(index, count): [] for index in range(len(committees)) for count in rows}
    rng = random.Random(0)
    with step("measuring the time of the graphs", repeats) as update:
        for repeat in range(-_WARM_UP_CALLS, repeats):
            for index, count in rng.sample(list(seconds), len(seconds)):
                session, source = sessions[index]
                offset = repeat * count % max(1, len(source) - count)
                batch = source[offset : offset + count]
                start = clock()
                session.run("serving_default", {"image": batch})
                if repeat >= 0:
                    seconds[index, count].append(clock() - start)
            update(max(0, repeat + 1))
    for session, _ in sessions:
        session.close()
    return seconds


def _random_images(models: Sequence[keras.Model], count: int) -> np.ndarray:
    """Return float32 images of different brightness and contrast, so that confidences differ."""
    transforms = export_members.resolve_transforms(models, [None] * len(models))
    shape, rng = export_members.image_shape(models, transforms), np.random.default_rng(0)
    brightness, contrast = rng.uniform(0, 255, (count, 1, 1, shape[2])), rng.uniform(0, 127, (count, 1, 1, 1))
    pixels = brightness + contrast * rng.uniform(-1, 1, (count, *shape))
    return np.clip(pixels, 0, 255).astype(np.float32)


def _predict_members(models: Sequence[keras.Model], images: np.ndarray, precision: str) -> np.ndarray:
    """Return the log-probabilities of the exported members, `(examples, members, classes)`."""
    with tempfile.TemporaryDirectory() as folder:
        save_committee(_selection(models), models, Path(folder), precision=precision)
        with Session.load(folder) as session:
            batches = np.array_split(images, -(-len(images) // _ROUTING_BATCH_SIZE))
            outputs = [session.run("predict_members", {"image": batch})["member_probabilities"] for batch in batches]
    return np.log(np.maximum(np.concatenate(outputs), np.finfo(np.float32).tiny))


def _thresholds(log_probs: np.ndarray, sizes: Sequence[int], shares: Sequence[float]) -> list[float]:
    """Return for each stage but the last the threshold below which this share of the images that reach it lies."""
    reached, thresholds = np.ones(len(log_probs), bool), []
    for size, share in zip(sizes, shares, strict=False):
        probabilities = aggregation.combine("geometric_mean", log_probs[:, :size])
        confidence = aggregation.confidence("max_probability", probabilities, log_probs[:, :size])
        thresholds.append(float(np.quantile(confidence[reached], min(share, 1.0))))
        reached &= confidence < thresholds[-1]
    return thresholds
