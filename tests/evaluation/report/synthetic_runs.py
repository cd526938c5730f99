"""Synthetic runs for tests of the report: predictions from a seed, and everything else that a run folder contains."""

import pathlib

import numpy as np

from keras_committee.evaluation.evaluate import _all_scores, score_committees_of_size
from keras_committee.evaluation.predictions import SplitPredictions
from keras_committee.evaluation.report.run_data import RunData, StochasticDepthStats
from keras_committee.layers import GeometricMean

CLASSES = ("<script>alert(1)</script>", "cat & dog", "$x_{1}$")
EXAMPLES = 200
LABELS = np.arange(EXAMPLES, dtype=np.int32) * 7 % 3


class GrayImages:
    """Gray images whose brightness is their index; a split and its images in one."""

    image_shape = (8, 8, 3)

    def __init__(self, indices):
        self.indices = np.asarray(indices)
        self.images = self

    def name(self, index):
        return f"<b>{self.indices[index]}</b>.png"

    def subset(self, indices):
        return GrayImages(self.indices[indices])

    def batches(self, size):
        images = np.broadcast_to(self.indices[:size, None, None, None], (len(self.indices[:size]), 8, 8, 3))
        return [(images.astype(np.uint8), None)]


def log_probabilities(members, skill, seed):
    """float32 `(examples, members, classes)`: `skill` is added to the logit of the true class."""
    logits = np.random.default_rng(seed).normal(size=(EXAMPLES, members, 3)) * 1.3
    logits[np.arange(EXAMPLES), :, LABELS] += skill
    return (logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))).astype(np.float32)


def evaluation_of(predictions, names, costs):
    """Return the content of `evaluation.json`."""
    probabilities = np.exp(predictions.log_probabilities)
    return {
        "recipe": "synthetic",
        "split": "test",
        "examples": EXAMPLES,
        "classes": 3,
        "head": "geometric_mean",
        "members": [
            {"index": index, "name": name, "parameters": 1000 * (1 + int(cost or 0)), "mflops": cost}
            | _all_scores(probabilities[:, index], predictions.labels)
            for index, (name, cost) in enumerate(zip(names, costs, strict=True))
        ],
        "missing": [],
        "committees": [
            score_committees_of_size(size, predictions, GeometricMean(), costs) for size in range(1, len(names) + 1)
        ],
    }


def run_data(name, names, costs, *, skill=1.2, seed=1, depth=None, other_results=None):
    """Return a run whose members have these names and costs."""
    log_probs = log_probabilities(len(names), skill, seed)
    predictions = SplitPredictions(
        members=tuple(range(len(names))),
        log_probabilities=log_probs,
        labels=LABELS,
        classes=CLASSES,
        weight_hashes=tuple(f"{name}-{index}" for index in range(len(names))),
        data_fingerprint="same",
    )
    return RunData(
        name=name,
        path=pathlib.Path("runs", name),
        docstring="Synthetic.\n\nMore.",
        parameters={"members": len(names), "rate": 0.2},
        environment={
            "recipe": "synthetic",
            "smoke": False,
            "seed": 7,
            "command": "keras-committee train synthetic.py",
            "versions": {"keras": "3.15.1", "none": None},
            "commit": None,
            "platform": "Linux",
            "cpus": 2,
        },
        events=[
            {"time": "2026-02-03T04:00:00+00:00", "event": "training_started"},
            {"time": "2026-02-03T05:00:00+00:00", "event": "training_finished"},
        ],
        evaluation=evaluation_of(predictions, names, costs),
        predictions=predictions,
        head=GeometricMean(),
        histories={index: history(index, depth) for index in range(len(names))},
        anytime_accuracy=([1, 2, 3], [0.5, 0.62, 0.71]),
        other_results=other_results or {},
        examples=GrayImages(range(EXAMPLES)),
        data_name="synthetic",
        split_sizes={"train": 5_000, "test": EXAMPLES},
        depth_stats=StochasticDepthStats(num_blocks=9, expected_depth=6.9, expected_flops_reduction=0.21)
        if depth
        else None,
    )


def history(index, depth):
    """Return three epochs at 100 images/s, or 125 with stochastic depth."""
    rows = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "learning_rate": 0.1,
            "loss": 2.0 / epoch + 0.1 * index,
            "accuracy": 0.2 * epoch,
            "images_per_second": 125.0 if depth else 100.0,
            "validation_accuracy": 0.2 * epoch + 0.02 * index,
            "validation_nll": 1.0 / epoch,
        }
        for epoch in (1, 2, 3)
    ]
    return [row | {"realised_depth": depth + 0.2} for row in rows] if depth else rows
