"""How fast does a committee train? Stock Keras and PyTorch against ours, lever by lever.

    python benchmarks/training.py                                  # about twelve minutes on two cores
    python benchmarks/training.py --quick                          # under two minutes; too short to see the input
    python benchmarks/training.py --torch-python V/bin/python      # a Python that has PyTorch 2.13 and NumPy
    python benchmarks/training.py --json

Four WRN-16-1 on CIFAR-10 with crops and flips; batch 128, SGD 0.1 with Nesterov momentum 0.9, L2 2.5e-4, float32, on
the CPU. A row's figure is the number of images that the machine trains on in a second: the median over the rounds, and
its ratio to stock Keras. A committee trained one member after another is as fast as its members; the rates of processes
side by side are added up.

Each side has processes of its own, warmed up beforehand; in a round each row has one turn while all others wait. The
first steps of a turn stand outside the clock (training/turns.py says why). All sides read the same decoded images. Ends
of epochs, validation and checkpoints are left out for everybody.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf
from interleaved.compared import compared

from keras_committee import data

MEMBERS, BATCH = 4, 128
EPOCH = 45_000 // BATCH  # steps
FOLDER = Path(__file__).with_suffix("")
LOCAL = Path("data/cifar10")
CORES = sorted(os.sched_getaffinity(0))
AUTO = keras.Sequential().jit_compile  # what `compile()` makes of "auto" on this machine; no row for it twice
STOCK, OTHER = f"Keras fit, compile() defaults (jit_compile={AUTO})", f"Keras fit, jit_compile={not AUTO}"
TORCH = "PyTorch"
OURS, CACHED = "ours, processes side by side", "the same, one cached batch"
DETERMINISTIC = "the same, --deterministic"
KEEPING = "one epoch's checkpoint and logs"
CEILING = "convolutions alone, processes side by side"


class Process:
    """One trainer that takes steps only when it is told to."""

    def __init__(self, script, python=sys.executable, **spec):
        self._command = [python, str(FOLDER / script), json.dumps({"batch": BATCH, **spec})]
        self._running = None

    def start(self):
        """Returns when the process is warm."""
        self._running = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def tell(self, line):
        print(line, file=self._running.stdin, flush=True)

    def answer(self):
        line = self._running.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"A side ended early, with exit code {self._running.wait()}: {self._command}")
        return line

    def dismiss(self):
        """It ends when there is nothing more to read."""
        if self._running is not None:
            self._running.stdin.close()

    def wait(self):
        if self._running is None:
            return
        try:
            self._running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()


@dataclasses.dataclass(frozen=True)
class Side:
    """A row: processes that have their turn at the same time, and what they are told to do."""

    name: str
    processes: list[Process]
    mode: str = "stream"

    def turn(self, lead, steps):
        """Images per second, of all processes together."""
        tail = lead if len(self.processes) > 1 else 0
        for process in self.processes:
            process.tell(f"{self.mode} {lead} {steps} {tail}")
        return sum(steps * BATCH / float(process.answer()) for process in self.processes)


def ours(members, workers, **spec):
    """Processes that train a member each, side by side, each on its own share of the cores.

    Each would train its share of the members one after another, at one speed: its first one tells it.
    """
    return [
        Process("keras_side.py", kind="member", member=index, cores=cores, **spec)
        for index, cores in enumerate(shares(min(members, workers)))
    ]


def shares(workers):
    """The cores of this machine, divided among `workers`."""
    return [part.tolist() for part in np.array_split(CORES, workers)]


def keras_sides(workers, **spec):
    """The levers one by one, then all of them, then the ceiling."""

    def fit(**options):
        return [Process("keras_side.py", kind="fit", cores=None, **options, **spec)]

    together, parts = ours(MEMBERS, workers, **spec), shares(workers)
    ceiling = [Process("keras_side.py", kind="convolutions", cores=part, **spec) for part in parts]
    return [
        Side(STOCK, fit(norm="keras", jit_compile="auto")),
        Side(OTHER, fit(norm="keras", jit_compile=not AUTO)),
        Side("Keras fit, jit_compile=False, our BatchNormalization", fit(norm="ours", jit_compile=False)),
        Side("ours, one process", ours(MEMBERS, 1, **spec)),
        Side(OURS, together),
        Side(CACHED, together, mode="cached"),
        Side(DETERMINISTIC, ours(MEMBERS, workers, deterministic=True, **spec)),
        Side(KEEPING, together, mode="keep"),
        Side(f"convolutions alone, {len(parts[0])} of {len(CORES)} cores", ceiling[:1]),
        Side(CEILING, ceiling),
    ]


def torch_sides(python, loaders, **spec):
    """A row for each number of loader processes, or none where that Python has no torch."""
    asked = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        print(f"No PyTorch row: {python} cannot import torch. Name one that can: --torch-python PATH", file=sys.stderr)
        return []
    return [
        Side(
            f"{TORCH} {asked.stdout.strip()}, channels_last, {count} loader processes",
            [Process("torch_side.py", python, loaders=count, threads=len(CORES), **spec)],
        )
        for count in loaders
    ]


def start(sides):
    """Warms up as many processes at a time as there are cores."""
    processes = list(dict.fromkeys(process for side in sides for process in side.processes))
    with concurrent.futures.ThreadPoolExecutor(len(CORES)) as pool:
        for number, _ in enumerate(pool.map(Process.start, processes), 1):
            print(f"  {number} of {len(processes)} processes are warm", file=sys.stderr)


def stop(sides):
    processes = [process for side in sides for process in side.processes]
    for process in processes:
        process.dismiss()
    for process in processes:
        process.wait()


def measure(sides, rounds, lead, steps):
    """A row for each side, of images per second: one turn of each after another."""
    rates = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            rates[side.name].append(side.turn(lead, steps))
    return compared(rates, STOCK)


def figures(rows):
    """What `ours` is to be measured by; the fastest PyTorch row counts."""
    rate = {row["name"]: row["median"] for row in rows}
    off, on = (OTHER, STOCK) if AUTO else (STOCK, OTHER)
    torch = sorted((row for row in rate if row.startswith(TORCH)), key=rate.get)[-1:]
    peers = [
        ("Keras' defaults", STOCK, "at least 3.5"),
        ("Keras, jit_compile=False", off, "at least 2"),
        ("Keras, jit_compile=True", on, ""),
        *((name, name, "at least 1.9") for name in torch),
        ("the convolutions alone", CEILING, "at least 0.8"),
    ]
    found = [
        {"name": f"ours / {name}", "value": rate[OURS] / rate[row], "wanted": wanted} for name, row, wanted in peers
    ]
    step = {
        "name": "step time / that with one cached batch",
        "value": rate[CACHED] / rate[OURS],
        "wanted": "at most 1.05",
    }
    # A turn of KEEPING writes where one of OURS trains a batch, so that their rates compare the seconds of both.
    kept = {
        "name": "seconds of an epoch's checkpoint and logs / seconds of its steps",
        "value": rate[OURS] / rate.pop(KEEPING) / EPOCH,
        "wanted": "at most 0.01",
    }
    return [*found, step, kept]


def write_images(directory, path):
    """Decodes CIFAR-10 once; the training images and labels go to `path`."""
    splits = data.cifar10(BATCH, directory=directory, validation=5_000).load()
    images, labels = zip(*splits.train.batches(1000).as_numpy_iterator(), strict=True)
    np.savez(path, images=np.concatenate(images), labels=np.concatenate(labels))


def run(arguments):
    rounds, lead, steps = (3, 1, 4) if arguments.quick else (10, 4, 20)
    loaders = arguments.torch_loaders or ([1] if arguments.quick else [0, 1, 2])
    rounds, steps = arguments.rounds or rounds, arguments.steps or steps
    workers = max(n for n in range(1, len(CORES) + 1) if MEMBERS % n == 0)  # nobody idles while the last member trains
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        spec = {"data": f"{folder}/cifar10.npz", "warm_up": 2 if arguments.quick else 10}
        write_images(arguments.data, spec["data"])
        sides = keras_sides(workers, **spec)
        sides[2:2] = torch_sides(arguments.torch_python, loaders, **spec)
        try:
            start(sides)
            rows = measure(sides, rounds, lead, steps)
        finally:
            stop(sides)
    return {
        "machine": f"{len(CORES)} {platform.machine()} cores, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "load_before": load,
        "network": f"{MEMBERS} x WRN-16-1, batch {BATCH}; {workers} processes side by side",
        "unit": "images per second",
        "steps": steps,
        "rows": rows,
        "figures": figures(rows),
    }


def table(result):
    rounds, steps = len(result["rows"][0]["rounds"]), result["steps"]
    lines = [
        f"{result['network']}; {rounds} interleaved rounds of {steps} steps; {result['machine']}",
        "| committee | images/s | ± | ratio to Keras' defaults |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['name']} | {row['median']:.0f} | {row['spread']:.0f} | {row['ratio']:.2f} |"
        for row in result["rows"]
        if row["name"] != KEEPING
    ]
    for figure in result["figures"]:
        wanted = f" (wanted: {figure['wanted']})" if figure["wanted"] else ""
        lines.append(f"{figure['name']}: {figure['value']:.3g}{wanted}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument(
        "--data", default=str(LOCAL) if LOCAL.is_dir() else None, help="CIFAR-10 as class folders or an .npz file; "
        f"{LOCAL} where there is one, else Keras' download",
    )  # fmt: skip
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python with PyTorch; this one where not given"
    )
    parser.add_argument(
        "--torch-loaders",
        type=int,
        nargs="+",
        help="DataLoader processes, a row for each: 0 1 2 where not given, quick: 1",
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int, help="timed steps of a turn")
    given = parser.parse_args()
    result = run(given)
    print(json.dumps(result) if given.json else table(result))
