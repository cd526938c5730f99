"""Prediction on image files with the members of a run or of a selection."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from keras_committee import aggregation
from keras_committee.data.preprocessing import ImageTransform, transform_for_member
from keras_committee.errors import RecipeError, VerificationError, pluralize
from keras_committee.evaluation.pool import require_equal_classes
from keras_committee.files import file_hash
from keras_committee.layers import GeometricMean, subset_head
from keras_committee.models.loading import load_member
from keras_committee.models.predict import Predictor
from keras_committee.models.views import view_models
from keras_committee.progress import track
from keras_committee.recipe import Recipe
from keras_committee.run import Run, open_selected_runs, selected_data_infos
from keras_committee.selection import Promise, SelectedMember, Selection, Stage


class CommitteePredictor:
    """Members that predict images: all of them, or as a cascade, stage by stage until the confidence is high enough.

    Args:
        models: The members, in the order in which they run. A model that is listed twice counts twice.
        temperatures: One per member; its logits are divided by it.
        head: The head, a layer that combines the members' predictions.
        stages: Stages of a cascade, as in `Selection`; None runs all members.
        confidence_measure: One of `layers.CONFIDENCE_MEASURES`.
        classes: Names of the classes, in label order.
        recorded_transforms: For each member the image transform that its run recorded, see `Run.data_info`;
            None where there is none: the member receives the whole image.
        promise: As in `Selection`.

    Attributes:
        classes: As given.
        transforms: The image transforms of the members, each once.

    Raises:
        RecipeError: If the image size of a member is unknown, or it takes no RGB images.
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
        promise: Promise | None = None,
    ):
        transforms = _resolve_transforms(models, recorded_transforms or [None] * len(models))
        self.classes, self.transforms = tuple(classes), tuple(dict.fromkeys(transforms))
        self._head, self._weights = aggregation.resolve_head(head)
        self._confidence_measure, self._promise = confidence_measure, promise
        self._stages = stages or [Stage(members=len(models), threshold=None)]
        predictors = {id(model): Predictor(model) for model in models}
        self._members = [
            (predictors[id(model)], temperature, transform)
            for model, temperature, transform in zip(models, temperatures, transforms, strict=True)
        ]

    @classmethod
    def from_run(cls, run: Run, recipe: Recipe, min_members: int | None = None) -> Self:
        """Load all members of a run, with its head.

        Raises:
            IncompleteError: If too few members are trained.
            RunError: If a member cannot be loaded.
        """
        members = run.available_members(recipe.members, min_members)
        indices = track(members, f"loading {pluralize(len(members), 'member')}", len(members))
        models = [load_member(run.member(index).model) for index in indices]
        head = subset_head(recipe.head or GeometricMean(), members)
        data_infos = [run.data_info(index) for index in members]
        require_equal_classes({f"member {i}": info.classes for i, info in zip(members, data_infos, strict=True)})
        classes, recorded_transforms = data_infos[0].classes, [info.transform for info in data_infos]
        return cls(models, [1.0] * len(models), head, None, "max_probability", classes, recorded_transforms)

    @classmethod
    def from_selection(cls, file: Path) -> Self:
        """Load the members, head and stages of a `selection.json`.

        Raises:
            RunError: If the file is invalid, or a member is missing or cannot be loaded.
            VerificationError: If the weights of a member have changed since the selection.
        """
        selection = Selection.read(file)
        members = selection.members
        runs = open_selected_runs(selection, file.parent)
        files = [run.member(member.index).model for run, member in zip(runs, members, strict=True)]
        selected = list(zip(files, members, strict=True))
        tracked = track(selected, f"loading {pluralize(len(files), 'member')}", len(files))
        networks: dict[Path, keras.Model] = {}
        for path, member in tracked:
            networks[path] = networks.get(path) or _load_selected_member(path, member)
        models = view_models([networks[path] for path in files], [member.view for member in members])
        data_infos = selected_data_infos(selection, runs)
        return cls(
            models,
            [member.temperature for member in members],
            selection.head_layer(),
            selection.stages,
            selection.confidence,
            selection.classes,
            [info.transform for info in data_infos],
            selection.promise,
        )

    def predict(self, images: np.ndarray | Mapping[ImageTransform, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the committee's predictions.

        Args:
            images: uint8 or float32 raw pixels `(images, height, width, 3)`: one array for each of `transforms`, or a
                single array where there is one transform.

        Returns:
            `probabilities` float32 `(images, classes)`, and of shape `(images,)`: `confidence` float32 in [0, 1],
            `agreement` float32, the fraction of the members that ran whose top class is the committee's,
            `mutual_information` float64 in nats, and `members_used` int32. With a promise also the outputs that it
            adds, see `aggregation.selected_outputs`.

        Raises:
            VerificationError: If the outputs of a member are not one finite number per class.
        """
        images_by_transform = images if isinstance(images, Mapping) else {self.transforms[0]: images}
        num_images = len(images_by_transform[self.transforms[0]])
        logits = np.zeros((num_images, len(self._members), len(self.classes)), np.float32)
        sizes = [stage.members for stage in self._stages]
        previous_size = dict(zip(sizes, (0, *sizes), strict=False))

        def outputs_of(size: int, pending: np.ndarray) -> dict[str, np.ndarray]:
            for index in range(previous_size[size], size):
                logits[pending, index] = self._predict_member(index, images_by_transform, pending)
            return aggregation.stage_outputs(self._head, logits[pending], size, self._confidence_measure, self._weights)

        thresholds = [stage.threshold for stage in self._stages[:-1]]
        lower_thresholds = [stage.lower_threshold for stage in self._stages[:-1]]
        outputs = aggregation.first_confident(num_images, sizes, thresholds, outputs_of, lower_thresholds)
        return {**outputs, **aggregation.promised_outputs(self._promise, outputs)}

    def _predict_member(
        self, index: int, images_by_transform: Mapping[ImageTransform, np.ndarray], pending: np.ndarray
    ) -> np.ndarray:
        """Return the logits of one member, float32 `(pending, classes)`, divided by its temperature."""
        predictor, temperature, transform = self._members[index]
        images = images_by_transform[transform][pending]
        logits = predictor(images[start : start + 256] for start in range(0, len(images), 256)) / temperature
        if logits.shape[1] != len(self.classes) or not np.isfinite(logits).all():
            raise VerificationError(
                f"member {index} must output {len(self.classes)} finite numbers for each image. Received: "
                f"{logits.shape[1]} numbers, {np.isfinite(logits).mean():.0%} of them finite"
            )
        return logits


def _resolve_transforms(
    models: Sequence[keras.Model], recorded_transforms: Sequence[dict[str, Any] | None]
) -> list[ImageTransform]:
    shapes = [model.inputs[0].shape for model in models]
    pairs = zip(recorded_transforms, shapes, strict=True)
    transforms = [transform_for_member(recorded, shape) for recorded, shape in pairs]
    resolved = [transform for transform in transforms if transform is not None]
    if len(resolved) < len(models) or {shape[3] for shape in shapes} != {3}:
        listing = ", ".join(sorted({"x".join(map(str, shape[1:])) for shape in shapes}))
        raise RecipeError(
            f"members must take images of a known size with three channels to predict image files. Received: {listing}"
        )
    return resolved


def _load_selected_member(path: Path, member: SelectedMember) -> keras.Model:
    if path.is_file() and (digest := file_hash(path)) != member.weights:  # checked before the file is loaded
        raise VerificationError(
            f"{path} is not the member that was selected (sha256 {digest[:12]}, not {member.weights[:12]}): it was "
            "trained again since.\n  Select again: keras-committee select RUN"
        )
    return load_member(path)
