"""What does a trained committee, or a chosen one, say of loose pictures?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.data.preprocessing import ImageTransform, transform_for_member
from keras_committee.errors import RecipeError, VerificationError
from keras_committee.files import file_hash
from keras_committee.layers import GeometricMean, WeightedGeometricMean, confidence, subset_head
from keras_committee.models.loading import load_member
from keras_committee.models.predict import Predictor
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.selection import SelectedMember, Selection, Stage


class CommitteePredictor:
    """Members that are asked about pictures: all of them, or stage by stage until they are sure.

    Args:
        models: The members, in the order in which they are asked. One may stand here twice: it counts twice.
        temperatures: One for each; its logits are divided by it.
        head: Layer from votes to probabilities.
        stages: Of a cascade, as in `Selection`; None asks all members.
        confidence_measure: One of `layers.CONFIDENCE_MEASURES`.
        classes: Names of the classes, in label order.
        recorded_transforms: For each what its run recorded of how its data frame an image, see `Run.trained_framing`; None where
            nothing is: it sees the whole image.

    Attributes:
        classes: As given.
        transforms: What the members see of a picture, each framing once.

    Raises:
        RecipeError: If a member takes images of any size, or no colour images.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        temperatures: Sequence[float],
        head: keras.layers.Layer,
        stages: Sequence[Stage] | None,
        confidence_measure: str,
        classes: Sequence[str],
        recorded_transforms: Sequence[dict[str, Any] | None] | None = None,
    ):
        transforms = _resolve_transforms(models, recorded_transforms or [None] * len(models))
        self.classes, self.transforms = tuple(classes), tuple(dict.fromkeys(transforms))
        self._head, self._confidence_measure = head, confidence_measure
        self._stages = stages or [Stage(members=len(models), threshold=None)]
        predictors = {id(model): Predictor(model) for model in models}
        self._members = [
            (predictors[id(model)], temperature, transform)
            for model, temperature, transform in zip(models, temperatures, transforms, strict=True)
        ]

    @classmethod
    def from_run(cls, run: Run, recipe: Recipe, min_members: int | None = None) -> Self:
        """All members of a run under its head.

        Raises:
            IncompleteError: If too few members are trained.
            RunError: If a member cannot be loaded.
        """
        members = run.available_members(recipe.members, min_members)
        models = [load_member(run.member(index).model) for index in members]
        head = subset_head(recipe.head or GeometricMean(), members)
        classes = run.trained_classes() or recipe.data.load().classes
        recorded_transforms = [run.trained_transform()] * len(models)
        return cls(models, [1.0] * len(models), head, None, "max_probability", classes, recorded_transforms)

    @classmethod
    def from_selection(cls, file: Path) -> Self:
        """The members, head and stages of a `selection.json`.

        Raises:
            RunError: If it is none, or a member is not there or cannot be loaded.
            VerificationError: If a member is another one than was chosen.
        """
        selection = Selection.read(file)
        runs = [Run.open(file.parent / each.run) for each in selection.members]
        files = [run.member(each.index).model for run, each in zip(runs, selection.members, strict=True)]
        models = {path: _load_selected_member(path, each) for path, each in zip(files, selection.members, strict=True)}
        return cls(
            [models[path] for path in files],
            [each.temperature for each in selection.members],
            selection.head_layer(),
            selection.stages,
            selection.confidence,
            selection.classes,
            [run.trained_transform() for run in runs],
        )

    def predict(self, images: np.ndarray | Mapping[ImageTransform, np.ndarray]) -> dict[str, np.ndarray]:
        """What the committee says of each image, and who was asked.

        Args:
            images: uint8 or float32 raw pixels `(images, height, width, 3)`: for each of `framings` those that it
                shows, or these alone where there is one.

        Returns:
            `probabilities` float32 `(images, classes)`, and of shape `(images,)`: `confidence` float32 in [0, 1],
            `agreement` float32, the share of the asked members whose first class is the committee's,
            `mutual_information` float64 in nats, and `members_used` int64.

        Raises:
            VerificationError: If a member gives anything but finite numbers.
        """
        images_by_transform = images if isinstance(images, Mapping) else {self.transforms[0]: images}
        count = len(images_by_transform[self.transforms[0]])
        logits = np.zeros((count, len(self._members), len(self.classes)), np.float32)
        pending, num_run, parts = np.arange(count), 0, []
        for stage in self._stages:
            for index in range(num_run, stage.members):
                logits[pending, index] = self._predict_member(index, images_by_transform, pending)
            num_run = stage.members
            outputs = self._combine(logits[pending, :num_run])
            confident = (
                np.ones(len(pending), bool) if stage.threshold is None else outputs["confidence"] >= stage.threshold
            )
            parts.append((pending[confident], {name: values[confident] for name, values in outputs.items()}))
            pending = pending[~confident]
            if not len(pending):
                break
        order = np.argsort(np.concatenate([indices for indices, _ in parts]))
        return {name: np.concatenate([answers[name] for _, answers in parts])[order] for name in parts[0][1]}

    def _predict_member(
        self, index: int, images_by_transform: Mapping[ImageTransform, np.ndarray], pending: np.ndarray
    ) -> np.ndarray:
        """Logits, float32 `(waiting, classes)`, of one member, divided by its temperature."""
        predictor, temperature, transform = self._members[index]
        images = images_by_transform[transform][pending]
        logits = predictor(images[start : start + 256] for start in range(0, len(images), 256)) / temperature
        if logits.shape[1] != len(self.classes) or not np.isfinite(logits).all():
            raise VerificationError(
                f"member {index} of those asked gives {logits.shape[1]} classes, not all of them finite numbers; wanted"
                f" {len(self.classes)} numbers for each image. It is averaged with no other."
            )
        return logits

    def _combine(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """The answers of the committee of the members asked so far; logits `(images, members, classes)`."""
        head = subset_head(self._head, range(logits.shape[1]))
        probabilities = head(logits)
        member_probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        weights = head.get_config()["weights"] if isinstance(head, WeightedGeometricMean) else None
        measures = {"confidence": self._confidence_measure, "agreement": "agreement"}
        return {
            "probabilities": keras.ops.convert_to_numpy(probabilities),
            **{
                name: keras.ops.convert_to_numpy(confidence(measure, probabilities, member_probabilities))
                for name, measure in measures.items()
            },
            "mutual_information": metrics.uncertainty_decomposition(member_probabilities, weights)["mutual"],
            "members_used": np.full(len(logits), logits.shape[1]),
        }


def _resolve_transforms(
    models: Sequence[keras.Model], recorded_transforms: Sequence[dict[str, Any] | None]
) -> list[ImageTransform]:
    shapes = [model.inputs[0].shape for model in models]
    transforms = [transform_for_member(each, shape) for each, shape in zip(recorded_transforms, shapes, strict=True)]
    resolved = [each for each in transforms if each is not None]
    if len(resolved) < len(models) or {shape[3] for shape in shapes} != {3}:
        listing = ", ".join(sorted({"x".join(map(str, shape[1:])) for shape in shapes}))
        raise RecipeError(
            f"pictures are read for members that take a known size and three channels. These take: {listing}"
        )
    return resolved


def _load_selected_member(path: Path, member: SelectedMember) -> keras.Model:
    if path.is_file() and (digest := file_hash(path)) != member.weights:  # before anything of it is read
        raise VerificationError(
            f"{path} is not the member that was chosen (sha256 {digest[:12]}, not {member.weights[:12]}):"
            " it was trained anew since.\n  Choose again: keras-committee select RUN"
        )
    return load_member(path)
