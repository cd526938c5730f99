"""The accuracy that an export in bfloat16 loses against the float32 committee on the validation images."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee import aggregation
from keras_committee.data import Split
from keras_committee.data.preprocessing import ImageTransform
from keras_committee.errors import ExportError
from keras_committee.export.committee_graph import resize_pixels
from keras_committee.layers import Resize
from keras_committee.metrics.intervals import accuracy_loss_interval, examples_for_loss
from keras_committee.models.predict import Predictor
from keras_committee.selection import Selection
from keras_committee.tfserving.session import Session

_BATCH_SIZE = 256


class AccuracyLossError(ExportError):
    """The export loses, or may lose, more accuracy than is allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccuracyCheck:
    """What a committee in bfloat16 is compared on, and the loss that is allowed.

    Attributes:
        split: Labeled validation images, at least one.
        source: Name of their run in messages.
        max_drop: Largest loss of accuracy in percentage points, above 0.
    """

    split: Split
    source: str
    max_drop: float


@dataclasses.dataclass(frozen=True)
class _Predictions:
    """Predictions of the members for all images, in float32 by Keras and in bfloat16 by the export.

    Attributes:
        labels: int32 `(examples,)`.
        exact: Log-probabilities divided by the temperatures in float32, `(examples, members, classes)`.
        rounded: The same in bfloat16.
        class_id: Class that the export returns, `(examples,)`.
        members_used: Number of members that the export ran, `(examples,)`.
    """

    labels: np.ndarray
    exact: np.ndarray
    rounded: np.ndarray
    class_id: np.ndarray
    members_used: np.ndarray


def check_accuracy(
    version_dir: Path,
    selection: Selection,
    models: Sequence[keras.Model],
    transforms: Sequence[ImageTransform],
    image_size: tuple[int, int],
    check: AccuracyCheck,
) -> dict[str, Any]:
    """Compare the version in `version_dir` with the Keras members in float32, and return what was measured.

    Args:
        version_dir: Folder of the SavedModel in bfloat16.
        selection: The selection.
        models: One float32 model for each member.
        transforms: The image transform of each member.
        image_size: Height and width of the images of `serving_default`.
        check: Images and bound.

    Returns:
        `examples`; `float32_accuracy` and `accuracy`, fractions; `drop`, `{"value", "low", "high"}` in percentage
        points with the 95 % interval; `max_drop`; and for a cascade `stops_changed`, the share of images that use
        another number of members than in float32, else None.

    Raises:
        AccuracyLossError: If the upper end of the interval is not below the bound.
    """
    predictions = _predict(version_dir, selection, models, transforms, image_size, check.split)
    exact = _run_committee(predictions.exact, selection)
    exact_correct = exact["class_id"] == predictions.labels
    correct = predictions.class_id == predictions.labels
    interval = accuracy_loss_interval(exact_correct, correct)
    if 100 * interval["high"] >= check.max_drop:
        raise AccuracyLossError(_explain_loss(interval, predictions, selection, check))
    stops_changed = float((predictions.members_used != exact["members_used"]).mean())
    return {
        "examples": len(correct),
        "float32_accuracy": float(exact_correct.mean()),
        "accuracy": float(correct.mean()),
        "drop": {name: 100 * value for name, value in interval.items()},
        "max_drop": check.max_drop,
        "stops_changed": stops_changed if selection.stages is not None else None,
    }


def _predict(version_dir, selection, models, transforms, image_size, split) -> _Predictions:
    predict_exactly = _exact_predictor(models, selection)
    batches = []
    with Session.load(version_dir) as session:
        for pixels, labels in _pixel_batches(split, image_size):
            resized = resize_pixels(pixels, transforms)
            all_members = session.run("predict_members", {"image": pixels})
            outputs = all_members if selection.stages is None else session.run("serving_default", {"image": pixels})
            exact = predict_exactly([np.asarray(resized[transform]) for transform in transforms])
            rounded = np.log(np.maximum(all_members["member_probabilities"], np.finfo(np.float32).tiny))
            batches.append((labels, exact, rounded, outputs["class_id"], outputs["members_used"]))
    return _Predictions(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))


def _pixel_batches(split: Split, image_size) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    resize = Resize(*image_size) if split.image_shape[:2] != image_size else None
    for images, labels in split.batches(_BATCH_SIZE).as_numpy_iterator():
        pixels = images.astype(np.float32)
        yield (pixels if resize is None else np.asarray(resize(pixels))), labels


def _exact_predictor(models, selection) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Return a function of each member's images that returns their predictions `(examples, members, classes)`."""
    predictors = {id(model): Predictor(model) for model in models}

    def predict(images):
        images_by_model = {id(model): model_images for model, model_images in zip(models, images, strict=True)}
        log_probs = {key: predictors[key]([model_images]) for key, model_images in images_by_model.items()}
        temperatures = [member.temperature for member in selection.members]
        rows = [log_probs[id(model)] / temperature for model, temperature in zip(models, temperatures, strict=True)]
        return np.stack(rows, axis=1)

    return predict


def _run_committee(predictions, selection):
    """Return `class_id` and `members_used` of the committee or cascade, `(examples,)` each."""
    outputs = aggregation.selected_outputs(selection, predictions)
    return {"class_id": outputs["probabilities"].argmax(-1), "members_used": outputs["members_used"]}


def _explain_loss(interval, predictions, selection, check) -> str:
    low, high = 100 * interval["low"], 100 * interval["high"]
    images = len(predictions.labels)
    if interval["value"] > 0:
        remedy = _describe_worst_member(predictions, selection)
    else:
        remedy = "No loss was measured; the images are too few to exclude one."
    needed = examples_for_loss(interval, images, check.max_drop / 100)
    more_images = (
        f" About {needed:,} validation images would do: raise `validation` of the recipe's data, in a new run."
        if needed is not None and needed > images
        else ""
    )
    return (
        f"in bfloat16 the {selection.kind} loses {100 * interval['value']:.2f} points of accuracy on the {images:,} "
        f"validation images of {check.source} (95 % interval {low:.2f} to {high:.2f}); "
        f"the upper end must be below {check.max_drop:g}. Nothing was published.\n"
        f"  {remedy}{more_images}\n"
        f"  Use --precision float32, or allow this loss: --max-accuracy-drop {_round_up(high):g}."
    )


def _describe_worst_member(predictions, selection) -> str:
    """Return a sentence on the member whose return to float32 would regain the most accuracy."""
    labels = predictions.labels

    def accuracy(members):
        return float((_run_committee(members, selection)["class_id"] == labels).mean())

    def with_exact(index):
        mixed = predictions.rounded.copy()
        mixed[:, index] = predictions.exact[:, index]
        return accuracy(mixed)

    own_losses = (
        (predictions.exact.argmax(-1) == labels[:, None]).mean(0)
        - (predictions.rounded.argmax(-1) == labels[:, None]).mean(0)
    )  # fmt: skip
    regained = [with_exact(index) for index in range(len(own_losses))]
    worst = max(range(len(own_losses)), key=lambda index: (regained[index], own_losses[index]))
    member = selection.members[worst]
    left = 100 * (accuracy(predictions.exact) - regained[worst])
    return (
        f"Member {member.index} of {member.run} ({member.name}) causes the most: alone it loses "
        f"{100 * own_losses[worst]:.2f} points, and with it in float32 the {selection.kind} would lose {left:.2f}."
    )


def _round_up(points: float) -> float:
    """Return the next multiple of 0.1 above."""
    return (int(10 * points) + 1) / 10
