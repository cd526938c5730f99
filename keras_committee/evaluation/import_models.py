"""Import of trained models from elsewhere as members of a run.

Each model is wrapped as a member, checked against the data and the other members, and saved where training would have
saved it. `evaluate`, `select`, `report` and `export` treat it like any other member; the journal records its source.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_committee.data.validation import name_unreadable_images
from keras_committee.errors import RecipeError, VerificationError, pluralize
from keras_committee.evaluation.member_info import load_member_info, member_info_from_model
from keras_committee.evaluation.pool import check_no_duplicate_weights, require_equal_classes
from keras_committee.files import file_hash
from keras_committee.input_scaling import INPUT_SCALINGS, InputScaling
from keras_committee.member_dir import DataInfo
from keras_committee.models.external import (
    ONE_OUTPUT_REMEDY,
    LogitsConversion,
    load_keras_file,
    wrap_model,
    wrap_model_with_report,
)
from keras_committee.models.loading import save_member
from keras_committee.models.predict import log_probabilities
from keras_committee.models.saved_model import load_saved_model
from keras_committee.progress import track
from keras_committee.recipe import Recipe
from keras_committee.run import Run

if TYPE_CHECKING:
    from keras_committee.data.splits import Split, Splits

_NUM_EXAMPLES = 256  # images of the sanity checks
_MIN_SIGMAS = 4.0  # difference of two accuracies on the same images that is no coincidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model to import, and what is declared about it.

    Attributes:
        path: A `.keras` file, or the folder of a SavedModel.
        input_scaling: Pixel scale that it was trained on, as in `models.wrap_model`.
        classes: Names of its classes, in the order of its outputs; None where they are not known.
        signature, output: Signature and output of a SavedModel, as in `models.from_saved_model`.
    """

    path: Path
    input_scaling: InputScaling = "0..255"
    classes: tuple[str, ...] | None = None
    signature: str = "serving_default"
    output: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import.

    Attributes:
        reorder_classes: Reorder outputs whose classes are the same in another order.
        resize: Resize the images inside a model that takes another size.
        allow_duplicate_weights: Accept members with identical weights.
        skip_sanity_checks: Accept a declared pixel scale or class order that the data contradict.
    """

    reorder_classes: bool = False
    resize: bool = False
    allow_duplicate_weights: bool = False
    skip_sanity_checks: bool = False


def import_models(
    run: Run, recipe: Recipe, sources: Sequence[ModelSource], options: ImportOptions | None = None
) -> list[dict[str, Any]]:
    """Import models as members of a run, at the first free indices. The caller holds the lock of the run.

    All models are checked before the first one is saved.

    Args:
        run: The run folder.
        recipe: Its recipe, which defines the data and the number of members.
        sources: The models.
        options: Options; the defaults where None.

    Returns:
        For each model its entry in the journal: `member`, `path`, `sha256`, `scale`, `outputs`, `order` ("given",
        "reordered" or "assumed to be that of the data"), `classes`, and the fraction of `examples` validation images
        that it classifies `right`.

    Raises:
        RecipeError: If classes or images differ, or the recipe has too few members.
        DataError: If the data cannot be read.
        VerificationError: If a model cannot be a member, has the weights of another one, or the data contradict what is
            declared about it.
    """
    options = options or ImportOptions()
    indices = _next_member_indices(run, recipe, len(sources))
    splits: Splits = recipe.data.load()
    run.require_classes(splits.classes)
    image_shape = tuple(splits.test.image_shape)
    imported_models = [
        import_model(
            source, splits.classes, image_shape, reorder_classes=options.reorder_classes, resize=options.resize
        )
        for source in track(sources, f"loading {pluralize(len(sources), 'model')}", len(sources))
    ]
    weights = _weight_hashes(run, sources, imported_models)
    if not options.allow_duplicate_weights:
        check_no_duplicate_weights(weights, "the committee")
    examples = _sample_examples(splits.validation if len(splits.validation) else splits.test)
    records = [
        _check_and_describe(index, source, imported, splits.classes, examples, options)
        for index, source, imported in zip(indices, sources, imported_models, strict=True)
    ]
    data_info = DataInfo(classes=splits.classes, transform=dataclasses.asdict(splits.test.transform))
    for index, imported, record in zip(indices, imported_models, records, strict=True):
        save_member(imported.model, run.member(index).model, data_info)
        run.append_event("imported", **record)
    return records


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """A model wrapped as a member.

    Attributes:
        model: Model from raw pixels to logits, in the class order of the data.
        original: The model as loaded.
        outputs: How its outputs were converted to logits.
        class_order: For each class of the data its index in the outputs of `original`; None where the order is equal.
        sha256: Hash of the file, or of the names and contents of all files in the folder.
    """

    model: keras.Model
    original: keras.Model
    outputs: LogitsConversion
    class_order: list[int] | None
    sha256: str


def import_model(
    source: ModelSource, classes: Sequence[str], image_shape: tuple[int, ...], *, reorder_classes: bool, resize: bool
) -> ImportedModel:
    """Load a model and wrap it as a member.

    Args:
        source: The model.
        classes: Names of the data's classes, in label order.
        image_shape: Shape of the data's images, `(height, width, channels)`.
        reorder_classes: Reorder the outputs if the classes are the same in another order.
        resize: Resize the images inside the model if it takes another size.

    Raises:
        RecipeError: If classes or images differ and may not be reordered or resized.
        VerificationError: If the model cannot be a member.
    """
    size = (image_shape[0], image_shape[1])
    original = _load_source(source, size)
    class_order = _class_order(source, original, tuple(classes), reorder_classes)
    _check_image_shape(source, original, image_shape, resize)
    try:
        model, outputs = wrap_model_with_report(
            original,
            input_scaling=source.input_scaling,
            class_order=class_order,
            image_size=_input_size(original, size),
            resized_from=size,
            name=_model_name(source),
        )
    except ValueError as error:
        raise RecipeError(f"{source.path}: {error}") from error
    return ImportedModel(
        model=model, original=original, outputs=outputs, class_order=class_order, sha256=_sha256(source.path)
    )


def _load_source(source, size):
    if source.path.is_dir():
        return load_saved_model(source.path, signature=source.signature, output=source.output, image_size=size)
    return load_keras_file(source.path)


def _model_name(source):
    path = source.path.resolve()
    return path.parent.name if path.name.isdecimal() else path.stem


def _class_order(source, original, classes, reorder_classes):
    """Return None where the outputs are in the order of the data, or only their number is known."""
    num_outputs = original.outputs[0].shape[-1]
    if num_outputs == 1 and len(classes) == 2:
        raise RecipeError(f"{source.path} has one output for 2 classes. {ONE_OUTPUT_REMEDY}")
    output_names = source.classes or (classes if num_outputs == len(classes) else ("unnamed",) * num_outputs)
    if len(output_names) != num_outputs:
        raise RecipeError(f"{source.path} has {num_outputs} outputs. Received: {len(output_names)} class names")
    if output_names == classes:
        return None
    is_permutation = sorted(output_names) == sorted(classes) and len(set(output_names)) == len(output_names)
    if is_permutation and reorder_classes:
        return [output_names.index(name) for name in classes]
    try:
        require_equal_classes({"the data": classes, str(source.path): output_names})
    except RecipeError as error:
        hint = "\n  The classes are the same in another order. To reorder the outputs, add --reorder-classes."
        raise RecipeError(f"{error}{hint if is_permutation else ''}") from None
    return None


def _input_size(original, size):
    height, width = original.inputs[0].shape[1:3]
    return (height or size[0], width or size[1])


def _check_image_shape(source, original, image_shape, resize):
    shape = tuple(original.inputs[0].shape[1:])
    if len(shape) != 3:
        return  # `wrap_model` raises the error
    if shape[2] != image_shape[2]:
        raise RecipeError(
            f"{source.path} takes images of {shape[2]} channels; the images of the data have {image_shape[2]}."
        )
    if (
        any(model_dim not in (None, image_dim) for model_dim, image_dim in zip(shape, image_shape, strict=True))
        and not resize
    ):
        raise RecipeError(
            f"{source.path} takes images of {shape[0]}x{shape[1]}; the images of the data are {image_shape[0]}x"
            f"{image_shape[1]}.\n"
            "  Add --resize to resize them inside the model, bilinearly, or read the data at its size."
        )


def _sha256(path: Path) -> str:
    if path.is_file():
        return file_hash(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{file_hash(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _next_member_indices(run: Run, recipe: Recipe, count: int) -> list[int]:
    finished = run.finished_members()
    free = [index for index in range(recipe.members) if index not in finished]
    if len(free) < count:
        raise RecipeError(
            f"the recipe has {recipe.members} members, and {len(finished)} of them exist: there is no room for "
            f"{count} more.\n  Give the recipe a parameter `members` and set it: --set members={len(finished) + count}"
        )
    return free[:count]


def _weight_hashes(
    run: Run, sources: Sequence[ModelSource], imported_models: Sequence[ImportedModel]
) -> dict[str, str]:
    """Return the weight hashes of the existing and the new members, by the names that messages use."""
    hashes = {str(index): load_member_info(run, index).weights for index in run.finished_members()}
    for source, imported in zip(sources, imported_models, strict=True):
        try:
            info = member_info_from_model(imported.model)
        except ValueError as error:
            raise VerificationError(f"{source.path}: {error}") from error
        name = str(source.path) if str(source.path) not in hashes else f"{source.path} (second time)"
        hashes[name] = info.weights
    return hashes


def _sample_examples(split: "Split") -> "Split":
    return split.subset(np.unique(np.linspace(0, len(split) - 1, _NUM_EXAMPLES).astype(int)))


def _check_and_describe(
    index: int,
    source: ModelSource,
    imported: ImportedModel,
    classes: Sequence[str],
    examples: "Split",
    options: ImportOptions,
) -> dict[str, Any]:
    predicted = _predicted_classes(imported.model, examples, source)
    correct = predicted == examples.labels
    if not options.skip_sanity_checks:
        _check_scale(source, imported, predicted, examples)
        _check_class_order(source, predicted, examples, classes)
    order_status = "assumed to be that of the data" if source.classes is None else "given"
    return {
        "member": index,
        "path": str(source.path.resolve()),
        "sha256": imported.sha256,
        "scale": source.input_scaling
        if isinstance(source.input_scaling, str)
        else dataclasses.asdict(source.input_scaling),
        "outputs": imported.outputs,
        "order": "reordered" if imported.class_order else order_status,
        "classes": list(classes),
        "right": round(float(correct.mean()), 4),
        "examples": len(examples.labels),
    }


def _predicted_classes(model, examples: "Split", source: ModelSource) -> np.ndarray:
    with name_unreadable_images(examples):
        log_probs = log_probabilities(model, examples.batches(64))
    if not np.isfinite(log_probs).all():
        raise VerificationError(f"{source.path} outputs values that are not finite. Nothing was imported.")
    if len(log_probs) > 1 and log_probs.shape[1] > 1 and (log_probs == log_probs[0]).all():
        raise VerificationError(
            f"{source.path} returns the same outputs for each of {len(log_probs)} images. Nothing was imported.\n"
            f"  Check that it holds trained weights, and that the input scaling is {source.input_scaling}."
        )
    return log_probs.argmax(axis=1)


def _check_scale(source: ModelSource, imported: ImportedModel, predicted: np.ndarray, examples: "Split") -> None:
    if not isinstance(source.input_scaling, str):
        return
    size = imported.model.inputs[0].shape[1:3]
    model_size = tuple(imported.original.inputs[0].shape[1:3])

    def predict_with_scale(scale):
        if scale == source.input_scaling:
            return predicted
        image_size = tuple(own or data for own, data in zip(model_size, size, strict=True))
        model = wrap_model(
            imported.original,
            input_scaling=scale,
            class_order=imported.class_order,
            image_size=image_size,
            resized_from=size,
        )
        return log_probabilities(model, examples.batches(64)).argmax(axis=1)

    scales = [name for name in INPUT_SCALINGS if examples.image_shape[2] == 3 or name not in ("torch", "caffe")]
    better = better_scale(source.input_scaling, predict_with_scale, examples.labels, scales)
    if better:
        scale, num_correct, num_correct_declared = better
        raise VerificationError(
            f"{source.path} classifies {num_correct_declared} of {len(examples.labels)} images correctly with the "
            f"declared input scaling {source.input_scaling}, but {num_correct} with {scale}. Nothing was imported.\n"
            f"  Set --input-scaling {scale}, or keep the declared one with --skip-sanity-checks."
        )


def _check_class_order(source: ModelSource, predicted: np.ndarray, examples: "Split", classes: Sequence[str]) -> None:
    better = better_order(predicted, examples.labels, len(classes))
    if better:
        order, num_correct, num_correct_declared = better
        first = next(index for index, output in enumerate(order) if index != output)
        raise VerificationError(
            f"{source.path} seems to have its classes in another order: images of {classes[first]!r} are classified as "
            f"{classes[order[first]]!r}. It classifies {num_correct_declared} of {len(predicted) // 2} images "
            f"correctly, but {num_correct} in another order. Nothing was imported.\n"
            "  Give the names of its outputs with --class-names-file FILE and --reorder-classes, or keep the declared "
            "order with --skip-sanity-checks."
        )


def better_scale(declared: str, predict_classes: Callable[[str], np.ndarray], labels: np.ndarray, scales: list[str]):
    """Return the pixel scale under which a model is significantly more accurate than under the declared one, or None.

    Args:
        declared: Name of the declared scale.
        predict_classes: Function of a scale's name that returns the predicted classes, int `(examples,)`.
        labels: int `(examples,)`.
        scales: Names of the scales to try.

    Returns:
        None, or `(scale, number correct under it, number correct as declared)`.
    """
    correct = predict_classes(declared) == labels
    correct_by_scale = {scale: predict_classes(scale) == labels for scale in scales if scale != declared}
    best = max(correct_by_scale, key=lambda scale: correct_by_scale[scale].sum(), default=None)
    if best is None or not _significantly_better(correct_by_scale[best], correct):
        return None
    return best, int(correct_by_scale[best].sum()), int(correct.sum())


def better_order(predicted: np.ndarray, labels: np.ndarray, num_classes: int):
    """Return a class order under which the predictions are significantly more accurate, or None.

    It is found on every other example and tested on the rest.

    Args:
        predicted: Predicted classes, int `(examples,)`.
        labels: int `(examples,)`.
        num_classes: Number of classes.

    Returns:
        None, or `(order, number correct in it, number correct as declared)` on the test examples; `order[i]` is the
        output of class i.
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels[::2], predicted[::2]), 1)
    order = linear_sum_assignment(counts, maximize=True)[1]
    predicted, labels = predicted[1::2], labels[1::2]
    correct_reordered, correct = order[labels] == predicted, predicted == labels
    return (
        (order.tolist(), int(correct_reordered.sum()), int(correct.sum()))
        if _significantly_better(correct_reordered, correct)
        else None
    )


def _significantly_better(a: np.ndarray, b: np.ndarray) -> bool:
    """Return the result of McNemar's test, which uses only the images on which the two differ."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return only_a - only_b > _MIN_SIGMAS * math.sqrt(only_a + only_b)
