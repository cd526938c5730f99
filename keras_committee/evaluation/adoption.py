"""How do trained models from elsewhere become the members of a run, as if it had trained them?

Each is made a member, checked against the data and against the others, and written where training would have left it.
So evaluate, select, report and export take it like any other; the journal tells where it came from.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_committee.errors import RecipeError, VerificationError
from keras_committee.evaluation.compatibility import refuse_twins
from keras_committee.evaluation.evidence import EXAMPLES, better_order, better_scale
from keras_committee.evaluation.members import describe, description_of
from keras_committee.evaluation.offers import Adapted, Offer, adapt
from keras_committee.models.foreign import as_member
from keras_committee.models.loading import save_member
from keras_committee.models.predict import log_probabilities
from keras_committee.models.scales import SCALES
from keras_committee.recipe import Recipe
from keras_committee.run import Run

if TYPE_CHECKING:
    from keras_committee.data.splits import Split, Splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allowed:
    """What is adopted although it looks like a mistake, or only because it was asked for.

    Attributes:
        reorder: Outputs in another order of the same classes are reordered.
        resize: A model of another image size resizes the images itself.
        twins: Members may have identical weights.
        as_declared: The data may contradict what was declared of a model.
    """

    reorder: bool = False
    resize: bool = False
    twins: bool = False
    as_declared: bool = False


def adopt(run: Run, recipe: Recipe, offers: Sequence[Offer], allowed: Allowed | None = None) -> list[dict[str, Any]]:
    """Makes the offered models members of the run, at the first places that are free. The caller holds its lock.

    All of them are checked before the first is written.

    Args:
        run: The run folder.
        recipe: Its recipe: the data, and how many members there are.
        offers: The models, and what is declared of them.
        allowed: What is let pass.

    Returns:
        For each model what the journal says of it: `member`, `path`, `sha256`, `scale`, `outputs`, `classes` ("given",
        "reordered" or "taken to be those of the data"), and the share of `examples` validation images that it gets
        `right`.

    Raises:
        RecipeError: If classes or images differ, or the recipe has too few members.
        DataError: If the data cannot be read.
        VerificationError: If a model cannot be a member, is the twin of another, or the data contradict what was
            declared of it.
    """
    allowed = allowed or Allowed()
    places = _free_places(run, recipe, len(offers))
    splits: Splits = recipe.data.load()
    run.require_classes(splits.classes)
    shape = tuple(splits.test.image_shape)
    members = [adapt(each, splits.classes, shape, reorder=allowed.reorder, resize=allowed.resize) for each in offers]
    weights = _weights(run, offers, members)
    if not allowed.twins:
        refuse_twins(weights, "the committee")
    examples = _sample(splits.validation if len(splits.validation) else splits.test)
    records = [_record(*each, splits.classes, examples, allowed) for each in zip(places, offers, members, strict=True)]
    for place, member, record in zip(places, members, records, strict=True):
        save_member(member.model, run.member(place).model)
        run.journal("adopted", **record)
    return records


def _free_places(run: Run, recipe: Recipe, count: int) -> list[int]:
    finished = run.finished_members()
    free = [index for index in range(recipe.members) if index not in finished]
    if len(free) < count:
        raise RecipeError(
            f"the recipe has {recipe.members} members, of which {len(finished)} are there: no place for {count} more.\n"
            f"  Give it a knob `members` and turn it: --set members={len(finished) + count}"
        )
    return free[:count]


def _weights(run: Run, offers: Sequence[Offer], members: Sequence[Adapted]) -> dict[str, str]:
    """The hashes of the weights of all members, those that were there included, by names to tell them by."""
    there = {str(index): describe(run, index).weights for index in run.finished_members()}
    for offer, member in zip(offers, members, strict=True):
        try:
            description = description_of(member.model)
        except ValueError as error:
            raise VerificationError(f"{offer.path}: {error}") from error
        name = str(offer.path) if str(offer.path) not in there else f"{offer.path} once more"
        there[name] = description.weights
    return there


def _sample(split: "Split") -> "Split":
    return split.take(np.unique(np.linspace(0, len(split) - 1, EXAMPLES).astype(int)))


def _record(place, offer: Offer, member: Adapted, classes, examples: "Split", allowed: Allowed) -> dict[str, Any]:
    answers = _answers(member.model, examples, offer)
    right = answers == examples.labels
    if not allowed.as_declared:
        _refuse_other_scale(offer, member, answers, examples)
        _refuse_other_order(offer, answers, examples, classes)
    known = "taken to be those of the data" if offer.classes is None else "given"
    return {
        "member": place,
        "path": str(offer.path.resolve()),
        "sha256": member.sha256,
        "scale": offer.scale if isinstance(offer.scale, str) else dataclasses.asdict(offer.scale),
        "outputs": member.outputs,
        "order": "reordered" if member.order else known,
        "classes": list(classes),
        "right": round(float(right.mean()), 4),
        "examples": len(examples.labels),
    }


def _answers(model, examples: "Split", offer: Offer) -> np.ndarray:
    votes = log_probabilities(model, examples.batches(64))
    if not np.isfinite(votes).all():
        raise VerificationError(f"{offer.path} gives values that are not finite numbers. Nothing was adopted.")
    return votes.argmax(axis=1)


def _refuse_other_scale(offer: Offer, member: Adapted, answers: np.ndarray, examples: "Split") -> None:
    if not isinstance(offer.scale, str):
        return
    size = member.model.inputs[0].shape[1:3]
    own = tuple(member.bare.inputs[0].shape[1:3])

    def answers_under(scale):
        if scale == offer.scale:
            return answers
        image_size = tuple(mine or given for mine, given in zip(own, size, strict=True))
        model = as_member(member.bare, scale=scale, order=member.order, image_size=image_size, resized_from=size)
        return log_probabilities(model, examples.batches(64)).argmax(axis=1)

    scales = [name for name in SCALES if examples.image_shape[2] == 3 or name not in ("torch", "caffe")]
    better = better_scale(offer.scale, answers_under, examples.labels, scales)
    if better:
        scale, right, declared = better
        raise VerificationError(
            f"{offer.path} was declared to take pixels {offer.scale}; of {len(examples.labels)} images it then gets "
            f"{declared} right, and with {scale} it gets {right}.\n"
            f"  Say --scale {scale}. If it is meant as declared: --as-declared. Nothing was adopted."
        )


def _refuse_other_order(offer: Offer, answers: np.ndarray, examples: "Split", classes: Sequence[str]) -> None:
    better = better_order(answers, examples.labels, len(classes))
    if better:
        order, right, declared = better
        first = next(place for place, output in enumerate(order) if place != output)
        raise VerificationError(
            f"{offer.path} seems to know the classes in another order: where the data have {classes[first]!r}, it "
            f"answers with what was declared as {classes[order[first]]!r}. Of {len(answers) // 2} images it gets "
            f"{declared} right, and {right} in an order that fits.\n"
            "  Give the names of its outputs, --labels FILE, and --reorder. If it is meant as declared: --as-declared."
        )
