"""Exports of one committee in every format: size, images per second, and difference from Keras.

    python benchmarks/formats.py            # three WRN-16-1; needs the extras serving, onnx, litert and openvino
    python benchmarks/formats.py --json

The committee and a cascade of the same members are exported in each format, and verified. Rounds are interleaved: in
each, every export runs for half a second at each batch size; rates are medians over the rounds. The cascade stops at
its first member for every image, so its rate at batch 1 shows whether the runtime leaves out the other members; "-"
where the runtime cannot run it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from interleaved.summary import summarize

from keras_committee import models
from keras_committee.errors import ExportError
from keras_committee.export import formats
from keras_committee.export.export import publish_committee
from keras_committee.selection import SelectedMember, Selection, Stage
from keras_committee.tfserving.session import Session

BATCH_SIZES = (1, 32)
CLASSES = tuple(f"class {index}" for index in range(10))
MEMBERS = 3


def committee(seed):
    """Return three members with the statistics and biases of trained ones, which no kernel folds away."""
    rng, members = np.random.default_rng(seed), []
    for index in range(MEMBERS):
        keras.utils.set_random_seed(seed + index)
        member = models.wide_resnet(16, 1, classes=len(CLASSES))
        for variable in member.variables:
            ranges = {"moving_variance": (0.5, 2.0), "gamma": (0.5, 1.5), "moving_mean": (-0.5, 0.5)}
            low_high = {**ranges, "beta": (-0.5, 0.5), "bias": (-0.5, 0.5)}.get(variable.name)
            if low_high is not None:
                variable.assign(rng.uniform(*low_high, variable.shape))
        members.append(member)
    return members


def selection(thresholds=None):
    chosen = tuple(
        SelectedMember(run="run", index=index, weights="", name=f"wrn_{index}", parameters=0, mflops=0.0)
        for index in range(MEMBERS)
    )
    stages = thresholds and tuple(
        Stage(members=index + 1, threshold=threshold) for index, threshold in enumerate([*thresholds, None])
    )
    return Selection(members=chosen, head="geometric_mean", classes=CLASSES, stages=stages)


def load(version):
    """Return a function of pixels that runs a version in its runtime."""
    if formats.version_format(version) != formats.SAVED_MODEL:
        return formats.load(version)
    session = Session.load(version).__enter__()
    return lambda images: session.run("serving_default", {"image": images})


def megabytes(version):
    """Return the size of the files that a runtime needs."""
    ignored = ("committee.json", "tf_serving_warmup_requests")
    return sum(file.stat().st_size for file in version.rglob("*") if file.is_file() and file.name not in ignored) / 1e6


def rate(run, images, seconds):
    """Return images per second of one function in `seconds`."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        run(images)
        count += len(images)
    return count / elapsed


def measure(folder, rounds, seconds):
    """Export, measure and return the document that is printed."""
    members = committee(seed=7)
    rng = np.random.default_rng(3)
    images = rng.uniform(0, 255, (max(BATCH_SIZES), 32, 32, 3)).astype(np.float32)
    runs, rows = {}, {}
    for name in formats.FORMATS:
        versions = {"committee": publish_committee(selection(), members, folder / name, model_format=name)}
        try:
            cascade = publish_committee(selection([0.0, 0.0]), members, folder / f"{name}_cascade", model_format=name)
        except ExportError as error:  # the runtime cannot run it, and nothing was published
            print(f"{name}: {error}", file=sys.stderr)
        else:
            versions["cascade"] = cascade
        verified = {
            kind: json.loads((path / "committee.json").read_text())["verified"] for kind, path in versions.items()
        }
        rows[name] = {
            "megabytes": megabytes(versions["committee"]),
            "difference": max(each["largest_difference"] for each in verified.values()),
            "runtime": verified["committee"]["runtime"],
        }
        runs |= {(name, kind): load(path) for kind, path in versions.items()}
    cases = [(name, "committee", size) for name in formats.FORMATS for size in BATCH_SIZES]
    cases += [(name, "cascade", 1) for name in formats.FORMATS if (name, "cascade") in runs]
    for name, kind, size in cases:
        rate(runs[name, kind], images[:size], seconds / 2)  # warms up
    rates = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases[number % len(cases) :] + cases[: number % len(cases)]:
            rates[case].append(rate(runs[case[:2]], images[: case[2]], seconds))
    summary = {row["name"]: row for row in summarize(rates, reference=(formats.SAVED_MODEL, "committee", 1))}
    for name, kind, size in cases:
        row = summary[name, kind, size]
        rows[name][f"{kind}, batch {size}"] = {key: row[key] for key in ("median", "half_iqr", "rounds")}
    first = {name: summary[name, "committee", 1] for name in formats.FORMATS}
    return {
        "machine": f"{os.cpu_count()} cores, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "rows": [
            {"name": name, "median": first[name]["median"], "ratio": first[name]["ratio"], **row}
            for name, row in rows.items()
        ],
    }


def table(document):
    """Return the result as a Markdown table."""
    titles = ("format", "runtime", "MB", "batch 1", "batch 32", "cascade, one member", "largest difference")
    lines = [f"| {' | '.join(titles)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in document["rows"]:
        labels = ("committee, batch 1", "committee, batch 32", "cascade, batch 1")
        rates = [f"{row[label]['median']:,.0f}" if label in row else "-" for label in labels]
        lines.append(
            f"| `{row['name']}` | {row['runtime']} | {row['megabytes']:.2f} | "
            + " | ".join(rates)
            + f" | {row['difference']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="number of interleaved rounds [default: 7]")
    parser.add_argument("--seconds", type=float, default=0.5, help="time of each measurement [default: 0.5]")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        result = measure(Path(home), arguments.rounds, arguments.seconds)
    print(json.dumps(result) if arguments.json else f"{result['machine']}\n{table(result)}", flush=True)
    os._exit(0)  # the runtimes of several vendors in one process do not all end cleanly
