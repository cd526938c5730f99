"""How do trained models from elsewhere become the members of a run, as if it had trained them?

Each is made a member, checked against the data and against the others, and written where training would have left it.
So evaluate, select, report and export take it like any other; the journal tells where it came from.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_committee.errors import RecipeError, VerificationError
from keras_committee.evaluation.member_info import load_member_info, member_info_from_model
from keras_committee.evaluation.pool import check_no_duplicate_weights
from keras_committee.models.external import INPUT_SCALINGS, wrap_model
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
from keras_committee.models.external import InputScaling, LogitsConversion, load_keras_file, wrap_model_with_report
from keras_committee.models.saved_model import load_saved_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model from elsewhere.

    Attributes:
        path: A `.keras` file, or the folder of a SavedModel.
        input_scaling: What pixels it was trained on, as `models.wrap_model` takes it.
        classes: Names of its classes, in the order of its outputs; None where its owner does not say.
        signature, output: Of a SavedModel, as `models.from_saved_model` takes them.
    """

    path: Path
    input_scaling: InputScaling = "0..255"
    classes: tuple[str, ...] | None = None
    signature: str = "serving_default"
    output: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """A member made of an offer.

    Attributes:
        model: Raw pixels to logits, in the order of the data's classes.
        original: The model as it was read.
        outputs: What was done to its outputs to make them logits.
        class_order: For each class of the data its place in the outputs of `original`, where that is another one.
        sha256: Of the file, or of the names and contents of all files in the folder.
    """

    model: keras.Model
    original: keras.Model
    outputs: LogitsConversion
    class_order: list[int] | None
    sha256: str


def import_model(
    source: ModelSource, classes: Sequence[str], image_shape: tuple[int, ...], *, reorder_classes: bool, resize: bool
) -> ImportedModel:
    """The member that an offer makes on data of these classes and images `(height, width, channels)`.

    Raises:
        RecipeError: If its classes or its images are others, and it was not asked to reorder or resize.
        VerificationError: If it cannot be a member.
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
    """None where the outputs stand in the order of the data, or nothing is known of them but their number."""
    num_outputs = original.outputs[0].shape[-1]
    output_names = source.classes or (classes if num_outputs == len(classes) else ("unnamed",) * num_outputs)
    if len(output_names) != num_outputs:
        raise RecipeError(
            f"{source.path} has {num_outputs} outputs; {len(output_names)} names of classes were given for it."
        )
    if output_names == classes:
        return None
    is_permutation = sorted(output_names) == sorted(classes) and len(set(output_names)) == len(output_names)
    if is_permutation and reorder_classes:
        return [output_names.index(each) for each in classes]
    try:
        require_equal_classes({"the data": classes, str(source.path): output_names})
    except RecipeError as error:
        hint = "\n  They are the same in another order. Bring its outputs into that of the data: --reorder-classes"
        raise RecipeError(f"{error}{hint if is_permutation else ''}") from None
    return None


def _input_size(original, size):
    height, width = original.inputs[0].shape[1:3]
    return (height or size[0], width or size[1])


def _check_image_shape(source, original, image_shape, resize):
    shape = tuple(original.inputs[0].shape[1:])
    if len(shape) != 3:
        return  # told in other words
    if shape[2] != image_shape[2]:
        raise RecipeError(f"{source.path} takes {shape[2]} channels; the images of the data have {image_shape[2]}.")
    if (
        any(model_dim not in (None, image_dim) for model_dim, image_dim in zip(shape, image_shape, strict=True))
        and not resize
    ):
        raise RecipeError(
            f"{source.path} takes images of {shape[0]}x{shape[1]}; those of the data are {image_shape[0]}x"
            f"{image_shape[1]}.\n  Let it resize them itself, bilinearly: --resize. Or read the data at its size."
        )


def _sha256(path: Path) -> str:
    if path.is_file():
        return file_hash(path)
    files = sorted(each for each in path.rglob("*") if each.is_file())
    lines = "".join(f"{file_hash(each)}  {each.relative_to(path).as_posix()}\n" for each in files)
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What is adopted although it looks like a mistake, or only because it was asked for.

    Attributes:
        reorder_classes: Outputs in another order of the same classes are reordered.
        resize: A model of another image size resizes the images itself.
        allow_duplicate_weights: Members may have identical weights.
        skip_sanity_checks: The data may contradict what was declared of a model.
    """

    reorder_classes: bool = False
    resize: bool = False
    allow_duplicate_weights: bool = False
    skip_sanity_checks: bool = False


def import_models(
    run: Run, recipe: Recipe, sources: Sequence[ModelSource], options: ImportOptions | None = None
) -> list[dict[str, Any]]:
    """Makes the offered models members of the run, at the first places that are free. The caller holds its lock.

    All of them are checked before the first is written.

    Args:
        run: The run folder.
        recipe: Its recipe: the data, and how many members there are.
        sources: The models, and what is declared of them.
        options: What is let pass.

    Returns:
        For each model what the journal says of it: `imported`, `path`, `sha256`, `scale`, `outputs`, `classes` ("given",
        "reordered" or "taken to be those of the data"), and the share of `examples` validation images that it gets
        `right`.

    Raises:
        RecipeError: If classes or images differ, or the recipe has too few members.
        DataError: If the data cannot be read.
        VerificationError: If a model cannot be a member, is the twin of another, or the data contradict what was
            declared of it.
    """
    options = options or ImportOptions()
    indices = _next_member_indices(run, recipe, len(sources))
    splits: Splits = recipe.data.load()
    run.require_classes(splits.classes)
    image_shape = tuple(splits.test.image_shape)
    imported_models = [
        import_model(each, splits.classes, image_shape, reorder_classes=options.reorder_classes, resize=options.resize)
        for each in sources
    ]
    weights = _weight_hashes(run, sources, imported_models)
    if not options.allow_duplicate_weights:
        check_no_duplicate_weights(weights, "the committee")
    examples = _sample_examples(splits.validation if len(splits.validation) else splits.test)
    records = [
        _check_and_describe(*each, splits.classes, examples, options)
        for each in zip(indices, sources, imported_models, strict=True)
    ]
    for index, imported, record in zip(indices, imported_models, records, strict=True):
        save_member(imported.model, run.member(index).model)
        run.append_event("adopted", **record)
    return records


def _next_member_indices(run: Run, recipe: Recipe, count: int) -> list[int]:
    finished = run.finished_members()
    free = [index for index in range(recipe.members) if index not in finished]
    if len(free) < count:
        raise RecipeError(
            f"the recipe has {recipe.members} members, of which {len(finished)} are there: no place for {count} more.\n"
            f"  Give it a knob `members` and turn it: --set members={len(finished) + count}"
        )
    return free[:count]


def _weight_hashes(
    run: Run, sources: Sequence[ModelSource], imported_models: Sequence[ImportedModel]
) -> dict[str, str]:
    """The hashes of the weights of all members, those that were there included, by names to tell them by."""
    hashes = {str(index): load_member_info(run, index).weights for index in run.finished_members()}
    for source, imported in zip(sources, imported_models, strict=True):
        try:
            info = member_info_from_model(imported.model)
        except ValueError as error:
            raise VerificationError(f"{source.path}: {error}") from error
        name = str(source.path) if str(source.path) not in hashes else f"{source.path} once more"
        hashes[name] = info.weights
    return hashes


def _sample_examples(split: "Split") -> "Split":
    return split.subset(np.unique(np.linspace(0, len(split) - 1, NUM_EXAMPLES).astype(int)))


def _check_and_describe(
    index, source: ModelSource, imported: ImportedModel, classes, examples: "Split", options: ImportOptions
) -> dict[str, Any]:
    predicted = _predicted_classes(imported.model, examples, source)
    correct = predicted == examples.labels
    if not options.skip_sanity_checks:
        _check_scale(source, imported, predicted, examples)
        _check_class_order(source, predicted, examples, classes)
    order_status = "taken to be those of the data" if source.classes is None else "given"
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
    log_probs = log_probabilities(model, examples.batches(64))
    if not np.isfinite(log_probs).all():
        raise VerificationError(f"{source.path} gives values that are not finite numbers. Nothing was adopted.")
    return log_probs.argmax(axis=1)


def _check_scale(source: ModelSource, imported: ImportedModel, predicted: np.ndarray, examples: "Split") -> None:
    if not isinstance(source.input_scaling, str):
        return
    size = imported.model.inputs[0].shape[1:3]
    model_size = tuple(imported.original.inputs[0].shape[1:3])

    def predict_with_scale(scale):
        if scale == source.input_scaling:
            return predicted
        image_size = tuple(mine or given for mine, given in zip(model_size, size, strict=True))
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
            f"{source.path} was declared to take pixels {source.input_scaling}; of {len(examples.labels)} images it then gets "
            f"{num_correct_declared} right, and with {scale} it gets {num_correct}.\n"
            f"  Say --input-scaling {scale}. If it is meant as declared: --skip-sanity-checks. Nothing was adopted."
        )


def _check_class_order(source: ModelSource, predicted: np.ndarray, examples: "Split", classes: Sequence[str]) -> None:
    better = better_order(predicted, examples.labels, len(classes))
    if better:
        order, num_correct, num_correct_declared = better
        first = next(index for index, output in enumerate(order) if index != output)
        raise VerificationError(
            f"{source.path} seems to know the classes in another order: where the data have {classes[first]!r}, it "
            f"answers with what was declared as {classes[order[first]]!r}. Of {len(predicted) // 2} images it gets "
            f"{num_correct_declared} right, and {num_correct} in an order that fits.\n"
            "  Give the names of its outputs, --class-names-file FILE, and --reorder-classes. If it is meant as declared: --skip-sanity-checks."
        )


NUM_EXAMPLES = 256
_MIN_SIGMAS = 4.0  # so far apart two accuracies on the same images are by no chance


def better_scale(declared: str, predict_classes: Callable[[str], np.ndarray], labels: np.ndarray, scales: list[str]):
    """The scale under which a model is right far more often than under the declared one, or None.

    Args:
        declared: Name of the scale that was declared.
        predict_classes: Function of a scale's name: the classes that the model then gives the images, int `(examples,)`.
        labels: int `(examples,)`.
        scales: The names of those to try.

    Returns:
        None, or `(scale, right under it, right as declared)`.
    """
    correct = predict_classes(declared) == labels
    correct_by_scale = {scale: predict_classes(scale) == labels for scale in scales if scale != declared}
    best = max(correct_by_scale, key=lambda scale: correct_by_scale[scale].sum(), default=None)
    if best is None or not _significantly_better(correct_by_scale[best], correct):
        return None
    return best, int(correct_by_scale[best].sum()), int(correct.sum())


def better_order(predicted: np.ndarray, labels: np.ndarray, num_classes: int):
    """Another order of the classes under which the answers are right far more often, or None.

    It is found on every other example, and judged on the rest.

    Args:
        predicted: The classes that the model gives the images, int `(examples,)`.
        labels: int `(examples,)`.
        num_classes: Number of classes.

    Returns:
        None, or `(order, right in it, right as declared)` of the examples judged; `order[i]` is the output that
        answers for class i.
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
    """McNemar's test: only the images on which they differ tell."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return only_a - only_b > _MIN_SIGMAS * math.sqrt(only_a + only_b)
