"""A process that trains an untrained member and measures its steps: `python -m ...throughput_worker SPEC`."""

import ast
import dataclasses
import itertools
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from keras_committee import data
from keras_committee.data.images import InMemoryImages
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.training.devices import distribute, make_strategy, translate_oom
from keras_committee.training.reporting import TrainingOptions
from keras_committee.training.trainer import untrained_step
from keras_committee.training.worker import capture_error, configure_threads

_NUM_BATCHES = 2
_WARM_UP_STEPS = 3  # the first one traces the graph


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSplits(data.Splits):
    """A few batches of random images in place of the data.

    Args:
        num_images: Number of training images of the data.
    """

    num_images: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch over the data, which schedules depend on."""
        return self.num_images // self.batch_size


def random_splits(
    batch_size: int, image_shape: tuple[int, ...], num_classes: int, num_images: int, seed: int = 0
) -> RandomSplits:
    """Return random images of this shape with random labels."""
    rng, examples = np.random.default_rng(seed), _NUM_BATCHES * batch_size
    images = InMemoryImages(rng.integers(0, 256, (examples, *image_shape), np.uint8))
    split = data.Split(images=images, labels=rng.integers(0, num_classes, examples, np.int32))
    return RandomSplits(
        classes=tuple(map(str, range(num_classes))),
        train=split,
        validation=split,
        test=split,
        batch_size=batch_size,
        num_images=num_images,
    )


def make_repeated_step(recipe: Recipe, index: int, splits: data.Splits, strategy: str) -> Callable[[], object]:
    """Return a function that trains member `index` on a batch, one of few that are kept in memory.

    Of all epochs the middle one is chosen, for recipes in which layers or survival probabilities depend on the epoch.
    """
    tf_strategy = make_strategy(strategy, splits.batch_size)
    if recipe.class_weight is not None:  # by names that random images do not have; the step is the same
        recipe = dataclasses.replace(recipe, class_weight="balanced")
    step = untrained_step(recipe, index, splits, tf_strategy, recipe.epochs // 2)
    stream = partial(splits.stream, recipe.seed, 0, _NUM_BATCHES, batch_augment=recipe.batch_augment)
    batches = itertools.cycle(list(distribute(stream, tf_strategy)))
    # `numpy` waits for the results, as training does.
    return lambda: [result.numpy() for result in step(*next(batches))]


def steps_per_second(step: Callable[[], object], seconds: float) -> float:
    """Repeat a step for `seconds`, at least once, and return its rate."""
    started, num_steps = time.monotonic(), 0
    while True:
        step()
        num_steps += 1
        if (elapsed := time.monotonic() - started) >= seconds:
            return num_steps / elapsed


def main(spec: dict[str, Any]) -> int:
    """Measure a round for each line of stdin, until it is closed; return the exit code.

    Args:
        spec: The fields of `throughput.Workload`, with `parameters` as a Python literal and the path `recipe` and
            `name` of its file; and the number of `threads` (0 is TensorFlow's choice), `strategy`, `options`, the
            seconds of a round, and the descriptor for `messages`: `{"ready": true}`, then `{"steps_per_second": ...}`
            for each round, or `{"error": ...}` at the end.
    """
    rounds: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_stdin, args=(rounds,), daemon=True).start()
    pipe = os.fdopen(spec["messages"], "w", encoding="utf-8", buffering=1)

    def send(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")

    def measure() -> None:
        splits = random_splits(spec["batch_size"], spec["image_shape"], spec["num_classes"], spec["num_images"])
        with translate_oom(spec["index"]):
            step = make_repeated_step(_build_recipe(spec), spec["index"], splits, spec["strategy"])
            for _ in range(_WARM_UP_STEPS):
                step()
            send({"ready": True})
            while rounds.get():
                send({"steps_per_second": steps_per_second(step, spec["round_seconds"])})

    configure_threads(spec["threads"], TrainingOptions(**spec["options"]))
    if error := capture_error(measure):
        send({"error": error})
    return int(error is not None)


def _build_recipe(spec: dict[str, Any]) -> Recipe:
    file = RecipeFile.read(spec["recipe"], name=spec["name"])
    return dataclasses.replace(file.build(ast.literal_eval(spec["parameters"])), precision=spec["precision"])


def _read_stdin(rounds: "queue.SimpleQueue[bytes]") -> None:
    """Pass on the requests for rounds, and end this process when its stdin closes, which the other process holds."""
    for line in sys.stdin.buffer:
        rounds.put(line)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
