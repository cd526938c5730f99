"""Which members are exported, from which files, and do these hold what was selected?"""

from collections.abc import Sequence
from pathlib import Path

import keras

from keras_committee import flops
from keras_committee.errors import ExportError, IncompleteError, RunError, VerificationError
from keras_committee.files import file_hash
from keras_committee.layers import GeometricMean, WeightedGeometricMean, head_name, head_named
from keras_committee.models.loading import load_member
from keras_committee.run import Run
from keras_committee.selection import ChosenMember, Selection
from keras_committee.serving.inference import compute_in_float32


def whole_committee(runs: Sequence[Run], min_members: int | None = None) -> tuple[Selection, list[keras.Model]]:
    """The committee of all members of the runs, under the head of their recipe, and its models.

    Raises:
        IncompleteError: If members are missing and there are fewer than `min_members`.
        ExportError: If the runs have other classes or heads than each other, or a member cannot be exported.
        RecipeError: If a recipe cannot be built.
    """
    heads, classes, members, models = [], [], [], []
    for run in runs:
        recipe = run.recipe()
        heads.append(recipe.head or GeometricMean())
        classes.append(_classes(run))
        for index in _members_at_hand(run, recipe.members, min_members):
            models.append(load_exportable(run.member(index).model))
            members.append(_chosen(run, index, models[-1]))
    head, weights = _one_head(runs, heads)
    if len(set(classes)) > 1:
        raise ExportError(f"the runs have different classes: {', '.join(map(str, dict.fromkeys(classes)))}.")
    return Selection(members=tuple(members), head=head, weights=weights, classes=classes[0]), models


def selected_models(selection: Selection, folder: Path) -> list[keras.Model]:
    """The models of the selection's members, one object for each file; `run` paths start from `folder`.

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
    return [loaded[Run.open(folder / each.run).member(each.index).model] for each in selection.members]


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


def image_shape(models: Sequence[keras.Model], image_size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(height, width, channels) that all models take; `image_size` where they leave it open. Raises ExportError."""
    shapes = {tuple(model.inputs[0].shape[1:]) for model in models}
    if len({shape[2] for shape in shapes}) > 1:
        raise ExportError(f"the members take different channels: {sorted(shapes, key=str)}.")
    sizes = {size[:2] for size in shapes if None not in size[:2]} | ({tuple(image_size)} if image_size else set())
    if len(sizes) != 1:
        what = (
            "take images of different sizes" if sizes else "leave the image size open: name one, image_size=(224, 224)"
        )
        raise ExportError(f"the members {what}. Received: members {sorted(shapes, key=str)}, image_size={image_size}.")
    height, width = sizes.pop()
    return height, width, shapes.pop()[2]


def _classes(run: Run) -> tuple[str, ...]:
    classes = run.trained_classes()
    if classes is None:
        raise RunError(f"{run.path} does not say which classes its members know. Train a member of it first.")
    return classes


def _members_at_hand(run, wanted, min_members):
    finished = [index for index in run.finished_members() if index < wanted]
    if len(finished) < wanted and (min_members is None or len(finished) < min_members):
        raise IncompleteError(
            f"{run.path} has {len(finished)} of {wanted} members.\n"
            f"  Finish them with the command of the run: {run.environment()['command']}\n"
            f"  Or take those that there are: --min-members {max(1, len(finished))}"
        )
    return finished


def _one_head(runs, heads):
    names = [head_name(head) for head in heads]
    weighted = isinstance(heads[0], WeightedGeometricMean)
    if len(set(names)) > 1 or (weighted and len(runs) > 1):
        raise ExportError(f"the runs have no head in common: {', '.join(names)}. Write a selection: --selection FILE.")
    weights = tuple(heads[0].get_config()["weights"]) if weighted else None
    try:
        head_named(names[0], **({"weights": weights} if weighted else {}))
    except ValueError as error:
        raise ExportError(f"the head of {runs[0].path} cannot be exported: {error}") from error
    return names[0], weights


def _chosen(run, index, model):
    return ChosenMember(
        run=str(run.path.resolve()),
        index=index,
        weights=file_hash(run.member(index).model),
        name=model.name,
        parameters=flops.parameters(model),
        mflops=flops.mflops(model) if None not in model.inputs[0].shape[1:] else 0.0,
    )


def _check_shapes(file, model):
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    fits = len(inputs) == len(outputs) == 1 and len(inputs[0].shape) == 4 and len(outputs[0].shape) == 2
    if not fits:
        raise ExportError(f"{file} must be a functional model of images to logits (batch, classes).")
