"""What does its owner say of a model from elsewhere, and what member does that make of it?"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_committee.errors import RecipeError
from keras_committee.evaluation.compatibility import require_equal_classes
from keras_committee.files import file_hash
from keras_committee.models.foreign import as_member_told
from keras_committee.models.keras_file import load_keras_file
from keras_committee.models.logits import Outputs
from keras_committee.models.saved_model import load_saved_model
from keras_committee.models.scales import Scale


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
