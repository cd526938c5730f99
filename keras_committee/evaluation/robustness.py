"""How do the members and their committee fare on images that are corrupted, and do they notice foreign ones?"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.data import Split, ood_images
from keras_committee.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt_images
from keras_committee.data.dataset import stratified_indices
from keras_committee.data.image_files import read_image_folder
from keras_committee.errors import DataError
from keras_committee.evaluation.predictions import load_or_compute_predictions, preload
from keras_committee.files import write_json
from keras_committee.layers import GeometricMean, confidence, head_name, subset_head
from keras_committee.models.loading import load_member
from keras_committee.models.predict import Predictor
from keras_committee.recipe import Recipe
from keras_committee.run import Run

BATCH_SIZE = 256
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
    """Corrupt the images of the test split, confront the committee with foreign ones, and write `robustness.json`.

    Args:
        run: The run folder.
        recipe: Its recipe.
        corruptions: Some of `data.corruptions.CORRUPTIONS`.
        severities: Some of 1 to 5.
        max_examples: At most so many images of the test split, spread over the classes, and as many foreign ones of a kind.
        ood_dir: A folder of foreign images, besides the generated ones.
        seed: Integer of 0 or more; the corruptions and the generated images follow from it.
        min_members: As in `load_or_compute_predictions`.

    Returns:
        The content of `robustness.json`:

        - `recipe`, `head`, `split`, `max_examples`, `classes` (their number), `seed`, `members` (their indices).
        - `clean_predictions`: `members`, a list, and `committee`, each with `accuracy`, `nll` and `ece` on the images as they are.
        - `corruptions`: the same for each `kind` and `severity`.
        - `mean`: the means over all `corruptions`.
        - `foreign`: for each `source`, a name in `data.foreign.OOD_GENERATORS` or the folder, its `max_examples`, and `auroc` and
          `fpr95` of telling them from the clean images by the committee's `confidence` (its largest probability) and
          by the `mutual_information` of class and member.

    Raises:
        DataError: If there is no test split, the data or the folder cannot be read, or images have not 3 channels.
        IncompleteError: If too few members are trained.
        VerificationError: If a member's votes are no votes.
    """
    recipe, splits = preload(recipe)
    images, labels = _sample(splits.test, max_examples, run)
    size = images.shape[1:3]
    # Read before all the work: a mistyped folder is told at once.
    folder_images = (
        {} if ood_dir is None else {str(ood_dir): read_image_folder(ood_dir, len(labels), splits.test.transform)}
    )
    members = load_or_compute_predictions(run, recipe, "test", min_members).members
    evaluator = _CorruptionEvaluator(run, members, subset_head(recipe.head or GeometricMean(), members))
    clean_predictions = evaluator.predict(images)
    rows = [
        {"kind": kind, "severity": severity}
        | evaluator.scores(evaluator.predict_corrupted(images, kind, severity, seed), labels)
        for kind, severity in itertools.product(corruptions, severities)
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
        "foreign": [
            {
                "source": source,
                "examples": len(source_images),
                **evaluator.ood_detection(clean_predictions, evaluator.predict(source_images)),
            }
            for source, source_images in _ood_images(len(labels), size, seed, folder_images)
        ],
    }
    write_json(run.path / "robustness.json", result)
    run.append_event("tested for robustness", corruptions=len(rows), examples=len(labels))
    return result


class _CorruptionEvaluator:
    """The members, each loaded once, and what they say together."""

    def __init__(self, run: Run, members: Sequence[int], head: Any):
        self.head = head
        self._predictors = [Predictor(load_member(run.member(index).model)) for index in members]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """float32 log probabilities `(examples, members, classes)`."""
        return self._predict_batches(images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))

    def predict_corrupted(self, images: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
        starts = range(0, len(images), BATCH_SIZE)
        return self._predict_batches(
            corrupt_images(images[start : start + BATCH_SIZE], kind, severity, seed, start) for start in starts
        )

    def _predict_batches(self, batches: Iterator[np.ndarray]) -> np.ndarray:
        return np.concatenate(
            [np.stack([predictor([batch]) for predictor in self._predictors], axis=1) for batch in batches]
        )

    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        return {
            "members": [
                _select_scores(np.exp(predictions[:, position]), labels) for position in range(predictions.shape[1])
            ],
            "committee": _select_scores(keras.ops.convert_to_numpy(self.head(predictions)), labels),
        }

    def ood_detection(self, in_distribution: np.ndarray, ood: np.ndarray) -> dict[str, dict[str, float]]:
        measures = {"confidence": self._confidence, "mutual_information": _negative_mutual_information}
        return {
            name: {
                "auroc": metrics.auroc(measure(in_distribution), measure(ood)),
                "fpr95": metrics.fpr_at_tpr(measure(in_distribution), measure(ood)),
            }
            for name, measure in measures.items()
        }

    def _confidence(self, predictions: np.ndarray) -> np.ndarray:
        return keras.ops.convert_to_numpy(confidence("max_probability", self.head(predictions), predictions))


def _negative_mutual_information(predictions: np.ndarray) -> np.ndarray:
    """Larger for images that are known: the negative mutual information."""
    return -metrics.uncertainty_decomposition(np.exp(predictions))["mutual"]


def _sample(split: Split, max_examples: int, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 `(n, height, width, 3)`, and labels of at most so many examples."""
    if not len(split) or split.image_shape[2] != 3:
        problem = f"images of {split.image_shape[2]} channels, not 3" if len(split) else "no test split"
        raise DataError(f"the data of {run.path} have {problem}: there is nothing to corrupt.")
    sampled = split.subset(stratified_indices(split.labels, max_examples))
    return np.concatenate([np.asarray(images) for images, _ in sampled.batches(BATCH_SIZE)]), sampled.labels


def _ood_images(
    num_examples: int, size: tuple[int, int], seed: int, folder_images: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The generated images, a kind at a time, and then those that were found."""
    for kind in ood_images.OOD_GENERATORS:
        yield kind, ood_images.generate_ood(kind, num_examples, size, seed)
    yield from folder_images.items()


def _select_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    summary = metrics.classification_metrics(probabilities, labels)
    return {name: summary[name] for name in _SCORE_NAMES}


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(each: list[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([scores[name] for scores in each])) for name in _SCORE_NAMES}

    members = zip(*(row["members"] for row in rows), strict=True)
    return {"members": [mean(list(each)) for each in members], "committee": mean([row["committee"] for row in rows])}
