"""Training speed of a committee: stock Keras, PyTorch, and keras-committee with its optimizations one by one.

    python benchmarks/training.py                                  # about twelve minutes on two cores
    python benchmarks/training.py --quick                          # under two minutes; too short to measure the input
    python benchmarks/training.py --torch-python V/bin/python      # a Python that has PyTorch 2.13 and NumPy
    python benchmarks/training.py --json

Trains four WRN-16-1 on CIFAR-10 with crops and flips; batch 128, SGD 0.1 with Nesterov momentum 0.9, L2 2.5e-4,
float32, on the CPU. A row shows the images per second of the whole machine: the median over the rounds, +- half the
interquartile range, and its ratio to stock Keras. Members that train one after another have the rate of one member; the
rates of processes side by side are added.

Each contender runs in its own processes, which are warmed up first; in a round, each contender has one turn while all
others wait. The first steps of a turn are not timed (see training/turns.py). All contenders read the same decoded
images. Epoch ends, validation and checkpoints are excluded, except in the ratio of the checkpoint's time.
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
from interleaved.summary import summarize

from keras_committee import data

MEMBERS, BATCH = 4, 128
STEPS_PER_EPOCH = 45_000 // BATCH
FOLDER = Path(__file__).with_suffix("")
LOCAL_DATA = Path("data/cifar10")
CORES = sorted(os.sched_getaffinity(0))
AUTO = keras.Sequential().jit_compile  # what `compile(jit_compile="auto")` resolves to on this machine
DEFAULT, NOT_DEFAULT = f"Keras fit, compile() defaults (jit_compile={AUTO})", f"Keras fit, jit_compile={not AUTO}"
TORCH = "PyTorch"
OURS = "ours, processes side by side"
CACHED = f"{OURS}, one cached batch"
DETERMINISTIC = f"{OURS}, --deterministic"
CHECKPOINT = "one epoch's checkpoint and logs"
CONVOLUTIONS = "convolutions alone, processes side by side"


class Worker:
    """A process that takes training steps on request."""

    def __init__(self, script, python=sys.executable, **spec):
        self._command = [python, str(FOLDER / script), json.dumps({"batch": BATCH, **spec})]
        self._process = None

    def start(self):
        """Start the process and wait until it is warm."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.receive()

    def send(self, line):
        print(line, file=self._process.stdin, flush=True)

    def receive(self):
        """Return the next line of the process. Raises RuntimeError if it has exited."""
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"A worker exited early with code {self._process.wait()}: {self._command}")
        return line

    def close(self):
        """Close the input of the process, so that it exits."""
        if self._process is not None:
            self._process.stdin.close()

    def wait(self):
        """Wait for the process to exit; kill it after 10 seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: Name of the row.
        workers: Workers that take their turn at the same time.
        mode: What the workers do in a step.
    """

    name: str
    workers: list[Worker]
    mode: str = "stream"

    def take_turn(self, lead_in, steps):
        """Return the images per second of all workers together."""
        lead_out = lead_in if len(self.workers) > 1 else 0
        for worker in self.workers:
            worker.send(f"{self.mode} {lead_in} {steps} {lead_out}")
        return sum(steps * BATCH / float(worker.receive()) for worker in self.workers)


def member_workers(count, **spec):
    """Return `count` workers that train one member each, each on its own cores.

    In a real run each process trains several members, one after another at the same rate, so one member suffices.
    """
    return [
        Worker("keras_worker.py", kind="member", member=index, cores=cores, **spec)
        for index, cores in enumerate(split_cores(count))
    ]


def split_cores(count):
    """Return the cores of this machine, divided among `count` processes."""
    return [part.tolist() for part in np.array_split(CORES, count)]


def keras_contenders(num_processes, **spec):
    """Return the optimizations one by one, then all of them, then the upper bound."""

    def fit(**options):
        return [Worker("keras_worker.py", kind="fit", cores=None, **options, **spec)]

    members, core_groups = member_workers(num_processes, **spec), split_cores(num_processes)
    convolutions = [Worker("keras_worker.py", kind="convolutions", cores=cores, **spec) for cores in core_groups]
    return [
        Contender(DEFAULT, fit(norm="keras", jit_compile="auto")),
        Contender(NOT_DEFAULT, fit(norm="keras", jit_compile=not AUTO)),
        Contender("Keras fit, jit_compile=False, our BatchNormalization", fit(norm="ours", jit_compile=False)),
        Contender("ours, one process", member_workers(1, **spec)),
        Contender(OURS, members),
        Contender(CACHED, members, mode="cached"),
        Contender(DETERMINISTIC, member_workers(num_processes, deterministic=True, **spec)),
        Contender(CHECKPOINT, members, mode="checkpoint"),
        Contender(f"convolutions alone, {len(core_groups[0])} of {len(CORES)} cores", convolutions[:1]),
        Contender(CONVOLUTIONS, convolutions),
    ]


def torch_contenders(python, loader_counts, **spec):
    """Return one contender per number of loader processes, or none if `python` cannot import torch."""
    result = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        print(f"PyTorch is not compared: {python} cannot import torch. Use --torch-python PATH.", file=sys.stderr)
        return []
    return [
        Contender(
            f"{TORCH} {result.stdout.strip()}, channels_last, {count} loader processes",
            [Worker("torch_worker.py", python, loaders=count, threads=len(CORES), **spec)],
        )
        for count in loader_counts
    ]


def start(contenders):
    """Start and warm up all workers, as many at a time as there are cores."""
    workers = list(dict.fromkeys(worker for contender in contenders for worker in contender.workers))
    with concurrent.futures.ThreadPoolExecutor(len(CORES)) as pool:
        for number, _ in enumerate(pool.map(Worker.start, workers), 1):
            print(f"  {number} of {len(workers)} processes are warm", file=sys.stderr)


def stop(contenders):
    workers = [worker for contender in contenders for worker in contender.workers]
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.wait()


def measure(contenders, rounds, lead_in, steps):
    """Return one row per contender, in images per second; the contenders take turns."""
    rates = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            rates[contender.name].append(contender.take_turn(lead_in, steps))
    return summarize(rates, DEFAULT)


def compare_with_goals(rows):
    """Return the ratios that have a goal; that to PyTorch uses its fastest row."""
    rate = {row["name"]: row["median"] for row in rows}
    without_xla, with_xla = (NOT_DEFAULT, DEFAULT) if AUTO else (DEFAULT, NOT_DEFAULT)
    torch_rows = sorted((name for name in rate if name.startswith(TORCH)), key=lambda name: rate[name])
    references = [
        ("Keras' defaults", DEFAULT, "at least 3.5"),
        ("Keras, jit_compile=False", without_xla, "at least 2"),
        ("Keras, jit_compile=True", with_xla, ""),
        *((name, name, "at least 1.9") for name in torch_rows[-1:]),
        ("the convolutions alone", CONVOLUTIONS, "at least 0.8"),
    ]
    ratios = [
        {"name": f"ours / {label}", "value": rate[OURS] / rate[name], "goal": goal} for label, name, goal in references
    ]
    step_time = {
        "name": "step time / step time with one cached batch",
        "value": rate[CACHED] / rate[OURS],
        "goal": "at most 1.05",
    }
    # A step of CHECKPOINT writes a checkpoint instead of training a batch, so the rates compare the seconds of both.
    checkpoint_time = {
        "name": "seconds of one epoch's checkpoint and logs / seconds of its steps",
        "value": rate[OURS] / rate[CHECKPOINT] / STEPS_PER_EPOCH,
        "goal": "at most 0.01",
    }
    return [*ratios, step_time, checkpoint_time]


def write_images(directory, path):
    """Decode CIFAR-10 once and write the training images and labels to `path`."""
    splits = data.cifar10(BATCH, directory=directory, validation=5_000).load()
    images, labels = zip(*splits.train.batches(1000).as_numpy_iterator(), strict=True)
    np.savez(path, images=np.concatenate(images), labels=np.concatenate(labels))


def run(arguments):
    rounds, lead_in, steps = (3, 1, 4) if arguments.quick else (10, 4, 20)
    loader_counts = arguments.torch_loaders or ([1] if arguments.quick else [0, 1, 2])
    rounds, steps = arguments.rounds or rounds, arguments.steps or steps
    # The largest number that leaves no process idle while the last members train.
    num_processes = max(n for n in range(1, len(CORES) + 1) if MEMBERS % n == 0)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        spec = {"data": f"{folder}/cifar10.npz", "warmup_steps": 2 if arguments.quick else 10}
        write_images(arguments.data, spec["data"])
        contenders = keras_contenders(num_processes, **spec)
        contenders[2:2] = torch_contenders(arguments.torch_python, loader_counts, **spec)
        try:
            start(contenders)
            rows = measure(contenders, rounds, lead_in, steps)
        finally:
            stop(contenders)
    return {
        "machine": f"{len(CORES)} {platform.machine()} cores, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "load_before": load,
        "network": f"{MEMBERS} x WRN-16-1, batch {BATCH}; {num_processes} processes side by side",
        "unit": "images per second",
        "steps": steps,
        "rows": rows,
        "goals": compare_with_goals(rows),
    }


def table(result):
    rounds, steps = len(result["rows"][0]["rounds"]), result["steps"]
    lines = [
        f"{result['network']}; {rounds} interleaved rounds of {steps} steps; {result['machine']}",
        "| training | images/s | ± | ratio to Keras' defaults |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['name']} | {row['median']:.0f} | {row['half_iqr']:.0f} | {row['ratio']:.2f} |"
        for row in result["rows"]
        if row["name"] != CHECKPOINT
    ]
    for ratio in result["goals"]:
        goal = f" (goal: {ratio['goal']})" if ratio["goal"] else ""
        lines.append(f"{ratio['name']}: {ratio['value']:.3g}{goal}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run fewer and shorter turns")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument(
        "--data",
        default=str(LOCAL_DATA) if LOCAL_DATA.is_dir() else None,
        help=f"CIFAR-10 as class folders or an .npz file [default: {LOCAL_DATA} if it exists, else the Keras download]",
    )
    parser.add_argument("--torch-python", default=sys.executable, help="Python with PyTorch [default: this Python]")
    parser.add_argument(
        "--torch-loaders",
        type=int,
        nargs="+",
        help="numbers of DataLoader processes, one row each [default: 0 1 2; with --quick: 1]",
    )
    parser.add_argument("--rounds", type=int, help="number of turns of each row")
    parser.add_argument("--steps", type=int, help="number of timed steps per turn")
    arguments = parser.parse_args()
    result = run(arguments)
    print(json.dumps(result) if arguments.json else table(result))
