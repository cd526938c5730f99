"""What does a trained committee, or a chosen one, say of loose pictures?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.data.preprocessing import Framing, framing_of_member
from keras_committee.errors import RecipeError, VerificationError
from keras_committee.files import file_hash
from keras_committee.layers import GeometricMean, WeightedGeometricMean, confidence, head_of
from keras_committee.models.loading import load_member
from keras_committee.models.predict import Predictor
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.selection import ChosenMember, Selection, Stage


class Panel:
    """Members that are asked about pictures: all of them, or stage by stage until they are sure.

    Args:
        models: The members, in the order in which they are asked. One may stand here twice: it counts twice.
        temperatures: One for each; its logits are divided by it.
        head: Layer from votes to probabilities.
        stages: Of a cascade, as in `Selection`; None asks all members.
        measure: One of `layers.CONFIDENCES`.
        classes: Names of the classes, in label order.
        recorded: For each what its run recorded of how its data frame an image, see `Run.trained_framing`; None where
            nothing is: it sees the whole image.

    Attributes:
        classes: As given.
        framings: What the members see of a picture, each framing once.

    Raises:
        RecipeError: If a member takes images of any size, or no colour images.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        temperatures: Sequence[float],
        head: keras.layers.Layer,
        stages: Sequence[Stage] | None,
        measure: str,
        classes: Sequence[str],
        recorded: Sequence[dict[str, Any] | None] | None = None,
    ):
        framings = _framings(models, recorded or [None] * len(models))
        self.classes, self.framings = tuple(classes), tuple(dict.fromkeys(framings))
        self._head, self._measure = head, measure
        self._stages = stages or [Stage(members=len(models), threshold=None)]
        predictors = {id(model): Predictor(model) for model in models}
        self._members = [
            (predictors[id(model)], temperature, framing)
            for model, temperature, framing in zip(models, temperatures, framings, strict=True)
        ]

    @classmethod
    def of_run(cls, run: Run, recipe: Recipe, min_members: int | None = None) -> Self:
        """All members of a run under its head.

        Raises:
            IncompleteError: If too few members are trained.
            RunError: If a member cannot be loaded.
        """
        members = run.members_at_hand(recipe.members, min_members)
        models = [load_member(run.member(index).model) for index in members]
        head = head_of(recipe.head or GeometricMean(), members)
        classes = run.trained_classes() or recipe.data.load().classes
        recorded = [run.trained_framing()] * len(models)
        return cls(models, [1.0] * len(models), head, None, "max_probability", classes, recorded)

    @classmethod
    def of_selection(cls, file: Path) -> Self:
        """The members, head and stages of a `selection.json`.

        Raises:
            RunError: If it is none, or a member is not there or cannot be loaded.
            VerificationError: If a member is another one than was chosen.
        """
        selection = Selection.read(file)
        runs = [Run.open(file.parent / each.run) for each in selection.members]
        files = [run.member(each.index).model for run, each in zip(runs, selection.members, strict=True)]
        models = {path: _chosen(path, each) for path, each in zip(files, selection.members, strict=True)}
        return cls(
            [models[path] for path in files],
            [each.temperature for each in selection.members],
            selection.head_layer(),
            selection.stages,
            selection.confidence,
            selection.classes,
            [run.trained_framing() for run in runs],
        )

    def answer(self, images: np.ndarray | Mapping[Framing, np.ndarray]) -> dict[str, np.ndarray]:
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
        seen = images if isinstance(images, Mapping) else {self.framings[0]: images}
        count = len(seen[self.framings[0]])
        votes = np.zeros((count, len(self._members), len(self.classes)), np.float32)
        waiting, asked, parts = np.arange(count), 0, []
        for stage in self._stages:
            for place in range(asked, stage.members):
                votes[waiting, place] = self._ask(place, seen, waiting)
            asked = stage.members
            answers = self._say(votes[waiting, :asked])
            sure = np.ones(len(waiting), bool) if stage.threshold is None else answers["confidence"] >= stage.threshold
            parts.append((waiting[sure], {name: values[sure] for name, values in answers.items()}))
            waiting = waiting[~sure]
            if not len(waiting):
                break
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        return {name: np.concatenate([answers[name] for _, answers in parts])[order] for name in parts[0][1]}

    def _ask(self, place: int, seen: Mapping[Framing, np.ndarray], waiting: np.ndarray) -> np.ndarray:
        """Logits, float32 `(waiting, classes)`, of one member, divided by its temperature."""
        predictor, temperature, framing = self._members[place]
        images = seen[framing][waiting]
        logits = predictor(images[start : start + 256] for start in range(0, len(images), 256)) / temperature
        if logits.shape[1] != len(self.classes) or not np.isfinite(logits).all():
            raise VerificationError(
                f"member {place} of those asked gives {logits.shape[1]} classes, not all of them finite numbers; wanted"
                f" {len(self.classes)} numbers for each image. It is averaged with no other."
            )
        return logits

    def _say(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """The answers of the committee of the members asked so far; logits `(images, members, classes)`."""
        head = head_of(self._head, range(logits.shape[1]))
        probabilities = head(logits)
        votes = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        weights = head.get_config()["weights"] if isinstance(head, WeightedGeometricMean) else None
        measures = {"confidence": self._measure, "agreement": "agreement"}
        return {
            "probabilities": keras.ops.convert_to_numpy(probabilities),
            **{
                name: keras.ops.convert_to_numpy(confidence(measure, probabilities, votes))
                for name, measure in measures.items()
            },
            "mutual_information": metrics.uncertainty(votes, weights)["mutual"],
            "members_used": np.full(len(logits), logits.shape[1]),
        }


def _framings(models: Sequence[keras.Model], recorded: Sequence[dict[str, Any] | None]) -> list[Framing]:
    shapes = [model.inputs[0].shape for model in models]
    framings = [framing_of_member(each, shape) for each, shape in zip(recorded, shapes, strict=True)]
    found = [each for each in framings if each is not None]
    if len(found) < len(models) or {shape[3] for shape in shapes} != {3}:
        listing = ", ".join(sorted({"x".join(map(str, shape[1:])) for shape in shapes}))
        raise RecipeError(
            f"pictures are read for members that take a known size and three channels. These take: {listing}"
        )
    return found


def _chosen(path: Path, member: ChosenMember) -> keras.Model:
    if path.is_file() and (digest := file_hash(path)) != member.weights:  # before anything of it is read
        raise VerificationError(
            f"{path} is not the member that was chosen (sha256 {digest[:12]}, not {member.weights[:12]}):"
            " it was trained anew since.\n  Choose again: keras-committee select RUN"
        )
    return load_member(path)
