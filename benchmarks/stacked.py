"""Training speed of K members in one program, against one after another and against PyTorch.

    python benchmarks/stacked.py                                    # WRN-16-1 and -4, K = 1, 2, 4, 8; needs a GPU
    python benchmarks/stacked.py --quick                            # a toy size, to try the script on a CPU
    python benchmarks/stacked.py --torch-python V/bin/python        # a Python that has PyTorch
    python benchmarks/stacked.py --budget 150 --json stacked.json   # stops before a row that would begin after 150 s

Batch 128 per member, bfloat16, SGD with Nesterov momentum, crops and flips on the device. A row shows the images per
second of all members together: the median over interleaved rounds, half the interquartile range, the ratio to members
one after another, and the share of the machine's measured matrix product rate (3 x 2 x multiply-adds for each image).
Compilation is excluded; the table has its seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch has the GPU at the same time

import jax
import jax.numpy as jnp
import keras
import numpy as np
from interleaved.summary import summarize

from keras_committee import data, flops, models
from keras_committee.models.building import dtype_policy_scope
from keras_committee.stacked.program import StackedProgram

BATCH, EXAMPLES = 128, 10_000
WORKER = Path(__file__).with_suffix("") / "torch_worker.py"
SEQUENTIAL = "one after another"


class Stack:
    """K members in one program.

    Args:
        width: Widening factor of WRN-16.
        members: Number of members K.
        mode: Mode of `StackedProgram`.
        steps: Steps per call.
        options: Further arguments of `StackedProgram`.
    """

    def __init__(self, width, members, mode, steps, small=False, **options):
        self.members, self.steps = members, steps
        shape, depth = ((8, 8, 3), 10) if small else ((32, 32, 3), 16)
        built = []
        for index in range(members):
            keras.utils.set_random_seed(index)
            with dtype_policy_scope("mixed_bfloat16"):
                built.append(models.wide_resnet(depth, width, classes=10, image_shape=shape, l2=2.5e-4))
        self.mflops = flops.mflops(built[0])
        self._augment = data.pad_crop_flip(4)
        self._program = StackedProgram(
            built, keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True), self._augment, mode=mode, **options,
        )  # fmt: skip
        rng = np.random.default_rng(0)
        self._images = jnp.asarray(rng.integers(0, 256, (EXAMPLES, *shape), dtype=np.uint8))
        self._labels = jnp.asarray(rng.integers(0, 10, EXAMPLES, dtype=np.int32))
        count = members * steps * BATCH
        self._indices = rng.integers(0, EXAMPLES, (members, steps, BATCH), dtype=np.int32)
        self._draws = self._augment.draw(rng, count).reshape(members, steps, BATCH, 3)
        self._state = self._program.initial_state()
        started = time.perf_counter()
        self.run()
        self.compile_seconds = time.perf_counter() - started

    def run(self):
        """Return the images per second of one call."""
        started = time.perf_counter()
        self._state, losses, *_ = self._program.train_epoch(
            self._state, self._images, self._labels, self._indices, self._draws
        )
        assert np.isfinite(losses).all()
        return self.members * self.steps * BATCH / (time.perf_counter() - started)


class Torch:
    """One member in PyTorch; the rate of members one after another is the rate of one."""

    def __init__(self, python, width, steps, device):
        self.steps, started = steps, time.perf_counter()
        command = [python, str(WORKER), json.dumps({"width": width, "batch": BATCH, "device": device})]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("The PyTorch worker did not start.")
        self.compile_seconds = time.perf_counter() - started

    def run(self):
        print(self.steps, file=self._process.stdin, flush=True)
        return self.steps * BATCH / float(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=10)


def matrix_rate(size):
    """Return the measured rate of a bfloat16 matrix product in FLOP/s."""
    a, b = (jax.random.normal(jax.random.key(seed), (size, size), "bfloat16") for seed in (0, 1))
    product = jax.jit(lambda a, b: a @ b)
    product(a, b).block_until_ready()
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(10):
            result = product(a, b)
        result.block_until_ready()
        rounds.append(10 * 2 * size**3 / (time.perf_counter() - started))
    return statistics.median(rounds)


def contenders(arguments, width, members, deadline):
    """Yield name and contender of each row, as long as there is time to compile one."""
    small, steps = arguments.quick, arguments.steps
    yield SEQUENTIAL, lambda: Stack(width, 1, "sequential", steps, small)
    if arguments.torch_python:
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        yield "PyTorch", lambda: Torch(arguments.torch_python, width, steps, device)
    for count in members:
        for mode in arguments.modes:
            name, _, channels = mode.partition(":")
            options = {"packed_channels": int(channels)} if channels else {}
            yield (
                f"{count} members, {mode}",
                lambda count=count, name=name, options=options: Stack(width, count, name, steps, small, **options),
            )


def measure(arguments, width, peak, deadline):
    """Return the rows of one width."""
    running, failed = {}, []
    for name, start in contenders(arguments, width, arguments.members, deadline):
        if time.monotonic() > deadline:
            failed.append({"name": name, "width": width, "skipped": "the time budget is used up"})
            continue
        try:
            running[name] = start()
            print(f"  {name}: compiled in {running[name].compile_seconds:.0f} s", file=sys.stderr, flush=True)
        except Exception as error:  # one contender must not cost the others' rows
            failed.append({"name": name, "width": width, "skipped": f"{type(error).__name__}: {str(error)[:300]}"})
    rounds = {name: [] for name in running}
    for _ in range(arguments.rounds):
        for name, contender in running.items():
            rounds[name].append(contender.run())
    mflops = running[SEQUENTIAL].mflops
    rows = summarize(rounds, SEQUENTIAL)
    for row in rows:
        row |= {
            "width": width,
            "share_of_matrix_rate": row["median"] * 3 * mflops * 1e6 / peak,
            "compile_seconds": running[row["name"]].compile_seconds,
        }
    for contender in running.values():
        if isinstance(contender, Torch):
            contender.close()
    return rows + failed


def print_rows(rows):
    for row in rows:
        name = f"WRN-16-{row['width']}  {row['name']}"
        if "skipped" in row:
            print(f"{name:<44}{row['skipped']}")
            continue
        print(
            f"{name:<44}{row['median']:>10.0f} +- {row['half_iqr']:<8.0f}{row['ratio']:>7.2f}x"
            f"{row['share_of_matrix_rate']:>8.1%}{row['compile_seconds']:>7.0f} s",
            flush=True,
        )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    integers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--widths", type=integers, default=[1, 4])
    parser.add_argument("--members", type=integers, default=[1, 2, 4, 8])
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["vmap", "packed"])
    parser.add_argument("--steps", type=int, default=100, help="steps per call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no row begins")
    parser.add_argument("--torch-python", help="a Python that has PyTorch")
    parser.add_argument("--quick", action="store_true", help="a toy size that takes less than two minutes on a CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE after each width")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.widths, arguments.members, arguments.steps, arguments.rounds = [1], [2], 3, 2
    return arguments


def main():
    arguments = parse_arguments()
    deadline = time.monotonic() + arguments.budget
    device = jax.devices()[0].device_kind
    peak = matrix_rate(512 if arguments.quick else 8192)
    print(f"{device}, JAX {jax.__version__}, bfloat16 matrix product {peak / 1e12:.1f} TFLOP/s")
    rows = []
    for width in arguments.widths:
        rows += (new := measure(arguments, width, peak, deadline))
        print_rows(new)
        if arguments.json:
            document = {"machine": f"{device}, JAX {jax.__version__}", "matrix_rate": peak, "rows": rows}
            arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
