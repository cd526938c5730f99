"""Out-of-fold predictions: of each training image by the members that were not trained on it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_committee import aggregation, metrics
from keras_committee.data import Split, Splits
from keras_committee.data.resampling import Resampling
from keras_committee.errors import RunError
from keras_committee.evaluation.predictions import predict_examples
from keras_committee.layers import subset_head
from keras_committee.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Predictions on the training images that at least one member was not trained on.

    Attributes:
        rows: Indices in the training split, ascending: int64 `(images,)`.
        probabilities: Of the committee of the members that were not trained on the image: float32 `(images, classes)`.
        labels: int32 `(images,)`.
        members_per_image: Mean number of these members.
        training_images: Number of images of the training split.
    """

    rows: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray
    members_per_image: float
    training_images: int

    def scores(self) -> dict[str, Any]:
        """Return the numbers for `evaluation.json`, with the 95 % Wilson interval of the accuracy."""
        scores = metrics.classification_metrics(self.probabilities, self.labels)
        return {
            "images": len(self.rows),
            "training_images": self.training_images,
            "members_per_image": self.members_per_image,
            **scores,
            "accuracy_interval": metrics.accuracy_interval(scores["accuracy"], len(self.rows)),
        }


def predict_out_of_fold(run: Run, members: Sequence[int], splits: Splits, head: Any) -> OutOfFold | None:
    """Return the out-of-fold predictions of members that were trained with `Recipe(resample=...)`.

    Args:
        run: The run folder. Its journal has the resampling with which each member was trained; one that was trained
            without, or on other data, predicts nothing.
        members: Indices of the members.
        splits: The loaded data.
        head: Layer that combines the members that were not trained on an image.

    Returns:
        The predictions; None if every image was seen by all members.

    Raises:
        DataError: If an image cannot be read.
        VerificationError: If the output of a member is not one finite number per class.
    """
    held_out = _held_out_rows(run, members, splits.train)
    if not held_out:
        return None
    columns, train = list(held_out), splits.train
    unseen = np.zeros((len(train), len(columns)), bool)
    positions = np.zeros((len(train), len(columns)), np.int64)  # of each image in the predictions of a member
    predictions = []
    for column, (index, rows) in enumerate(held_out.items()):
        unseen[rows, column], positions[rows, column] = True, np.arange(len(rows))
        predictions.append(predict_examples(run, index, "out_of_fold", train.subset(rows), len(splits.classes)))
    covered = np.flatnonzero(unseen.any(axis=1))
    probabilities = np.empty((len(covered), len(splits.classes)), np.float32)
    patterns, pattern_of = np.unique(unseen[covered], axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        is_here, chosen = pattern_of.ravel() == number, np.flatnonzero(pattern)
        rows = covered[is_here]
        log_probs = np.stack([predictions[column][positions[rows, column]] for column in chosen], axis=1)
        part_head = subset_head(head, [columns[column] for column in chosen])
        probabilities[is_here] = aggregation.combine(part_head, log_probs)
    return OutOfFold(
        rows=covered,
        probabilities=probabilities,
        labels=train.labels[covered],
        members_per_image=float(unseen[covered].sum(axis=1).mean()),
        training_images=len(train),
    )


def _held_out_rows(run: Run, members: Sequence[int], train: Split) -> dict[int, np.ndarray]:
    """Return the training images that each member was not trained on, for those that have any."""
    try:
        started = [event for event in run.events() if event["event"] == "training_started"]
    except RunError:  # the journal is damaged: nothing is known about the training
        return {}
    if not any("resampling" in event for event in started):
        return {}  # the fingerprint of many files takes long
    recorded: dict[int, Resampling] = {}
    fingerprint = train.fingerprint()
    for event in started:
        known = event.get("resampling") if event.get("data") == fingerprint else None
        for index in event["members"]:
            recorded.pop(index, None)
            if known:
                recorded[index] = Resampling.from_dict(known)
    held_out = {index: recorded[index].held_out(train.labels, index) for index in members if index in recorded}
    return {index: rows for index, rows in held_out.items() if len(rows)}
