"""Step time of ResNet with stochastic depth against constant depth, on JAX and a GPU.

    python benchmarks/gpu/stochastic_depth.py                          # ResNet-110, time only
    python benchmarks/gpu/stochastic_depth.py --quick                  # a toy size, to try the script on a CPU

p_L = 0.5 with linear decay, batch 128, bfloat16. The ratio is corrected to the expected depth: by how much the step is
shorter for each block that is not run, at the blocks that run in the mean. Rounds of the modes are interleaved.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax.numpy as jnp
import keras
import numpy as np

from keras_committee import data, models
from keras_committee.layers import expected_depth, stochastic_depth_blocks
from keras_committee.models.building import dtype_policy_scope
from keras_committee.stacked.program import StackedProgram

BATCH, EXAMPLES = 128, 10_000
MODES = (None, "batch", "subset", "sample")


class Contender:
    """One network in training.

    Args:
        depth: Depth of the ResNet.
        mode: Mode of `StochasticDepth`, or None for constant depth.
        shape: Shape of the images.
        steps: Steps per turn.
    """

    def __init__(self, depth, mode, shape, steps):
        keras.utils.set_random_seed(0)
        options = {} if mode is None else {"survival": 0.5, "mode": mode}
        with dtype_policy_scope("mixed_bfloat16"):
            self.model = models.resnet(depth, classes=10, image_shape=shape, l2=1e-4, **options)
        self._program = StackedProgram(
            [self.model], keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True), data.pad_crop_flip(4), mode="sequential",
        )  # fmt: skip
        rng = np.random.default_rng(0)
        self._images = jnp.asarray(rng.integers(0, 256, (EXAMPLES, *shape), dtype=np.uint8))
        self._labels = jnp.asarray(rng.integers(0, 10, EXAMPLES, dtype=np.int32))
        self._steps, self._state, self._rng = steps, self._program.initial_state(), rng
        self._counts = [block.run_count for block in stochastic_depth_blocks(self.model)]
        started = time.perf_counter()
        self.turn()
        self.compile_seconds = time.perf_counter() - started

    def turn(self):
        """Return the seconds of a step, and the share of the blocks that ran."""
        indices = self._rng.integers(0, EXAMPLES, (1, self._steps, BATCH))
        draws = data.pad_crop_flip(4).draw(self._rng, self._steps * BATCH).reshape(1, self._steps, BATCH, 3)
        before = self._program.values_of(self._state, self._counts)
        started = time.perf_counter()
        self._state, *_ = self._program.train_epoch(self._state, self._images, self._labels, indices, draws)
        seconds = (time.perf_counter() - started) / self._steps
        runs = self._program.values_of(self._state, self._counts) - before
        return seconds, float(runs.mean() / self._steps) if self._counts else 1.0


def corrected_ratio(ratio, share, expected):
    """Return the ratio at the expected share of blocks, given that at the drawn share."""
    return 1.0 - (1.0 - ratio) * (1.0 - expected) / (1.0 - share) if share < 1.0 else ratio


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=110)
    parser.add_argument("--steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no mode begins")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    deadline, shape = time.monotonic() + arguments.budget, (32, 32, 3)
    if arguments.quick:
        arguments.depth, arguments.steps, arguments.rounds, shape = 8, 2, 2, (8, 8, 3)
    contenders = {}
    for mode in MODES:
        if time.monotonic() < deadline:
            contenders[mode] = Contender(arguments.depth, mode, shape, arguments.steps)
            print(
                f"  {mode or 'constant depth'}: compiled in {contenders[mode].compile_seconds:.0f} s", file=sys.stderr
            )
    turns = {mode: [] for mode in contenders}
    for _ in range(arguments.rounds):
        for mode, contender in contenders.items():
            turns[mode].append(contender.turn())
    rows, constant = [], np.median([seconds for seconds, _ in turns[None]])
    for mode, results in turns.items():
        seconds, share = np.median([seconds for seconds, _ in results]), np.mean([share for _, share in results])
        blocks = stochastic_depth_blocks(contenders[mode].model)
        expected = expected_depth(contenders[mode].model) / len(blocks) if blocks else 1.0
        ratio = seconds / constant
        row = {
            "name": f"ResNet-{arguments.depth}, {mode or 'constant depth'}", "median": float(seconds),
            "ratio": float(ratio), "share": float(share), "expected_share": float(expected),
            "corrected_ratio": float(corrected_ratio(ratio, share, expected)),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{row['name']:<32}{1e3 * seconds:>9.2f} ms{ratio:>7.3f}x at {share:.1%} of the blocks, "
            f"{row['corrected_ratio']:.3f}x at the expected {expected:.1%}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
