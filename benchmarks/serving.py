"""What does an export cost to run? One committee three ways: as Keras exports it, as we do, and as a cascade.

    python benchmarks/serving.py                # three WRN-16-1, batch 1, 8, 32 and 128
    python benchmarks/serving.py --quick        # batch 1 and 32, fewer rounds: under two minutes on two idle cores
    python benchmarks/serving.py --json
    python benchmarks/serving.py --real saved_models/committee/1 saved_models/cascade/1 --images data/cifar10/test

Every row runs through TensorFlow's own loader and session, as in TF Serving, in a process of its own; one call of each
after another, while the others wait. A row's figure is the median over the rounds, its ratio that of `Model.export` of
the same members built of Keras' own BatchNormalization to it: above 1 is faster. Weights are untrained but for the
statistics of the normalisations. Cascades ask one member first; their thresholds send 0, 25 or 100 % of them on. The
last rows ask the stand-in over gRPC and REST. `--real` compares two exports of trained members on images whose classes
are known.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).with_suffix("")))

import numpy as np
import real
import rows
import wire

from keras_committee.selection import SelectedMember, Selection, Stage

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
    from keras_committee.export.export import save_committee
    from keras_committee.models import log_probabilities

    members = [member(network, seed) for seed in range(MEMBERS)]
    Ensemble([with_keras_norms(each) for each in members]).export(str(folder / NAIVE), verbose=False)
    Ensemble(members).export(str(folder / NAIVE_OURS), verbose=False)
    chosen = [SelectedMember(run="", index=i, weights="", name="", parameters=0, mflops=0.0) for i in range(MEMBERS)]
    selection = Selection(members=tuple(chosen), head="geometric_mean", classes=CLASSES)
    save_committee(selection, members, folder / "ours")
    first = np.exp(log_probabilities(members[0], [rows.images(128, SHAPE)])).max(axis=1)
    for share, threshold in ((0, 0.0), (25, float(np.quantile(first, 0.25))), (100, 1.1)):
        stages = (Stage(members=1, threshold=threshold), Stage(members=MEMBERS, threshold=None))
        cascade = dataclasses.replace(selection, stages=stages)
        save_committee(cascade, members, folder / f"ours as a cascade, {share} % go on")
    return [NAIVE, NAIVE_OURS, "ours", *(f"ours as a cascade, {share} % go on" for share in (0, 25, 100))]


def measure(children, batches, rounds):
    """For each row and batch size: seconds of every call, CPU seconds (median) and memory after all of them."""
    taken = {(name, batch): [] for name in children for batch in batches}
    for batch in batches:
        for child in children.values():
            rows.call(child, batch, 2)
        for _ in range(rounds):
            for name, child in children.items():
                taken[name, batch].append(rows.call(child, batch, max(1, 16 // batch)))
    return {key: [np.concatenate([each[0] for each in turns]), *_medians(turns)] for key, turns in taken.items()}


def _medians(turns):
    return [statistics.median(turn[place] for turn in turns) for place in (1, 2)]


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(network, batches, rounds):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = export_all(network, folder)
        children = {name: rows.start(folder / name) for name in names}
        try:
            measured = measure(children, batches, rounds)
        finally:
            for child in children.values():
                child.kill()
                child.wait()
        sizes = {name: size(folder / name) for name in names}
        with wire.served(folder / "ours", folder) as places:
            asked = {
                (way, batch): wire.ask(places, way, batch, rounds * max(1, 64 // batch), SHAPE)
                for batch in batches
                for way in wire.WAYS
            }
    return {
        "machine": f"{os.cpu_count()} {platform.machine()} cores, TensorFlow {version('tensorflow')}",
        "network": f"{MEMBERS} x {'WRN-16-1' if network == 'wrn' else 'ResNet-20'}, 32x32",
        "rounds": rounds,
        "rows": [
            *(row(name, batch, measured, sizes) for batch in batches for name in names),
            *(wire_row(way, batch, *times, measured) for (way, batch), times in asked.items()),
        ],
    }


def row(name, batch, measured, sizes):
    (seconds, cpu, memory), naive = measured[name, batch], measured[NAIVE, batch]
    return {
        "name": f"{name}, batch {batch}",
        **latency(seconds),
        "ratio": statistics.median(naive[0]) / statistics.median(seconds),
        "cpu_ratio": naive[1] / cpu,
        "images_per_second": batch / statistics.median(seconds),
        "file_bytes": sizes[name],
        "resident_bytes": memory,
    }


def wire_row(way, batch, seconds, whole, measured):
    """Of the way over the network; its ratio is the throughput to that of one caller of the session itself."""
    rate = batch * len(seconds) / whole
    return {
        "name": f"ours over {way}, {wire.CALLERS} callers, batch {batch}",
        **latency(seconds),
        "ratio": rate * statistics.median(measured["ours", batch][0]) / batch,
        "images_per_second": rate,
    }


def latency(seconds):
    return {"median": float(np.median(seconds)), "p99": float(np.quantile(seconds, 0.99))}


def version(package):
    from importlib.metadata import version

    return version(package)


def table(result):
    lines = [
        f"{result['network']}; {result['rounds']} interleaved rounds; {result['machine']}",
        "| export, batch | p50 ms | p99 ms | ratio | ratio of CPU time | images/s | files MB | memory MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        more = [""] * 2
        if "file_bytes" in row:
            more = [f"{row['file_bytes'] / 1e6:.2f}", f"{row['resident_bytes'] / 1e6:.0f}"]
        lines.append(
            f"| {row['name']} | {1e3 * row['median']:.2f} | {1e3 * row['p99']:.2f} | {row['ratio']:.2f} | "
            f"{row.get('cpu_ratio', float('nan')):.2f} | {row['images_per_second']:.0f} | {' | '.join(more)} |"
        )
    return "\n".join(lines).replace("nan", "")


def real_table(found, batch):
    lines = [f"batches of {batch}", "| export | accuracy | members asked | images/s | ratio |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for row in found:
        lines.append(
            f"| {row['name']} | {100 * row['accuracy']:.2f} % | {row['members_used']:.2f} | "
            f"{row['images_per_second']:.0f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 1 and 32, fewer rounds")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--network", choices=["wrn", "resnet"], default="wrn")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--real", nargs=2, metavar=("COMMITTEE", "CASCADE"), help="two exported versions")
    parser.add_argument("--images", help="class folders that --real is asked about")
    parser.add_argument("--batch", type=int, default=32, help="of --real")
    arguments = parser.parse_args()
    if arguments.real:
        found = real.compare(
            dict(zip(("committee", "cascade"), arguments.real, strict=True)), arguments.images, arguments.batch
        )
        print(json.dumps({"rows": found}) if arguments.json else real_table(found, arguments.batch))
        sys.exit()
    batches = (1, 32) if arguments.quick else (1, 8, 32, 128)
    result = run(arguments.network, batches, arguments.rounds or (15 if arguments.quick else 30))
    print(json.dumps(result) if arguments.json else table(result))
