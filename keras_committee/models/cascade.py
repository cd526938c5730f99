"""How does a cascade decide who is asked, as one model?

This is the definition: every member runs for every image, and the answer is the one at which the cascade would have
stopped. What saves time is to ask the later members about unsure images only, which is a matter of serving.
"""

import math
from collections.abc import Sequence

import keras
from keras import ops

from keras_committee.layers.confidence import check_confidence, confidence
from keras_committee.layers.heads import GeometricMean, subset_head
from keras_committee.models.committee import CommitteeModel, ImageSize, committee_image_and_logits, layer_config


@keras.saving.register_keras_serializable(package="keras_committee")
class Cascade(CommitteeModel):
    """A cascade as one functional model: after each stage the committee so far answers if it is sure enough.

    After stage s the committee of the first `stages[s]` members answers where its confidence is at least
    `thresholds[s]`; the last stage always answers. Thresholds of 0 make it the first stage's committee, thresholds
    above 1 the whole committee.

    Args:
        members: As for `Ensemble`, in the order in which they are asked.
        thresholds: One float for each stage but the last.
        stages: Members asked by the end of each stage, rising to all of them; None asks one after another.
        confidence: One of `layers.CONFIDENCE_MEASURES`.
        head: As for `Ensemble`; the members asked so far are combined by `layers.subset_head` it.
        temperatures: As for `Ensemble`.
        image_size: As for `Ensemble`. With `with_input_size` one model can be asked twice, at two resolutions.
        name: Name of the model.

    Call arguments:
        image: float32 raw pixels `(batch, height, width, channels)`.

    Returns:
        Dictionary of
        - `"probabilities"`: float32 `(batch, classes)`, of the committee that answers.
        - `"votes"`: float32 probabilities `(batch, members, classes)`, of all members.
        - `"members_used"`: int32 `(batch,)`, how many members the cascade had to ask.
        - `"confidence"`: float32 `(batch,)`, of the committee that answers.

    Raises:
        ValueError: As `Ensemble`; if the stages do not rise to all members, or the thresholds are not one fewer.

    Example:
        >>> cascade = Cascade([small, at_resolution(large, (24, 24)), large], (0.8, 0.6), image_size="largest")
        >>> cascade.predict(images)["members_used"]

    Source: Wang et al. 2021, arXiv:2012.01988, section 4.
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
        name: str | None = None,
        **kwargs,
    ):
        stages = list(range(1, len(members) + 1) if stages is None else stages)
        check_confidence(confidence)
        check_stages(stages, thresholds, len(members))
        image, logits = committee_image_and_logits(list(members), image_size, temperatures)
        combiner = GeometricMean() if head is None else head
        outputs = {
            **first_confident(logits, stages, thresholds, confidence, combiner),
            "votes": keras.layers.Softmax(dtype="float32", name="votes")(logits),
        }
        super().__init__(inputs=image, outputs=outputs, name=name, **kwargs)
        self._head_name = combiner.name
        self._settings = {
            "thresholds": [float(threshold) for threshold in thresholds],
            "stages": stages,
            "confidence": confidence,
            **layer_config(image_size, temperatures),
        }


def check_stages(stages: Sequence[int], thresholds: Sequence[float], members: int) -> None:
    """Raises ValueError unless `stages` rise from 1 or more to all `members`, each but the last with a threshold."""
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 1 or stages[-1] != members:
        raise ValueError(f"stages must ask ever more members and at last all {members}. Received: {list(stages)}")
    if len(thresholds) != len(stages) - 1 or any(math.isnan(threshold) for threshold in thresholds):
        raise ValueError(
            f"thresholds must hold one number for each of {len(stages)} stages but the last. "
            f"Received: {list(thresholds)}"
        )


def first_confident(logits, stages, thresholds, measure, head):
    """Return the `stage_outputs` of the first stage that is confident enough; of the last stage where none is.

    `aggregation.run_cascade` is the same rule in NumPy.

    Args:
        logits: Tensor `(batch, members, classes)`, divided by the temperatures.
        stages: Numbers of members at the end of each stage, ascending.
        thresholds: One float for each stage but the last.
        measure: One of `layers.CONFIDENCE_MEASURES`.
        head: Layer that combines the predictions of all members.
    """
    outputs = stage_outputs(logits, stages[-1], measure, head)
    # From the last stage to the first, so that the first confident one decides.
    for size, threshold in reversed(list(zip(stages, thresholds, strict=False))):
        earlier = stage_outputs(logits, size, measure, subset_head(head, range(size)))
        is_confident = ops.greater_equal(earlier["confidence"], ops.cast(threshold, "float32"))
        outputs = {
            "probabilities": ops.where(
                ops.expand_dims(is_confident, 1), earlier["probabilities"], outputs["probabilities"]
            ),
            "members_used": ops.where(is_confident, earlier["members_used"], outputs["members_used"]),
            "confidence": ops.where(is_confident, earlier["confidence"], outputs["confidence"]),
        }
    return outputs


def stage_outputs(logits, size, measure, head):
    """Return `probabilities`, `members_used` and `confidence` of the committee of the first `size` members.

    Args:
        logits: Tensor `(batch, members, classes)` of at least `size` members, divided by the temperatures.
        size: Number of members.
        measure: One of `layers.CONFIDENCE_MEASURES`.
        head: Layer that combines the predictions of these members.
    """
    member_logits = logits[:, :size]
    probabilities = head(member_logits)
    stage_confidence = confidence(measure, probabilities, member_logits)
    return {
        "probabilities": probabilities,
        "members_used": ops.cast(ops.full_like(stage_confidence, size), "int32"),
        "confidence": stage_confidence,
    }
