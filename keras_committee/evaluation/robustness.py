"""Robustness of members and committee: corrupted images, and detection of out-of-distribution images."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee import aggregation, metrics
from keras_committee.data import Split, ood_images
from keras_committee.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt_images
from keras_committee.data.dataset import stratified_indices
from keras_committee.data.image_files import read_image_folder
from keras_committee.data.validation import name_unreadable_images
from keras_committee.errors import DataError, pluralize
from keras_committee.evaluation.predictions import load_or_compute_predictions, preload
from keras_committee.files import write_record
from keras_committee.layers import GeometricMean, head_name, subset_head
from keras_committee.models.loading import load_member
from keras_committee.models.predict import Predictor
from keras_committee.progress import step, track
from keras_committee.recipe import Recipe
from keras_committee.run import Run

_BATCH_SIZE = 256
_SCORE_NAMES = ("accuracy", "nll", "ece")


def robustness(
    run: Run,
    recipe: Recipe,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    max_examples: int = 1000,
    ood_dir: Path | None = None,
    seed: int = 0,
    min_members: int | None = None,
) -> dict[str, Any]:
    """Evaluate corrupted test images and the detection of out-of-distribution images, and write `robustness.json`.

    Args:
        run: The run folder.
        recipe: Its recipe.
        corruptions: Names from `data.corruptions.CORRUPTIONS`.
        severities: Integers from 1 to 5.
        max_examples: Maximum number of test images, balanced over the classes, and of out-of-distribution images of
            each source.
        ood_dir: Folder of out-of-distribution images, in addition to the generated ones.
        seed: Seed of the corruptions and the generated images, an integer of at least 0.
        min_members: As in `load_or_compute_predictions`.

    Returns:
        The content of `robustness.json`:

        - `recipe`, `head`, `split`, `examples` and `classes` (their numbers), `seed`, `members` (their indices).
        - `clean`: `members`, a list, and `committee`, each with `accuracy`, `nll` and `ece` on the original images.
        - `corruptions`: the same for each `kind` and `severity`.
        - `mean`: the means over all `corruptions`.
        - `foreign`: for each `source`, a name in `data.ood_images.OOD_GENERATORS` or the folder, its number of
          `examples`, and `auroc` and `fpr95` of separating them from the clean images by the committee's `confidence`
          (its largest probability) and by the `mutual_information` of class and member.

    Raises:
        DataError: If there is no test split, the data or the folder cannot be read, or the images are not RGB.
        IncompleteError: If too few members are trained.
        VerificationError: If a member's predictions are not finite.
    """
    recipe, splits = preload(recipe)
    images, labels = _sample(splits.test, max_examples, run)
    size = images.shape[1:3]
    # Read first, so that a mistyped folder fails at once.
    folder_images = (
        {} if ood_dir is None else {str(ood_dir): read_image_folder(ood_dir, len(labels), splits.test.transform)}
    )
    members = load_or_compute_predictions(run, recipe, "test", min_members).members
    evaluator = _CorruptionEvaluator(run, members, subset_head(recipe.head or GeometricMean(), members))
    clean_predictions = evaluator.predict(images)
    variants = list(itertools.product(corruptions, severities))
    rows = [
        {"kind": kind, "severity": severity}
        | evaluator.scores(evaluator.predict_corrupted(images, kind, severity, seed), labels)
        for kind, severity in track(variants, f"predicting {len(variants)} corruptions of the images", len(variants))
    ]
    with step("predicting out-of-distribution images"):
        foreign = [
            {
                "source": source,
                "examples": len(source_images),
                **evaluator.ood_detection(clean_predictions, evaluator.predict(source_images)),
            }
            for source, source_images in _ood_images(len(labels), size, seed, folder_images)
        ]
    result = {
        "recipe": run.recipe_file().name,
        "head": head_name(evaluator.head),
        "split": "test",
        "examples": len(labels),
        "classes": len(splits.classes),
        "seed": seed,
        "members": list(members),
        "clean": evaluator.scores(clean_predictions, labels),
        "corruptions": rows,
        "mean": _mean(rows),
        "foreign": foreign,
    }
    write_record(run.path / "robustness.json", result)
    run.append_event("robustness_evaluated", corruptions=len(rows), examples=len(labels))
    return result


class _CorruptionEvaluator:
    """The members, each loaded once, and the scores of their committee."""

    def __init__(self, run: Run, members: Sequence[int], head: Any):
        self.head = head
        indices = track(members, f"loading {pluralize(len(members), 'member')}", len(members))
        self._predictors = [Predictor(load_member(run.member(index).model)) for index in indices]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return float32 log-probabilities `(examples, members, classes)`."""
        return self._predict_batches(
            images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)
        )

    def predict_corrupted(self, images: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
        """Return the log-probabilities of corrupted images, which are made one batch at a time."""
        starts = range(0, len(images), _BATCH_SIZE)
        return self._predict_batches(
            corrupt_images(images[start : start + _BATCH_SIZE], kind, severity, seed, start) for start in starts
        )

    def _predict_batches(self, batches: Iterator[np.ndarray]) -> np.ndarray:
        return np.concatenate(
            [np.stack([predictor([batch]) for predictor in self._predictors], axis=1) for batch in batches]
        )

    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Return accuracy, NLL and ECE of the members and of the committee."""
        return {
            "members": [
                _select_scores(np.exp(predictions[:, position]), labels) for position in range(predictions.shape[1])
            ],
            "committee": _select_scores(aggregation.combine(self.head, predictions), labels),
        }

    def ood_detection(self, in_distribution: np.ndarray, ood: np.ndarray) -> dict[str, dict[str, float]]:
        """Return `auroc` and `fpr95` by each measure, from log-probabilities `(examples, members, classes)`."""
        known, unknown = (self._detection_scores(predictions) for predictions in (in_distribution, ood))
        return {
            name: {
                "auroc": metrics.auroc(known[name], unknown[name]),
                "fpr95": metrics.fpr_at_tpr(known[name], unknown[name]),
            }
            for name in known
        }

    def _detection_scores(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """Return scores `(examples,)` that are higher for in-distribution images."""
        probabilities = aggregation.combine(self.head, predictions)
        return {
            "confidence": aggregation.confidence("max_probability", probabilities, predictions),
            "mutual_information": -aggregation.uncertainty(predictions)["mutual"],
        }


def _sample(split: Split, max_examples: int, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 `(n, height, width, 3)`, and labels of at most `max_examples` examples."""
    if not len(split) or split.image_shape[2] != 3:
        problem = f"images of {split.image_shape[2]} channels, not 3" if len(split) else "no test split"
        raise DataError(f"the data of {run.path} have {problem}: there is nothing to corrupt.")
    sampled = split.subset(stratified_indices(split.labels, max_examples))
    with name_unreadable_images(sampled):
        return np.concatenate([np.asarray(images) for images, _ in sampled.batches(_BATCH_SIZE)]), sampled.labels


def _ood_images(
    num_examples: int, size: tuple[int, int], seed: int, folder_images: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the generated images, one kind at a time, then those of the folder."""
    for kind in ood_images.OOD_GENERATORS:
        yield kind, ood_images.generate_ood(kind, num_examples, size, seed)
    yield from folder_images.items()


def _select_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    summary = metrics.classification_metrics(probabilities, labels)
    return {name: summary[name] for name in _SCORE_NAMES}


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([score[name] for score in scores])) for name in _SCORE_NAMES}

    members = zip(*(row["members"] for row in rows), strict=True)
    return {"members": [mean(scores) for scores in members], "committee": mean([row["committee"] for row in rows])}
