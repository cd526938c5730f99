"""Which members are exported, from which files, and do these hold what was selected?"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_committee import flops
from keras_committee.data.preprocessing import ImageTransform, resize, transform_for_member
from keras_committee.errors import ExportError, RunError, VerificationError
from keras_committee.export.inference_model import compute_in_float32
from keras_committee.files import file_hash
from keras_committee.layers import GeometricMean, WeightedGeometricMean, get_head, head_name, subset_head
from keras_committee.models.loading import load_member
from keras_committee.run import Run
from keras_committee.selection import SelectedMember, Selection

TransformConfig = dict[str, Any] | None  # what a run says of how its data frame an image


def all_members(
    runs: Sequence[Run], min_members: int | None = None
) -> tuple[Selection, list[keras.Model], list[TransformConfig]]:
    """The committee of all members of the runs, under the head of their recipe, its models, and how they frame.

    Raises:
        IncompleteError: If members are missing and there are fewer than `min_members`.
        ExportError: If the runs have other classes or heads than each other, or a member cannot be exported.
        RecipeError: If a recipe cannot be built.
    """
    heads, classes, members, models, transform_configs = [], [], [], [], []
    for run in runs:
        recipe = run.recipe()
        heads.append(recipe.head or GeometricMean())
        classes.append(_trained_classes(run))
        for index in run.available_members(recipe.members, min_members):
            models.append(load_exportable(run.member(index).model))
            members.append(_selected_member(run, index, models[-1]))
            transform_configs.append(run.trained_transform())
    head, weights = _common_head(runs, heads, [member.index for member in members])
    if len(set(classes)) > 1:
        raise ExportError(f"the runs have different classes: {', '.join(map(str, dict.fromkeys(classes)))}.")
    return Selection(members=tuple(members), head=head, weights=weights, classes=classes[0]), models, transform_configs


def selected_models(selection: Selection, folder: Path) -> tuple[list[keras.Model], list[TransformConfig]]:
    """The models of the selection's members, one object for each file, and how they frame.

    The members' `run` paths start from `folder`.

    Raises:
        ExportError: If a file is another one than was selected, or cannot be exported.
        RunError: If there is no such run or member.
    """
    loaded: dict[Path, keras.Model] = {}
    for member in selection.members:
        file = Run.open(folder / member.run).member(member.index).model
        if not file.exists():
            raise RunError(f"{file}, member {member.index} of the selection, is not there.")
        if member.weights and file_hash(file) != member.weights:
            raise ExportError(
                f"{file} is not the member that was selected: its SHA-256 is {file_hash(file)[:12]}..., "
                f"that of the selection {member.weights[:12]}...\n  Select anew: keras-committee select {member.run}"
            )
        if file not in loaded:
            loaded[file] = load_exportable(file)
    runs = [Run.open(folder / selected.run) for selected in selection.members]
    models = [loaded[run.member(each.index).model] for run, each in zip(runs, selection.members, strict=True)]
    return models, [run.trained_transform() for run in runs]


def load_exportable(file: Path) -> keras.Model:
    """The member in `file`, computing in float32.

    Raises:
        ExportError: If it holds code, which the message names, or is no model of one image and one row of logits.
        RunError: If it cannot be read otherwise.
    """
    try:
        model = load_member(file)
    except VerificationError as error:
        raise ExportError(f"{error} Nothing was published.") from error
    compute_in_float32(model)
    _check_shapes(file, model)
    return model


def resolve_transforms(
    models: Sequence[keras.Model],
    transform_configs: Sequence[TransformConfig],
    image_size: tuple[int, int] | None = None,
) -> list[ImageTransform]:
    """What each model sees of an image.

    Args:
        models: The members.
        transform_configs: For each what its run recorded of its data; see `Run.trained_framing`.
        image_size: Height and width for those that take any; None gives them the size of the run's data, or of the
            others.

    Raises:
        ExportError: If a size is known of none of them, or of `image_size` there is no use.
    """
    fixed_sizes = {tuple(model.inputs[0].shape[1:3]) for model in models if None not in model.inputs[0].shape[1:3]}
    any_size = any(None in model.inputs[0].shape[1:3] for model in models)
    if image_size and not any_size and fixed_sizes != {tuple(image_size)}:
        raise ExportError(
            f"the members take images of {_format_sizes(fixed_sizes)}. Received: image_size={tuple(image_size)}."
        )
    pairs = list(zip(models, transform_configs, strict=True))
    transforms = [transform_for_member(each, model.inputs[0].shape, image_size) for model, each in pairs]
    if None in transforms and len(fixed_sizes) == 1:
        transforms = [each or resize(min(fixed_sizes)) for each in transforms]
    resolved = [each for each in transforms if each is not None]
    if len(resolved) < len(transforms):
        raise ExportError(
            "the members leave the image size open: name one, image_size=(224, 224). "
            f"Received: members {_format_sizes(fixed_sizes) or 'of any size'}, image_size={image_size}."
        )
    return resolved


def image_shape(models: Sequence[keras.Model], transforms: Sequence[ImageTransform]) -> tuple[int, int, int]:
    """(height, width, channels) of the committee's image: the largest of a member. Raises ExportError."""
    channels = {model.inputs[0].shape[3] for model in models}
    if len(channels) > 1:
        raise ExportError(f"the members take different channels: {sorted(channels, key=str)}.")
    height, width = max((transform.size for transform in transforms), key=math.prod)
    return height, width, channels.pop()


def _format_sizes(sizes):
    return ", ".join(f"{height}x{width}" for height, width in sorted(sizes))


def _trained_classes(run: Run) -> tuple[str, ...]:
    classes = run.trained_classes()
    if classes is None:
        raise RunError(f"{run.path} does not say which classes its members know. Train a member of it first.")
    return classes


def _common_head(runs, heads, indices):
    names = [head_name(head) for head in heads]
    weighted = isinstance(heads[0], WeightedGeometricMean)
    if len(set(names)) > 1 or (weighted and len(runs) > 1):
        raise ExportError(f"the runs have no head in common: {', '.join(names)}. Write a selection: --selection FILE.")
    try:
        weights = tuple(subset_head(heads[0], indices).get_config()["weights"]) if weighted else None
        get_head(names[0], **({"weights": weights} if weighted else {}))
    except (ValueError, IndexError) as error:
        raise ExportError(f"the head of {runs[0].path} cannot be exported: {error}") from error
    return names[0], weights


def _selected_member(run, index, model):
    return SelectedMember(
        run=str(run.path.resolve()),
        index=index,
        weights=file_hash(run.member(index).model),
        name=model.name,
        parameters=flops.parameters(model),
        mflops=flops.mflops(model) if None not in model.inputs[0].shape[1:] else 0.0,
    )


def _check_shapes(file, model):
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    is_valid = len(inputs) == len(outputs) == 1 and len(inputs[0].shape) == 4 and len(outputs[0].shape) == 2
    if not is_valid:
        raise ExportError(f"{file} must be a functional model of images to logits (batch, classes).")
