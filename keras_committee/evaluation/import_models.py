"""How do trained models from elsewhere become the members of a run, as if it had trained them?

Each is made a member, checked against the data and against the others, and written where training would have left it.
So evaluate, select, report and export take it like any other; the journal tells where it came from.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_committee.errors import RecipeError, VerificationError
from keras_committee.evaluation.member_info import describe, description_of
from keras_committee.evaluation.pool import refuse_twins
from keras_committee.models.external import SCALES, as_member
from keras_committee.models.loading import save_member
from keras_committee.models.predict import log_probabilities
from keras_committee.recipe import Recipe
from keras_committee.run import Run

if TYPE_CHECKING:
    from keras_committee.data.splits import Split, Splits
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import keras

from keras_committee.evaluation.pool import require_equal_classes
from keras_committee.files import file_hash
from keras_committee.models.external import Outputs, Scale, as_member_told, load_keras_file
from keras_committee.models.saved_model import load_saved_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """A model from elsewhere.

    Attributes:
        path: A `.keras` file, or the folder of a SavedModel.
        scale: What pixels it was trained on, as `models.as_member` takes it.
        classes: Names of its classes, in the order of its outputs; None where its owner does not say.
        signature, output: Of a SavedModel, as `models.from_saved_model` takes them.
    """

    path: Path
    scale: Scale = "0..255"
    classes: tuple[str, ...] | None = None
    signature: str = "serving_default"
    output: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """A member made of an offer.

    Attributes:
        model: Raw pixels to logits, in the order of the data's classes.
        bare: The model as it was read.
        outputs: What was done to its outputs to make them logits.
        order: For each class of the data its place in the outputs of `bare`, where that is another one.
        sha256: Of the file, or of the names and contents of all files in the folder.
    """

    model: keras.Model
    bare: keras.Model
    outputs: Outputs
    order: list[int] | None
    sha256: str


def adapt(
    offer: Offer, classes: Sequence[str], image_shape: tuple[int, ...], *, reorder: bool, resize: bool
) -> Adapted:
    """The member that an offer makes on data of these classes and images `(height, width, channels)`.

    Raises:
        RecipeError: If its classes or its images are others, and it was not asked to reorder or resize.
        VerificationError: If it cannot be a member.
    """
    size = (image_shape[0], image_shape[1])
    bare = _read(offer, size)
    order = _order(offer, bare, tuple(classes), reorder)
    _check_image(offer, bare, image_shape, resize)
    try:
        model, outputs = as_member_told(
            bare, scale=offer.scale, order=order, image_size=_size(bare, size), resized_from=size, name=_name(offer)
        )
    except ValueError as error:
        raise RecipeError(f"{offer.path}: {error}") from error
    return Adapted(model=model, bare=bare, outputs=outputs, order=order, sha256=_sha256(offer.path))


def _read(offer, size):
    if offer.path.is_dir():
        return load_saved_model(offer.path, signature=offer.signature, output=offer.output, image_size=size)
    return load_keras_file(offer.path)


def _name(offer):
    parts = offer.path.resolve()
    return parts.parent.name if parts.name.isdecimal() else parts.stem


def _order(offer, bare, classes, reorder):
    """None where the outputs stand in the order of the data, or nothing is known of them but their number."""
    outputs = bare.outputs[0].shape[-1]
    names = offer.classes or (classes if outputs == len(classes) else ("unnamed",) * outputs)
    if len(names) != outputs:
        raise RecipeError(f"{offer.path} has {outputs} outputs; {len(names)} names of classes were given for it.")
    if names == classes:
        return None
    permuted = sorted(names) == sorted(classes) and len(set(names)) == len(names)
    if permuted and reorder:
        return [names.index(each) for each in classes]
    try:
        require_equal_classes({"the data": classes, str(offer.path): names})
    except RecipeError as error:
        hint = "\n  They are the same in another order. Bring its outputs into that of the data: --reorder"
        raise RecipeError(f"{error}{hint if permuted else ''}") from None
    return None


def _size(bare, size):
    height, width = bare.inputs[0].shape[1:3]
    return (height or size[0], width or size[1])


def _check_image(offer, bare, image_shape, resize):
    shape = tuple(bare.inputs[0].shape[1:])
    if len(shape) != 3:
        return  # told in other words
    if shape[2] != image_shape[2]:
        raise RecipeError(f"{offer.path} takes {shape[2]} channels; the images of the data have {image_shape[2]}.")
    if any(own not in (None, has) for own, has in zip(shape, image_shape, strict=True)) and not resize:
        raise RecipeError(
            f"{offer.path} takes images of {shape[0]}x{shape[1]}; those of the data are {image_shape[0]}x"
            f"{image_shape[1]}.\n  Let it resize them itself, bilinearly: --resize. Or read the data at its size."
        )


def _sha256(path: Path) -> str:
    if path.is_file():
        return file_hash(path)
    files = sorted(each for each in path.rglob("*") if each.is_file())
    lines = "".join(f"{file_hash(each)}  {each.relative_to(path).as_posix()}\n" for each in files)
    return hashlib.sha256(lines.encode()).hexdigest()


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


EXAMPLES = 256
_SIGMAS = 4.0  # so far apart two accuracies on the same images are by no chance


def better_scale(declared: str, answers: Callable[[str], np.ndarray], labels: np.ndarray, scales: list[str]):
    """The scale under which a model is right far more often than under the declared one, or None.

    Args:
        declared: Name of the scale that was declared.
        answers: Function of a scale's name: the classes that the model then gives the images, int `(examples,)`.
        labels: int `(examples,)`.
        scales: The names of those to try.

    Returns:
        None, or `(scale, right under it, right as declared)`.
    """
    right = answers(declared) == labels
    others = {scale: answers(scale) == labels for scale in scales if scale != declared}
    best = max(others, key=lambda scale: others[scale].sum(), default=None)
    if best is None or not _far_better(others[best], right):
        return None
    return best, int(others[best].sum()), int(right.sum())


def better_order(answers: np.ndarray, labels: np.ndarray, classes: int):
    """Another order of the classes under which the answers are right far more often, or None.

    It is found on every other example, and judged on the rest.

    Args:
        answers: The classes that the model gives the images, int `(examples,)`.
        labels: int `(examples,)`.
        classes: Number of classes.

    Returns:
        None, or `(order, right in it, right as declared)` of the examples judged; `order[i]` is the output that
        answers for class i.
    """
    from scipy.optimize import linear_sum_assignment

    together = np.zeros((classes, classes), int)
    np.add.at(together, (labels[::2], answers[::2]), 1)
    order = linear_sum_assignment(together, maximize=True)[1]
    answers, labels = answers[1::2], labels[1::2]
    reordered, right = order[labels] == answers, answers == labels
    return (order.tolist(), int(reordered.sum()), int(right.sum())) if _far_better(reordered, right) else None


def _far_better(a: np.ndarray, b: np.ndarray) -> bool:
    """McNemar's test: only the images on which they differ tell."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return only_a - only_b > _SIGMAS * math.sqrt(only_a + only_b)
