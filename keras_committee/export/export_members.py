"""The members of an export: loading their files, checking them, and resolving their image transforms."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_committee import flops
from keras_committee.data.preprocessing import ImageTransform, resize, transform_for_member
from keras_committee.errors import ExportError, RunError, VerificationError
from keras_committee.export.layer_precision import compute_in_float32
from keras_committee.files import file_hash
from keras_committee.layers import GeometricMean, WeightedGeometricMean, get_head, head_name, subset_head
from keras_committee.models.loading import load_member
from keras_committee.models.views import view_models
from keras_committee.run import Run, open_selected_runs, selected_data_infos
from keras_committee.selection import SelectedMember, Selection, View

TransformConfig = dict[str, Any] | None  # the image transform that a run recorded; see `Run.data_info`


def all_members(
    runs: Sequence[Run], min_members: int | None = None
) -> tuple[Selection, list[keras.Model], list[TransformConfig]]:
    """Load all members of the runs, as one committee with the head of their recipe.

    Args:
        runs: At least one run.
        min_members: Accept incomplete runs with at least this many members; None requires all.

    Returns:
        The selection, and for each of its members the model and the recorded image transform.

    Raises:
        IncompleteError: If members are missing.
        ExportError: If the members differ in classes or head, or one cannot be exported.
        RunError: If a member does not contain its classes and image transform, or is damaged.
        RecipeError: If a recipe cannot be built.
    """
    heads, classes, members, models, transform_configs = [], [], [], [], []
    for run in runs:
        recipe = run.recipe()
        heads.append(recipe.head or GeometricMean())
        for index in run.available_members(recipe.members, min_members):
            models.append(load_exportable(run.member(index).model))
            members.append(_selected_member(run, index, models[-1]))
            data_info = run.data_info(index)
            classes.append(data_info.classes)
            transform_configs.append(data_info.transform)
    head, weights = _common_head(runs, heads, [member.index for member in members])
    if len(set(classes)) > 1:
        raise ExportError(
            f"the members must have the same classes. Received: {', '.join(map(str, dict.fromkeys(classes)))}."
        )
    return Selection(members=tuple(members), head=head, weights=weights, classes=classes[0]), models, transform_configs


def single_member(run: Run, index: int) -> tuple[Selection, list[keras.Model], list[TransformConfig]]:
    """Load one member of a run, as a committee of one.

    Returns:
        As `all_members`.

    Raises:
        RecipeError, IncompleteError: As `Run.require_member`.
        ExportError, RunError: As `all_members`.
    """
    run.require_member(index)
    run.recipe()  # registers its own layers with Keras
    model, data_info = load_exportable(run.member(index).model), run.data_info(index)
    member = _selected_member(run, index, model)
    return (
        Selection(members=(member,), head="geometric_mean", classes=data_info.classes),
        [model],
        [data_info.transform],
    )


def selected_models(selection: Selection, folder: Path) -> tuple[list[keras.Model], list[TransformConfig]]:
    """Load the members of a selection, each file once.

    Args:
        selection: The selection.
        folder: Folder to which the `run` paths of its members are relative.

    Returns:
        For each member of the selection the model and the recorded image transform.

    Raises:
        ExportError: If a file changed since it was selected, or cannot be exported.
        RunError: If a run or member is missing, or a member has other classes than the selection, or none.
    """
    runs = open_selected_runs(selection, folder)
    files = [run.member(member.index).model for run, member in zip(runs, selection.members, strict=True)]
    for file, member in zip(files, selection.members, strict=True):
        _check_selected(file, member)
    data_infos = selected_data_infos(selection, runs)
    models = load_models(files, [member.view for member in selection.members])
    return models, [info.transform for info in data_infos]


def load_models(files: Sequence[Path], views: Sequence[View | None]) -> list[keras.Model]:
    """Load members, each file once, and return the model of each for its view. Raises as `load_exportable`."""
    loaded = {file: load_exportable(file) for file in dict.fromkeys(files)}
    return view_models([loaded[file] for file in files], views)


def load_exportable(file: Path) -> keras.Model:
    """Load the member in `file` with float32 computation.

    Raises:
        ExportError: If the file contains code, which the message names, or the model does not map one image to one row
            of logits.
        RunError: If the file cannot be read.
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
    """Return the image transform of each member.

    Args:
        models: The members.
        transform_configs: For each member the transform that its run recorded, or None.
        image_size: Height and width for members that accept any size. None uses the size in the run's data, or else
            the size of the other members.

    Raises:
        ExportError: If no size is known, or `image_size` contradicts the sizes of all members.
    """
    fixed_sizes = {tuple(model.inputs[0].shape[1:3]) for model in models if None not in model.inputs[0].shape[1:3]}
    any_size = any(None in model.inputs[0].shape[1:3] for model in models)
    if image_size and not any_size and fixed_sizes != {tuple(image_size)}:
        raise ExportError(
            f"the image size must be that of the members, {_format_sizes(fixed_sizes)}. "
            f"Received: image_size={tuple(image_size)}."
        )
    pairs = list(zip(models, transform_configs, strict=True))
    transforms = [transform_for_member(config, model.inputs[0].shape, image_size) for model, config in pairs]
    if None in transforms and len(fixed_sizes) == 1:
        transforms = [transform or resize(min(fixed_sizes)) for transform in transforms]
    resolved = [transform for transform in transforms if transform is not None]
    if len(resolved) < len(transforms):
        raise ExportError(
            "some members accept any image size: choose one, such as image_size=(224, 224). "
            f"Received: members of {_format_sizes(fixed_sizes) or 'any size'}, image_size={image_size}."
        )
    return resolved


def image_shape(models: Sequence[keras.Model], transforms: Sequence[ImageTransform]) -> tuple[int, int, int]:
    """Return `(height, width, channels)` of the committee's image: the largest size of a member. Raises ExportError."""
    channels = {model.inputs[0].shape[3] for model in models}
    if len(channels) > 1:
        raise ExportError(f"the members must have the same number of channels. Received: {sorted(channels, key=str)}.")
    height, width = max((transform.size for transform in transforms), key=math.prod)
    return height, width, channels.pop()


def _selected_member(run, index, model):
    return SelectedMember(
        run=str(run.path.resolve()),
        index=index,
        weights=file_hash(run.member(index).model),
        name=model.name,
        parameters=flops.parameters(model),
        mflops=flops.mflops(model),
    )


def _common_head(runs, heads, indices):
    names = [head_name(head) for head in heads]
    weighted = isinstance(heads[0], WeightedGeometricMean)
    if len(set(names)) > 1 or (weighted and len(runs) > 1):
        raise ExportError(
            f"several runs must share one head without weights. Received: {', '.join(names)}. "
            "Choose a head in a selection: --selection FILE."
        )
    try:
        weights = tuple(subset_head(heads[0], indices).get_config()["weights"]) if weighted else None
        get_head(names[0], **({"weights": weights} if weighted else {}))
    except (ValueError, IndexError) as error:
        raise ExportError(f"the head of {runs[0].path} cannot be exported: {error}") from error
    return names[0], weights


def _check_selected(file, member):
    if not file.exists():
        raise RunError(f"{file}, member {member.index} of the selection, does not exist.")
    if member.weights and file_hash(file) != member.weights:
        raise ExportError(
            f"{file} is not the selected member: its SHA-256 is {file_hash(file)[:12]}..., "
            f"in the selection it is {member.weights[:12]}...\n  To update the selection, run: "
            f"keras-committee select {member.run}"
        )


def _check_shapes(file, model):
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    is_valid = len(inputs) == len(outputs) == 1 and len(inputs[0].shape) == 4 and len(outputs[0].shape) == 2
    if not is_valid:
        raise ExportError(f"{file} must be a functional model from one image to logits (batch, classes).")


def _format_sizes(sizes):
    return ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
