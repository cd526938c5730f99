"""A cascade as one Keras model, and the rule by which a cascade stops.

`Cascade` defines the result: every member runs for every image, and the output is that of the stage at which the
cascade would have stopped. The exported graph applies the same rule, but runs later members for uncertain images only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_committee.layers.confidence import check_confidence, confidence
from keras_committee.layers.heads import subset_head
from keras_committee.models.committee import CommitteeModel, ImageSize
from keras_committee.selection import check_stages


@keras.saving.register_keras_serializable(package="keras_committee")
class Cascade(CommitteeModel):
    """A cascade as one functional model: it stops at the first stage that is confident enough.

    Stage s is the committee of the first `stages[s]` members. The cascade returns its prediction if its confidence is
    at least `thresholds[s]`, and otherwise continues; the last stage always predicts. Thresholds of 0 make the cascade
    the committee of the first stage, thresholds above 1 the whole committee.

    With `lower_thresholds` it also stops where the confidence is below that of the stage. Only images whose confidence
    lies in the window between both are passed on: where an answer is accepted or rejected by its confidence, those near
    the decision.

    Args:
        members: As in `Ensemble`, in the order in which they run.
        thresholds: One float for each stage but the last.
        stages: Number of members that have run by the end of each stage, increasing to all of them. None adds one
            member per stage.
        confidence: One of `layers.CONFIDENCE_MEASURES`.
        head: As in `Ensemble`. The members of a stage are combined by `layers.subset_head` of it.
        temperatures: As in `Ensemble`.
        image_size: As in `Ensemble`. With `with_input_size`, one network can run at two resolutions.
        lower_thresholds: One float for each stage but the last, at most its threshold, or None for a stage without one.
            None for no stage.
        name: Name of the model.
        **kwargs: Other arguments of `keras.Model`.

    Call arguments:
        image: float32 raw pixels `(batch, height, width, channels)`.

    Returns:
        Dictionary of:
        - `"probabilities"`: float32 `(batch, classes)`, of the committee at which the cascade stops.
        - `"member_probabilities"`: float32 `(batch, members, classes)`, of all members.
        - `"members_used"`: int32 `(batch,)`, number of members that the cascade needs.
        - `"confidence"`: float32 `(batch,)`, of the committee at which the cascade stops.

    Raises:
        ValueError: As `Ensemble`, or if the stages do not increase to all members, or if there is not one threshold for
            each stage but the last, or a lower threshold is above it.

    Example:
        >>> cascade = Cascade([small, with_input_size(large, (24, 24)), large], (0.8, 0.6), image_size="largest")
        >>> cascade.predict(images)["members_used"]

    Source: Wang et al. 2021, arXiv:2012.01988, section 4; windows: Xia & Bouganis 2023, arXiv:2303.08010, section 3.
    """

    def __init__(
        self,
        members: Sequence[keras.Model],
        thresholds: Sequence[float],
        stages: Sequence[int] | None = None,
        confidence: str = "max_probability",
        head: keras.layers.Layer | None = None,
        temperatures: Sequence[float] | None = None,
        image_size: ImageSize = None,
        lower_thresholds: Sequence[float | None] | None = None,
        name: str | None = None,
        **kwargs,
    ):
        stages = list(range(1, len(members) + 1) if stages is None else stages)
        check_confidence(confidence)
        check_stages(stages, thresholds, len(members), lower_thresholds)

        def combine(logits, head):
            outputs = [stage_outputs(logits, size, confidence, head) for size in stages]
            return first_confident(outputs, thresholds, lower_thresholds)

        super().__init__(
            members,
            image_size=image_size,
            temperatures=temperatures,
            head=head,
            combine=combine,
            config={
                "thresholds": [float(threshold) for threshold in thresholds],
                "lower_thresholds": lower_thresholds
                and [None if low is None else float(low) for low in lower_thresholds],
                "stages": stages,
                "confidence": confidence,
            },
            name=name,
            **kwargs,
        )


def stage_outputs(logits, size: int, measure: str, head: keras.layers.Layer) -> dict[str, Any]:
    """Return the outputs of one stage: the committee of the first `size` members.

    Args:
        logits: float32 tensor `(batch, members, classes)` of at least `size` members, divided by their temperatures.
        size: Number of members that have run by the end of the stage.
        measure: One of `layers.CONFIDENCE_MEASURES`.
        head: Head of the whole committee, which `layers.subset_head` reduces to the stage.

    Returns:
        Dictionary of `"probabilities"` float32 `(batch, classes)`, `"confidence"` float32 `(batch,)` and
        `"members_used"` int32 `(batch,)`.
    """
    stage_logits = logits[:, :size]
    probabilities = subset_head(head, range(size))(stage_logits)
    stage_confidence = confidence(measure, probabilities, stage_logits)
    return {
        "probabilities": probabilities,
        "confidence": stage_confidence,
        "members_used": ops.full_like(stage_confidence, size, dtype="int32"),
    }


def is_confident(outputs: Mapping[str, Any], threshold: float, lower_threshold: float | None = None):
    """Return for each image whether the cascade stops: a boolean tensor `(batch,)`.

    Args:
        outputs: Outputs of a stage, as `stage_outputs` returns them.
        threshold: Threshold of the stage. A confidence equal to it suffices; NaN does not.
        lower_threshold: Confidence below which the cascade stops, too; None for none.
    """
    reached = ops.greater_equal(outputs["confidence"], ops.cast(threshold, "float32"))
    if lower_threshold is None:
        return reached
    return ops.logical_or(reached, ops.less(outputs["confidence"], ops.cast(lower_threshold, "float32")))


def first_confident(
    stages: Sequence[Mapping[str, Any]],
    thresholds: Sequence[float],
    lower_thresholds: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """Return for each image the outputs of the first stage that is confident enough, or else of the last.

    Args:
        stages: Outputs of each stage in order, as `stage_outputs` returns them: tensors `(batch,)` or
            `(batch, classes)`.
        thresholds: One number for each stage but the last.
        lower_thresholds: As in `Cascade`.
    """
    *earlier_stages, outputs = stages
    lower_thresholds = [None] * len(thresholds) if lower_thresholds is None else lower_thresholds
    for stage, upper, lower in reversed(list(zip(earlier_stages, thresholds, lower_thresholds, strict=True))):
        stops = is_confident(stage, upper, lower)
        outputs = {
            name: ops.where(stops if len(later.shape) == 1 else ops.expand_dims(stops, 1), stage[name], later)
            for name, later in outputs.items()
        }
    return dict(outputs)
