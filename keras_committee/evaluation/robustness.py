"""How do the members and their committee fare on images that are corrupted, and do they notice foreign ones?"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.data import Split, ood_images
from keras_committee.data.corruptions import KINDS, SEVERITIES, corrupted
from keras_committee.data.dataset import evenly
from keras_committee.data.image_files import read_folder
from keras_committee.errors import DataError
from keras_committee.evaluation.predictions import cast_votes, loaded
from keras_committee.files import write_json
from keras_committee.layers import GeometricMean, confidence, head_name, head_of
from keras_committee.models.loading import load_member
from keras_committee.models.predict import Predictor
from keras_committee.recipe import Recipe
from keras_committee.run import Run

BATCH = 256
_SCORES = ("accuracy", "nll", "ece")


def robustness(
    run: Run,
    recipe: Recipe,
    *,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = SEVERITIES,
    examples: int = 1000,
    folder: Path | None = None,
    seed: int = 0,
    min_members: int | None = None,
) -> dict[str, Any]:
    """Corrupt the images of the test split, confront the committee with foreign ones, and write `robustness.json`.

    Args:
        run: The run folder.
        recipe: Its recipe.
        kinds: Some of `data.corruptions.KINDS`.
        severities: Some of 1 to 5.
        examples: At most so many images of the test split, spread over the classes, and as many foreign ones of a kind.
        folder: A folder of foreign images, besides the generated ones.
        seed: Integer of 0 or more; the corruptions and the generated images follow from it.
        min_members: As in `cast_votes`.

    Returns:
        The content of `robustness.json`:

        - `recipe`, `head`, `split`, `examples`, `classes` (their number), `seed`, `members` (their indices).
        - `clean`: `members`, a list, and `committee`, each with `accuracy`, `nll` and `ece` on the images as they are.
        - `corruptions`: the same for each `kind` and `severity`.
        - `mean`: the means over all `corruptions`.
        - `foreign`: for each `source`, a name in `data.foreign.FOREIGN` or the folder, its `examples`, and `auroc` and
          `fpr95` of telling them from the clean images by the committee's `confidence` (its largest probability) and
          by the `mutual_information` of class and member.

    Raises:
        DataError: If there is no test split, the data or the folder cannot be read, or images have not 3 channels.
        IncompleteError: If too few members are trained.
        VerificationError: If a member's votes are no votes.
    """
    recipe, splits = loaded(recipe)
    images, labels = _some_of(splits.test, examples, run)
    size = images.shape[1:3]
    # Read before all the work: a mistyped folder is told at once.
    found = {} if folder is None else {str(folder): read_folder(folder, len(labels), splits.test.framing)}
    members = cast_votes(run, recipe, "test", min_members).members
    jury = _Jury(run, members, head_of(recipe.head or GeometricMean(), members))
    clean = jury.votes(images)
    rows = [
        {"kind": kind, "severity": severity}
        | jury.scores(jury.votes_on_corrupted(images, kind, severity, seed), labels)
        for kind, severity in itertools.product(kinds, severities)
    ]
    result = {
        "recipe": run.recipe_file().name,
        "head": head_name(jury.head),
        "split": "test",
        "examples": len(labels),
        "classes": len(splits.classes),
        "seed": seed,
        "members": list(members),
        "clean": jury.scores(clean, labels),
        "corruptions": rows,
        "mean": _mean(rows),
        "foreign": [
            {"source": source, "examples": len(strange), **jury.detection(clean, jury.votes(strange))}
            for source, strange in _strangers(len(labels), size, seed, found)
        ],
    }
    write_json(run.path / "robustness.json", result)
    run.journal("tested for robustness", corruptions=len(rows), examples=len(labels))
    return result


class _Jury:
    """The members, each loaded once, and what they say together."""

    def __init__(self, run: Run, members: Sequence[int], head: Any):
        self.head = head
        self._predictors = [Predictor(load_member(run.member(index).model)) for index in members]

    def votes(self, images: np.ndarray) -> np.ndarray:
        """float32 log probabilities `(examples, members, classes)`."""
        return self._votes(images[start : start + BATCH] for start in range(0, len(images), BATCH))

    def votes_on_corrupted(self, images: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
        starts = range(0, len(images), BATCH)
        return self._votes(corrupted(images[start : start + BATCH], kind, severity, seed, start) for start in starts)

    def _votes(self, batches: Iterator[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.stack([ask([batch]) for ask in self._predictors], axis=1) for batch in batches])

    def scores(self, votes: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        return {
            "members": [_scores(np.exp(votes[:, place]), labels) for place in range(votes.shape[1])],
            "committee": _scores(keras.ops.convert_to_numpy(self.head(votes)), labels),
        }

    def detection(self, known: np.ndarray, foreign: np.ndarray) -> dict[str, dict[str, float]]:
        measures = {"confidence": self._confidence, "mutual_information": _certainty}
        return {
            name: {
                "auroc": metrics.auroc(measure(known), measure(foreign)),
                "fpr95": metrics.fpr_at_tpr(measure(known), measure(foreign)),
            }
            for name, measure in measures.items()
        }

    def _confidence(self, votes: np.ndarray) -> np.ndarray:
        return keras.ops.convert_to_numpy(confidence("max_probability", self.head(votes), votes))


def _certainty(votes: np.ndarray) -> np.ndarray:
    """Larger for images that are known: the negative mutual information."""
    return -metrics.uncertainty(np.exp(votes))["mutual"]


def _some_of(split: Split, examples: int, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 `(n, height, width, 3)`, and labels of at most so many examples."""
    if not len(split) or split.image_shape[2] != 3:
        wrong = f"images of {split.image_shape[2]} channels, not 3" if len(split) else "no test split"
        raise DataError(f"the data of {run.path} have {wrong}: there is nothing to corrupt.")
    chosen = split.take(evenly(split.labels, examples))
    return np.concatenate([np.asarray(images) for images, _ in chosen.batches(BATCH)]), chosen.labels


def _strangers(
    examples: int, size: tuple[int, int], seed: int, found: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The generated images, a kind at a time, and then those that were found."""
    for kind in ood_images.FOREIGN:
        yield kind, ood_images.generated(kind, examples, size, seed)
    yield from found.items()


def _scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    summary = metrics.summary(probabilities, labels)
    return {name: summary[name] for name in _SCORES}


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(each: list[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([scores[name] for scores in each])) for name in _SCORES}

    members = zip(*(row["members"] for row in rows), strict=True)
    return {"members": [mean(list(each)) for each in members], "committee": mean([row["committee"] for row in rows])}
