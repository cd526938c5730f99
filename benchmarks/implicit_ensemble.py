"""The implicit ensemble of stochastic depth: committees of random subnetworks of one trained network.

    python benchmarks/implicit_ensemble.py runs/cifar_stochastic_depth
    python benchmarks/implicit_ensemble.py runs/cifar_stochastic_depth --samples 4 --json implicit_ensemble.json

For each member of the run: accuracy, NLL and ECE on the test images of the whole network, in which every branch runs
scaled by its survival probability, and of the geometric and the arithmetic mean of 1, 4, 16, ... subnetworks, in which
each block runs with that probability (`models.mc_stochastic_depth`). Smaller committees are disjoint groups of the
same subnetworks; their figures are means, with the standard deviation over the groups.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_committee import aggregation, metrics, models
from keras_committee.models.loading import load_member
from keras_committee.models.predict import log_probabilities
from keras_committee.run import Run

HEADS = "geometric_mean", "arithmetic_mean"


def main() -> None:
    """Print one JSON document with the rows of every member."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=16, help="subnetworks, a power of 4 (default 16)")
    parser.add_argument("--limit", type=int, default=None, help="number of test images (default all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the subnetworks (default 0)")
    parser.add_argument("--json", type=Path, help="write the document to this file")
    options = parser.parse_args()
    run = Run.open(options.run)
    test = run.recipe().data.load().test
    images = np.concatenate([batch for batch, _ in test.batches(500).as_numpy_iterator()])[: options.limit]
    labels = test.labels[: options.limit]
    rows = []
    for index in run.finished_members():
        model = load_member(run.member(index).model)
        whole = log_probabilities(model, [images[start : start + 500] for start in range(0, len(images), 500)])
        rows.append({"member": index, "subnetworks": 0, **scores([np.exp(whole)], labels)})
        sampled = np.log(np.maximum(models.mc_stochastic_depth(model, images, options.samples, options.seed), 1e-30))
        for head in HEADS:
            rows += [{"member": index, "head": head, **row} for row in committees(head, sampled, labels)]
    document = {"run": options.run.name, "examples": len(labels), "seed": options.seed, "rows": rows}
    print(json.dumps(document, indent=1))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def committees(head: str, log_probs: np.ndarray, labels: np.ndarray) -> list[dict]:
    """Return a row for committees of 1, 4, 16, ... subnetworks of `log_probs` `(examples, all, classes)`."""
    rows, size = [], 1
    while size <= log_probs.shape[1]:
        groups = [log_probs[:, start : start + size] for start in range(0, log_probs.shape[1] - size + 1, size)]
        combined = [aggregation.combine(head, group, dtype=np.float64) for group in groups]
        rows.append({"subnetworks": size, "groups": len(groups), **scores(combined, labels)})
        size *= 4
    return rows


def scores(groups: list[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Return the means of accuracy, NLL and ECE over groups of probabilities, and the deviations of several groups."""
    found = [metrics.classification_metrics(probabilities, labels) for probabilities in groups]
    result = {name: float(np.mean([each[name] for each in found])) for name in ("accuracy", "nll", "ece")}
    if len(found) > 1:
        result |= {f"{name}_std": float(np.std([each[name] for each in found], ddof=1)) for name in result}
    return result


if __name__ == "__main__":
    main()
