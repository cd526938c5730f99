"""Speed and size of exported committees: `keras.Model.export`, our export, and our export as a cascade.

    python benchmarks/serving.py                # three WRN-16-1, batch 1, 8, 32 and 128
    python benchmarks/serving.py --quick        # batch 1 and 32, fewer rounds: under two minutes on two idle cores
    python benchmarks/serving.py --json
    python benchmarks/serving.py --bfloat16     # three WRN-16-1 and three WRN-16-4 in both precisions, batch 1 and 32
    python benchmarks/serving.py --trained saved_models/committee/1 saved_models/cascade/1 --images data/cifar10/test

Each export is loaded by TensorFlow's C++ loader and session, as in TF Serving, in a process of its own; the processes
take turns, while the others wait. A row shows the median time per call over the rounds. Its ratio is the time of
`Model.export` with Keras' BatchNormalization divided by that of the row: above 1 is faster. The weights are untrained,
with random normalization statistics. Cascades run one member first; their thresholds send 0, 25 or 100 % of the images
to the others. The export in bfloat16 is measured where this machine multiplies matrices in it; with `--bfloat16` the
ratios are to our export in float32. The last rows measure the local server over gRPC and REST, and the time in which it
reads a request of JSON numbers; the ratio of that row is the time of Python's json and NumPy divided by its own.
`--trained` compares two exports of trained members on labeled images.
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

import network
import numpy as np
import session_process
import trained_exports

from keras_committee.precision import tensorflow_device
from keras_committee.selection import SelectedMember, Selection, Stage

SHAPE, CLASSES, MEMBERS = (32, 32, 3), tuple("0123456789"), 3
KERAS_EXPORT = "Keras' export, Keras' BatchNormalization"
KERAS_EXPORT_OUR_NORM = "Keras' export, our BatchNormalization"
OURS, OURS_IN_BFLOAT16 = "ours", "ours in bfloat16"
NETWORKS = {"wrn": "WRN-16-1", "wrn-16-4": "WRN-16-4", "resnet": "ResNet-20"}


def build_member(architecture, seed):
    """Return an untrained member with random normalization statistics."""
    import keras

    from keras_committee import models

    keras.utils.set_random_seed(seed)
    build = {
        "wrn": lambda: models.wide_resnet(16, 1, classes=10),
        "wrn-16-4": lambda: models.wide_resnet(16, 4, classes=10),
        "resnet": lambda: models.resnet(20, classes=10),
    }
    model, rng = build[architecture](), np.random.default_rng(seed)
    ranges = {"moving_variance": (0.5, 2.0), "gamma": (0.5, 1.5), "moving_mean": (-0.3, 0.3), "beta": (-0.3, 0.3)}
    for variable in model.variables:
        if variable.name in ranges:
            variable.assign(rng.uniform(*ranges[variable.name], variable.shape))
    return model


def with_keras_norms(model):
    """Return a copy of `model` with the batch normalization of Keras instead of ours."""
    import keras

    from keras_committee.layers import BatchNormalization

    def clone_layer(layer):
        config = layer.get_config()
        if not isinstance(layer, BatchNormalization):
            return layer.__class__.from_config(config)
        return keras.layers.BatchNormalization.from_config({**config, "synchronized": False})

    clone = keras.models.clone_model(model, clone_function=clone_layer)
    clone.set_weights(model.get_weights())
    return clone


def export_all(architecture, folder):
    """Write the SavedModel of each row below `folder`; return the rows' names."""
    from keras_committee import Ensemble
    from keras_committee.export.export import save_committee
    from keras_committee.models import log_probabilities

    members, selection = build_committee(architecture)
    Ensemble([with_keras_norms(member) for member in members]).export(str(folder / KERAS_EXPORT), verbose=False)
    Ensemble(members).export(str(folder / KERAS_EXPORT_OUR_NORM), verbose=False)
    ours = export_ours(members, selection, folder)
    images = session_process.random_images(128, SHAPE)
    confidence = np.exp(log_probabilities(members[0], [images])).max(axis=1)
    for share, threshold in ((0, 0.0), (25, float(np.quantile(confidence, 0.25))), (100, 1.1)):
        stages = (Stage(members=1, threshold=threshold), Stage(members=MEMBERS, threshold=None))
        cascade = dataclasses.replace(selection, stages=stages)
        save_committee(cascade, members, folder / f"ours as a cascade, {share} % continue")
    cascades = [f"ours as a cascade, {share} % continue" for share in (0, 25, 100)]
    return [KERAS_EXPORT, KERAS_EXPORT_OUR_NORM, *ours, *cascades]


def build_committee(architecture):
    """Return the members and the selection of all of them."""
    selected = [SelectedMember(run="", index=i, weights="", name="", parameters=0, mflops=0.0) for i in range(MEMBERS)]
    selection = Selection(members=tuple(selected), head="geometric_mean", classes=CLASSES)
    return [build_member(architecture, seed) for seed in range(MEMBERS)], selection


def export_ours(members, selection, folder):
    """Write our SavedModel in each precision that this machine multiplies matrices in; return the rows' names."""
    from keras_committee.export.export import save_committee

    save_committee(selection, members, folder / OURS)
    if not tensorflow_device().has_bfloat16:
        return [OURS]
    save_committee(selection, members, folder / OURS_IN_BFLOAT16, precision="bfloat16")
    return [OURS, OURS_IN_BFLOAT16]


def measure(processes, batches, rounds):
    """Return, for each row and batch size: seconds of all calls, median CPU seconds and median memory in bytes."""
    results = {(name, batch): [] for name in processes for batch in batches}
    for batch in batches:
        for process in processes.values():
            session_process.call(process, batch, 2)
        for _ in range(rounds):
            for name, process in processes.items():
                results[name, batch].append(session_process.call(process, batch, max(1, 16 // batch)))
    return {key: combine_rounds(rounds) for key, rounds in results.items()}


def combine_rounds(rounds):
    seconds, cpu_seconds, memory = zip(*rounds, strict=True)
    return np.concatenate(seconds), statistics.median(cpu_seconds), statistics.median(memory)


def folder_size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(architecture, batches, rounds):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = export_all(architecture, folder)
        measured = measure_exports(folder, names, batches, rounds)
        sizes = {name: folder_size(folder / name) for name in names}
        with network.local_server(folder / "ours", folder) as addresses:
            requests = {
                (protocol, batch): network.measure_requests(
                    addresses, protocol, batch, rounds * max(1, 64 // batch), SHAPE
                )
                for batch in batches
                for protocol in network.PROTOCOLS
            }
    return {
        "machine": describe_machine(),
        "network": f"{MEMBERS} x {NETWORKS[architecture]}, 32x32",
        "rounds": rounds,
        "rows": [
            *(session_row(name, batch, measured, sizes) for batch in batches for name in names),
            *skipped_rows(names),
            *(request_row(protocol, batch, *seconds, measured) for (protocol, batch), seconds in requests.items()),
            *(reading_row(batch, *network.measure_reading(batch, rounds, SHAPE)) for batch in batches),
        ],
    }


def run_precisions(batches, rounds):
    """Measure our export of narrow and of wide members in both precisions."""
    rows = []
    for architecture in ("wrn", "wrn-16-4"):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            names = export_ours(*build_committee(architecture), folder)
            measured = measure_exports(folder, names, batches, rounds)
            sizes = {name: folder_size(folder / name) for name in names}
        measured_rows = [session_row(name, batch, measured, sizes, OURS) for batch in batches for name in names]
        label = f"{MEMBERS} x {NETWORKS[architecture]}"
        rows += [{**row, "name": f"{label}, {row['name']}"} for row in [*measured_rows, *skipped_rows(names)]]
    return {"machine": describe_machine(), "network": f"{MEMBERS} members, 32x32", "rounds": rounds, "rows": rows}


def measure_exports(folder, names, batches, rounds):
    processes = {name: session_process.start(folder / name) for name in names}
    try:
        return measure(processes, batches, rounds)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def skipped_rows(names):
    """Return a row that says why bfloat16 was not measured, if it was not."""
    if OURS_IN_BFLOAT16 in names:
        return []
    return [{"name": OURS_IN_BFLOAT16, "skipped": f"not measured: {tensorflow_device().reason}"}]


def describe_machine():
    reason = tensorflow_device().reason
    return f"{os.cpu_count()} {platform.machine()} cores, {reason}, TensorFlow {version('tensorflow')}"


def session_row(name, batch, measured, sizes, reference=KERAS_EXPORT):
    seconds, cpu_seconds, memory = measured[name, batch]
    reference_seconds, reference_cpu_seconds, _ = measured[reference, batch]
    return {
        "name": f"{name}, batch {batch}",
        **latency(seconds),
        "ratio": statistics.median(reference_seconds) / statistics.median(seconds),
        "cpu_ratio": reference_cpu_seconds / cpu_seconds,
        "images_per_second": batch / statistics.median(seconds),
        "file_bytes": sizes[name],
        "resident_bytes": memory,
    }


def request_row(protocol, batch, seconds, total_seconds, measured):
    """Return a row of the local server; its ratio is its throughput relative to one caller of the session."""
    rate = batch * len(seconds) / total_seconds
    return {
        "name": f"ours over {protocol}, {network.CLIENTS} clients, batch {batch}",
        **latency(seconds),
        "ratio": rate * statistics.median(measured["ours", batch][0]) / batch,
        "images_per_second": rate,
    }


def reading_row(batch, seconds, json_seconds):
    """Return a row of the time to read a request of JSON numbers, relative to Python's json and NumPy."""
    return {
        "name": f"ours reading JSON numbers, batch {batch}",
        **latency(seconds),
        "ratio": statistics.median(json_seconds) / statistics.median(seconds),
        "images_per_second": batch / statistics.median(seconds),
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
        if "skipped" in row:
            lines.append(f"| {row['name']} | {row['skipped']} |" + " |" * 6)
            continue
        sizes = [""] * 2
        if "file_bytes" in row:
            sizes = [f"{row['file_bytes'] / 1e6:.2f}", f"{row['resident_bytes'] / 1e6:.0f}"]
        lines.append(
            f"| {row['name']} | {1e3 * row['median']:.2f} | {1e3 * row['p99']:.2f} | {row['ratio']:.2f} | "
            f"{row.get('cpu_ratio', float('nan')):.2f} | {row['images_per_second']:.0f} | {' | '.join(sizes)} |"
        )
    return "\n".join(lines).replace("nan", "")


def trained_table(rows, batch):
    lines = [f"batches of {batch}", "| export | accuracy | members used | images/s | ratio |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        lines.append(
            f"| {row['name']} | {100 * row['accuracy']:.2f} % | {row['members_used']:.2f} | "
            f"{row['images_per_second']:.0f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure batch 1 and 32 only, in fewer rounds")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument(
        "--network", choices=list(NETWORKS), default="wrn", help="architecture of the members [default: wrn]"
    )
    parser.add_argument("--bfloat16", action="store_true", help="compare our export in bfloat16 with that in float32")
    parser.add_argument("--rounds", type=int, help="number of rounds")
    parser.add_argument("--trained", nargs=2, metavar=("COMMITTEE", "CASCADE"), help="version folders of two exports")
    parser.add_argument("--images", help="folder of class folders for --trained")
    parser.add_argument("--batch", type=int, default=32, help="number of images per call for --trained")
    arguments = parser.parse_args()
    if arguments.trained:
        if not arguments.images:
            parser.error("--trained needs --images")
        exports = dict(zip(("committee", "cascade"), arguments.trained, strict=True))
        rows = trained_exports.compare(exports, arguments.images, arguments.batch)
        print(json.dumps({"rows": rows}) if arguments.json else trained_table(rows, arguments.batch))
        sys.exit()
    batches = (1, 32) if arguments.quick else (1, 8, 32, 128)
    if arguments.bfloat16:
        result = run_precisions((1, 32), arguments.rounds or 15)
    else:
        result = run(arguments.network, batches, arguments.rounds or (15 if arguments.quick else 30))
    print(json.dumps(result) if arguments.json else table(result))
