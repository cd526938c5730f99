"""Training speed: stock Keras, PyTorch, and keras-committee, in float32 and in bfloat16.

    python benchmarks/training.py                                  # WRN-16-1: about ten minutes on two cores
    python benchmarks/training.py --width 4                        # WRN-16-4: about half an hour
    python benchmarks/training.py --quick                          # a few minutes; too short to measure the input
    python benchmarks/training.py --torch-python V/bin/python      # a Python that has PyTorch 2.13
    python benchmarks/training.py --json

Trains members on CIFAR-10 with crops and flips; batch 128, SGD 0.1 with Nesterov momentum 0.9, L2 2.5e-4, on the CPU. A
row shows the images per second of the whole machine: the median over the rounds, +- half the interquartile range, and
its ratio to stock Keras. Members that train one after another have the rate of one member; the rates of processes side
by side, one core each, are added. Ours reads its images through the input pipeline; PyTorch trains one cached batch, so
that its rows have no cost of the input.

The processes are warmed up first; in a round, each row has one turn while all others wait. The first steps of a turn
are not timed (see training/turns.py). Epoch ends, validation and checkpoints are excluded, except in the ratio of the
checkpoint's time.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import platform
import shutil
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

from keras_committee import data, huge_pages
from keras_committee.precision import cpu_bfloat16_instructions

BATCH = 128
STEPS_PER_EPOCH = 45_000 // BATCH
FOLDER = Path(__file__).with_suffix("")
LOCAL_DATA = Path("data/cifar10")
CORES = sorted(os.sched_getaffinity(0))
AUTO = keras.Sequential().jit_compile  # what `compile(jit_compile="auto")` resolves to on this machine
DEFAULT = f"Keras fit, compile() defaults (jit_compile={AUTO})"
PRECISIONS = ("float32", "mixed_bfloat16")
TORCH_MODES = {"float32": "float32", "autocast": "autocast bfloat16", "compiled": "autocast bfloat16, torch.compile"}
SIDE_BY_SIDE = f"{len(CORES)} processes side by side"


class Worker:
    """A process that takes training steps on request."""

    def __init__(self, script, python=sys.executable, *, environment=None, **spec):
        self._environment = environment
        self._command = [python, str(FOLDER / script), json.dumps({"batch": BATCH, **spec})]
        self._process = None

    def start(self):
        """Start the process and wait until it is warm."""
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, env=self._environment)
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
        reports_rate: Whether it has a row in the table.
    """

    name: str
    workers: list[Worker]
    mode: str
    reports_rate: bool = True

    def take_turn(self, lead_in, steps):
        """Return the images per second of all workers together."""
        lead_out = lead_in if len(self.workers) > 1 else 0
        for worker in self.workers:
            worker.send(f"{self.mode} {lead_in} {steps} {lead_out}")
        return sum(steps * BATCH / float(worker.receive()) for worker in self.workers)


def core_groups():
    """Return the cores of one process that has them all, and of processes with one core each."""
    return {"one process": [CORES], SIDE_BY_SIDE: [[core] for core in CORES]}


def keras_contenders(**spec):
    """Return stock Keras and ours in both precisions, ours on one cached batch, and the convolutions alone."""
    contenders = [
        Contender(name, [Worker("keras_worker.py", kind="fit", cores=None, norm="keras", **options, **spec)], "fit")
        for name, options in {
            DEFAULT: {"jit_compile": "auto", "precision": "float32"},
            f"Keras fit, jit_compile={not AUTO}": {"jit_compile": not AUTO, "precision": "float32"},
            f"Keras fit, jit_compile={AUTO}, mixed_bfloat16": {"jit_compile": "auto", "precision": "mixed_bfloat16"},
        }.items()
    ]
    for place, groups in core_groups().items():
        options = {"precisions": PRECISIONS, "environment": huge_pages.environment(), **spec}  # as in `train`
        members = [
            Worker("keras_worker.py", kind="member", member=index, cores=cores, **options)
            for index, cores in enumerate(groups)
        ]
        convolutions = [Worker("keras_worker.py", kind="convolutions", cores=cores, **options) for cores in groups]
        for precision in PRECISIONS:
            contenders += [
                Contender(ours(precision, place), members, f"{precision}/stream"),
                Contender(f"{ours(precision, place)}, one cached batch", members, f"{precision}/cached"),
                Contender(checkpoint(precision, place), members, f"{precision}/checkpoint", reports_rate=False),
                Contender(convolutions_alone(precision, place), convolutions, f"{precision}/"),
            ]
    return contenders


def ours(precision, place):
    return f"ours {precision}, {place}"


def checkpoint(precision, place):
    return f"checkpoint and logs of one epoch, {precision}, {place}"


def convolutions_alone(precision, place):
    return f"convolutions alone {precision}, {place}"


def torch_contenders(python, **spec):
    """Return the rows of PyTorch; none, with the reason on stderr, if `python` cannot run it."""
    probe = "import torch; print(torch.__version__)"
    result = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
    if result.returncode:
        print(f"PyTorch is not compared: {python} cannot import torch. Use --torch-python PATH.", file=sys.stderr)
        return []
    modes = dict(TORCH_MODES)
    if shutil.which("g++") is None:
        print("torch.compile is not compared: there is no g++.", file=sys.stderr)
        del modes["compiled"]
    contenders = []
    for place, groups in core_groups().items():
        workers = [Worker("torch_worker.py", python, cores=cores, modes=list(modes), **spec) for cores in groups]
        contenders += [
            Contender(f"PyTorch {result.stdout.strip()} {text}, {place}", workers, mode) for mode, text in modes.items()
        ]
    return contenders


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


def compare_with_goals(rows, width):
    """Return the ratios with a goal; ours is the faster of one process and several, as `--workers auto` chooses."""
    rate = {row["name"]: row["median"] for row in rows}

    def fastest(names):
        return max((name for name in names if name in rate), key=lambda name: rate[name])

    def ratio(label, name, reference, goal):
        return {"name": label, "value": rate[name] / rate[reference], "goal": goal}

    torch_rows = [name for name in rate if name.startswith("PyTorch")]
    float32_rows = [name for name in torch_rows if " float32" in name]
    ratios = []
    for precision in PRECISIONS:
        place = fastest([ours(precision, place) for place in core_groups()]).rpartition(", ")[2]
        best = ours(precision, place)
        is_bfloat16 = precision == "mixed_bfloat16"
        ratios.append(
            ratio(f"{best} / Keras' defaults", best, DEFAULT, "at least 3.5" if is_bfloat16 else "at least 2")
        )
        if torch_rows:
            peer = fastest(torch_rows if is_bfloat16 else float32_rows)
            goal = ("at least 1.0" if width == 1 else "at least 1.2") if is_bfloat16 else "at least 1.5"
            ratios.append(ratio(f"{best} / {peer}", best, peer, goal))
        ratios.append(
            ratio(
                f"{best} / the convolutions alone", best, convolutions_alone(precision, place),
                "at least 0.75" if is_bfloat16 else "",
            )
        )  # fmt: skip
        ratios.append(
            {
                "name": f"{best}: step time / step time with one cached batch",
                "value": rate[f"{best}, one cached batch"] / rate[best],
                "goal": "at most 1.05",
            }
        )
        # A step of this row writes a checkpoint instead of training a batch, so the rates compare the seconds of both.
        seconds = rate[best] / rate[checkpoint(precision, place)] / STEPS_PER_EPOCH
        ratios.append(
            {"name": f"{best}: checkpoint and logs / steps of an epoch", "value": seconds, "goal": "at most 0.01"}
        )
    return ratios


def write_images(directory, path):
    """Decode CIFAR-10 once and write the training images and labels to `path`."""
    splits = data.cifar10(BATCH, directory=directory, validation=5_000).load()
    images, labels = zip(*splits.train.batches(1000).as_numpy_iterator(), strict=True)
    np.savez(path, images=np.concatenate(images), labels=np.concatenate(labels))


def run(arguments):
    rounds, lead_in, steps = (3, 1, 3) if arguments.quick else (8, 3, 12)
    rounds, steps = arguments.rounds or rounds, arguments.steps or steps
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        spec = {"width": arguments.width, "warmup_steps": 2 if arguments.quick else 5}
        data_file = f"{folder}/cifar10.npz"
        write_images(arguments.data, data_file)
        contenders = keras_contenders(data=data_file, **spec) + torch_contenders(arguments.torch_python, **spec)
        try:
            start(contenders)
            rows = measure(contenders, rounds, lead_in, steps)
        finally:
            stop(contenders)
    shown = {contender.name for contender in contenders if contender.reports_rate}
    return {
        "machine": f"{len(CORES)} {platform.machine()} cores with {cpu_bfloat16_instructions() or 'no bfloat16'}, "
        f"TensorFlow {tf.__version__}, Keras {keras.version()}",
        "load_before": load,
        "network": f"WRN-16-{arguments.width}, batch {BATCH}",
        "unit": "images per second",
        "steps": steps,
        "rows": [row for row in rows if row["name"] in shown],
        "goals": compare_with_goals(rows, arguments.width),
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
    ]
    for ratio in result["goals"]:
        goal = f" (goal: {ratio['goal']})" if ratio["goal"] else ""
        lines.append(f"{ratio['name']}: {ratio['value']:.3g}{goal}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1, help="the network is WRN-16-WIDTH [default: 1]")
    parser.add_argument("--quick", action="store_true", help="run fewer and shorter turns")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument(
        "--data",
        default=str(LOCAL_DATA) if LOCAL_DATA.is_dir() else None,
        help=f"CIFAR-10 as class folders or an .npz file [default: {LOCAL_DATA} if it exists, else the Keras download]",
    )
    parser.add_argument("--torch-python", default=sys.executable, help="Python with PyTorch [default: this Python]")
    parser.add_argument("--rounds", type=int, help="number of turns of each row")
    parser.add_argument("--steps", type=int, help="number of timed steps per turn")
    arguments = parser.parse_args()
    result = run(arguments)
    print(json.dumps(result) if arguments.json else table(result))
