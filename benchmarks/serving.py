"""What does an export cost to run? One committee three ways: as Keras exports it, as we do, and as a cascade.

    python benchmarks/serving.py                # three WRN-16-1, batch 1, 8, 32 and 128
    python benchmarks/serving.py --quick        # batch 1 and 32, fewer rounds: under two minutes on two idle cores
    python benchmarks/serving.py --json

Every row runs through TensorFlow's own loader and session, as in TF Serving, in a process of its own; one call of each
after another, while the others wait. A row's figure is the median over the rounds, its ratio that of `Model.export` of
the same members built of Keras' own BatchNormalization to it: above 1 is faster. Weights are untrained but for the
statistics of the normalisations. Cascades ask one member first; their thresholds send 0, 25 or 100 % of them on.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_committee.selection import ChosenMember, Selection, Stage

SHAPE, CLASSES, MEMBERS = (32, 32, 3), tuple("0123456789"), 3
NAIVE = "Keras' export, Keras' BatchNormalization"
NAIVE_OURS = "Keras' export, our BatchNormalization"


def member(network, seed):
    """An untrained member whose normalisations are not the identity."""
    import keras

    from keras_committee import models

    keras.utils.set_random_seed(seed)
    build = {"wrn": lambda: models.wide_resnet(16, 1, classes=10), "resnet": lambda: models.resnet(20, classes=10)}
    model, draw = build[network](), np.random.default_rng(seed)
    ranges = {"moving_variance": (0.5, 2.0), "gamma": (0.5, 1.5), "moving_mean": (-0.3, 0.3), "beta": (-0.3, 0.3)}
    for variable in model.variables:
        if variable.name in ranges:
            variable.assign(draw.uniform(*ranges[variable.name], variable.shape))
    return model


def with_keras_norms(model):
    """The same network with Keras' own layer in the place of ours."""
    import keras

    from keras_committee.layers import BatchNormalization

    def copy(layer):
        config = layer.get_config()
        if not isinstance(layer, BatchNormalization):
            return layer.__class__.from_config(config)
        return keras.layers.BatchNormalization.from_config({**config, "synchronized": False})

    clone = keras.models.clone_model(model, clone_function=copy)
    clone.set_weights(model.get_weights())
    return clone


def export_all(network, folder):
    """Writes every row's SavedModel below `folder`; returns their names."""
    from keras_committee import Ensemble
    from keras_committee.models import log_probabilities
    from keras_committee.serving.export import save_committee

    members = [member(network, seed) for seed in range(MEMBERS)]
    Ensemble([with_keras_norms(each) for each in members]).export(str(folder / NAIVE), verbose=False)
    Ensemble(members).export(str(folder / NAIVE_OURS), verbose=False)
    chosen = [ChosenMember(run="", index=i, weights="", name="", parameters=0, mflops=0.0) for i in range(MEMBERS)]
    selection = Selection(members=tuple(chosen), head="geometric_mean", classes=CLASSES)
    save_committee(selection, members, folder / "ours")
    first = np.exp(log_probabilities(members[0], [images(128)])).max(axis=1)
    for share, threshold in ((0, 0.0), (25, float(np.quantile(first, 0.25))), (100, 1.1)):
        stages = (Stage(members=1, threshold=threshold), Stage(members=MEMBERS, threshold=None))
        cascade = dataclasses.replace(selection, stages=stages)
        save_committee(cascade, members, folder / f"ours as a cascade, {share} % go on")
    return [NAIVE, NAIVE_OURS, "ours", *(f"ours as a cascade, {share} % go on" for share in (0, 25, 100))]


def images(count):
    return np.random.default_rng(0).uniform(0, 255, (count, *SHAPE)).astype(np.float32)


def serve(folder):
    """The process of one row: for each batch size on stdin, one call and its seconds; its memory at the end."""
    import tensorflow  # noqa: F401 - its own memory is no row's

    from keras_committee.serving import c_api
    from keras_committee.serving.session import Session

    c_api.library()
    before = resident()
    session = Session.load(folder)
    (name,) = session.signatures["serving_default"].inputs
    print("ready", flush=True)
    for line in sys.stdin:
        batch, calls = (int(word) for word in line.split())
        inputs = {name: images(batch)}
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            session.run("serving_default", inputs)
        seconds = [(time.perf_counter() - started) / calls, (time.process_time() - cpu) / calls]
        print(json.dumps([*seconds, resident() - before]), flush=True)


def resident():
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(folder):
    command = [sys.executable, __file__, "--serve", str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while child.stdout.readline() != "ready\n":
        if child.poll() is not None:
            raise RuntimeError(f"{folder} could not be loaded")
    return child


def call(child, batch, calls):
    child.stdin.write(f"{batch} {calls}\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def measure(children, batches, rounds):
    """For each row and batch size the median of wall time, of CPU time and the memory after all of them."""
    taken = {(name, batch): [] for name in children for batch in batches}
    for batch in batches:
        for child in children.values():
            call(child, batch, 2)
        for _ in range(rounds):
            for name, child in children.items():
                taken[name, batch].append(call(child, batch, max(1, 16 // batch)))
    return {key: [statistics.median(column) for column in zip(*each, strict=True)] for key, each in taken.items()}


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(network, batches, rounds):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = export_all(network, folder)
        children = {name: start(folder / name) for name in names}
        try:
            medians = measure(children, batches, rounds)
        finally:
            for child in children.values():
                child.kill()
                child.wait()
        sizes = {name: size(folder / name) for name in names}
    return {
        "machine": f"{os.cpu_count()} {platform.machine()} cores, TensorFlow {version('tensorflow')}",
        "network": f"{MEMBERS} x {'WRN-16-1' if network == 'wrn' else 'ResNet-20'}, 32x32",
        "rounds": rounds,
        "rows": [row(name, batch, medians, sizes) for batch in batches for name in names],
    }


def row(name, batch, medians, sizes):
    (wall, cpu, memory), naive = medians[name, batch], medians[NAIVE, batch]
    return {
        "name": f"{name}, batch {batch}",
        "batch": batch,
        "median": wall,
        "ratio": naive[0] / wall,
        "cpu_ratio": naive[1] / cpu,
        "images_per_second": batch / wall,
        "file_bytes": sizes[name],
        "resident_bytes": memory,
    }


def version(package):
    from importlib.metadata import version

    return version(package)


def table(result):
    lines = [
        f"{result['network']}; {result['rounds']} interleaved rounds; {result['machine']}",
        "| export, batch | median ms | ratio | ratio of CPU time | images/s | files MB | memory MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['name']} | {1e3 * row['median']:.2f} | {row['ratio']:.2f} | {row['cpu_ratio']:.2f} | "
            f"{row['images_per_second']:.0f} | {row['file_bytes'] / 1e6:.2f} | {row['resident_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 1 and 32, fewer rounds")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--network", choices=["wrn", "resnet"], default="wrn")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        sys.exit()
    batches = (1, 32) if arguments.quick else (1, 8, 32, 128)
    result = run(arguments.network, batches, arguments.rounds or (15 if arguments.quick else 30))
    print(json.dumps(result) if arguments.json else table(result))
