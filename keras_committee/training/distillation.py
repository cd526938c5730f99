"""What a member learns from its teacher, a trained committee or network: `Recipe(teacher=...)`."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_committee.data import Splits
from keras_committee.errors import RecipeError
from keras_committee.files import expand_home, file_hash, read_record
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder, folder_kind
from keras_committee.keras_archive import other_format, read_architecture
from keras_committee.layers import GeometricMean
from keras_committee.layers.heads import LOG_ZERO
from keras_committee.member_dir import read_data_info
from keras_committee.models import Ensemble
from keras_committee.models.external import from_keras_file
from keras_committee.models.loading import load_member
from keras_committee.recipe import Recipe, Teacher
from keras_committee.run import Run
from keras_committee.tfserving.versions import MANIFEST_FILE, find_versions
from keras_committee.training_run import finished_and_missing

_SIGNATURE = "predict_members"  # of an export: all members run, whatever the stages of a cascade
_SMALLEST_FLOAT32 = 2.0**-126


class Distillation:
    """The part of a student's loss that comes from its teacher; `Teacher` defines it.

    Args:
        predict: Function from raw pixels `(batch, height, width, channels)` to the teacher's logits or
            log-probabilities `(batch, classes)`.
        temperature: As in `Teacher`.
        weight: As in `Teacher`.
        supports_xla: Whether `predict` can be compiled with XLA.
    """

    def __init__(self, predict: Callable, temperature: float, weight: float, supports_xla: bool = True):
        self._predict, self._temperature, self._weight = predict, temperature, weight
        self.supports_xla = supports_xla

    def soft_targets(self, images):
        """Return the softened probabilities of the teacher, float32 `(batch, classes)`. They have no gradient."""
        return ops.stop_gradient(ops.softmax(ops.cast(self._predict(images), "float32") / self._temperature))

    def loss(self, label_loss, soft_targets, logits, loss: Callable):
        """Return the loss of a batch, reduced as `label_loss` is.

        Args:
            label_loss: Its loss by the labels, a scalar.
            soft_targets: The result of `soft_targets` for its images.
            logits: Logits of the student, float32 `(batch, classes)`.
            loss: The Keras loss of the recipe, whose reduction over the batch is used.
        """
        reduction = getattr(loss, "reduction", "sum_over_batch_size")
        crossentropy = keras.losses.CategoricalCrossentropy(from_logits=True, reduction=reduction)
        teacher_loss = crossentropy(soft_targets, logits / self._temperature) * self._temperature**2
        return (1.0 - self._weight) * label_loss + self._weight * teacher_loss


def load_distillation(teacher: Teacher | None, splits: Splits, strategy: tf.distribute.Strategy) -> Distillation | None:
    """Load a teacher for the training steps under `strategy`; None without a teacher.

    Raises:
        RecipeError: If it does not fit the images or the number of classes.
        CommitteeError: Any other, if it is missing or cannot be loaded.
    """
    if teacher is None:
        return None
    with _kept_registrations(), strategy.scope():
        found = _find(teacher)
        predict = found.load()
    _check_image_shape(found.path, predict.image_shape, splits)
    if predict.classes != len(splits.classes):
        _raise_other_number_of_classes(found.path, predict.classes, splits)
    return Distillation(predict.function, teacher.temperature, teacher.weight, predict.supports_xla)


def check_teacher(
    recipe: Recipe, run: Run, splits: Splits | None = None, *, restart: bool = False
) -> dict[str, str] | None:
    """Check that the teacher of a recipe exists, fits the data and is the one that earlier members learned from.

    The networks are not loaded, and nothing is written: the folder of the run need not exist.

    Args:
        recipe: The recipe of the run.
        run: The run folder of the student.
        splits: The data; None loads them.
        restart: Whether the unfinished members will be trained from the start.

    Returns:
        The record of the teacher for `Run.record_teacher`; None without a teacher, or if every member is finished.

    Raises:
        RecipeError: If there is no such teacher, it is not trained, it is the run itself, or it does not fit the data.
        RunError: If members of the run learned from another one, or the files of the teacher are damaged.
        DataError: If the data are invalid.
    """
    if recipe.teacher is None or not finished_and_missing(run, recipe, None)[1]:
        return None
    path = expand_home(recipe.teacher.path)
    if path.resolve().is_relative_to(run.path.resolve()):
        raise RecipeError(
            f"Recipe(teacher=...): {path} is the run folder of the student itself, or in it.\n"
            "  Train the student in a folder of its own: --run DIR"
        )
    with _kept_registrations():
        found = _find(recipe.teacher)
    _check_fits(found, splits or recipe.data.load())
    record = {"path": str(found.path.resolve()), "weights": found.weights()}
    run.require_teacher(record, restart=restart)
    return record


@dataclasses.dataclass(frozen=True)
class _Predict:
    """A loaded teacher: what `Distillation` takes, with the shape of its images and its number of classes."""

    function: Callable
    image_shape: tuple[int, ...]
    classes: int
    supports_xla: bool


@dataclasses.dataclass(frozen=True)
class _Found:
    """The files of a teacher.

    Attributes:
        path: The run folder, the version folder of an export, or the `.keras` file.
        files: The files that its answers depend on, in order.
        load: Function that loads it.
        classes: Names of its classes, in label order; None if they are unknown.
        num_classes: Their number; None if it is unknown.
        image_shape: Height, width and channels of its images; None if they are unknown.
    """

    path: Path
    files: Sequence[Path]
    load: Callable[[], _Predict]
    classes: tuple[str, ...] | None
    num_classes: int | None
    image_shape: tuple[int, ...] | None

    def weights(self) -> str:
        """Return the SHA-256 over the files, wherever they are, in hexadecimal digits."""
        return hashlib.sha256("".join(map(file_hash, self.files)).encode()).hexdigest()


def _find(teacher: Teacher) -> _Found:
    path = expand_home(teacher.path)
    kind = folder_kind(path) if path.is_dir() else None
    if kind is FolderKind.RUN:
        return _find_run(path)
    if kind is FolderKind.VERSION:
        return _find_export(path)
    if kind is FolderKind.MODEL:
        versions = find_versions(path)
        return _find_export(versions[max(versions)])
    if path.is_file() and path.suffix == ".keras":
        return _find_keras_file(path)
    explanation = explain_wrong_folder(path, FolderKind.RUN, FolderKind.MODEL)
    if path.exists():
        problem = f"{path} is no trained committee. {explanation[:1].upper()}{explanation[1:]}".rstrip()
    else:
        problem = f"{path} does not exist. {explanation.partition('. ')[2]}".rstrip()
    raise RecipeError(
        f"Recipe(teacher=...): {problem}\n"
        "  A teacher is a run folder, the folder of an export, or a .keras file. Train it before the student. If it "
        "was moved, set its new path."
    )


def _find_run(path: Path) -> _Found:
    run = Run.open(path)
    recipe = run.recipe()  # registers the layers that it defines
    members, finished = range(recipe.members), run.finished_members()
    if missing := [index for index in members if index not in finished]:
        raise RecipeError(
            f"Recipe(teacher=...): {path} has {recipe.members - len(missing)} of {recipe.members} members; not "
            f"trained: {', '.join(map(str, missing))}.\n  To train them, run: {run.environment()['command']}"
        )
    files = [run.member(index).model for index in members]
    classes = run.data_info(0).classes

    def load() -> _Predict:
        ensemble = Ensemble([load_member(file) for file in files], recipe.head or GeometricMean())
        log_probs = _log(ensemble.output["probabilities"])
        return _keras_teacher(keras.Model(ensemble.inputs[0], log_probs, name="teacher"))

    return _Found(path, files, load, classes, len(classes), _input_shape(_architecture(files[0])))


def _find_export(path: Path) -> _Found:
    manifest_file = path / MANIFEST_FILE
    if not manifest_file.is_file():
        raise RecipeError(
            f"Recipe(teacher=...): {path} was not exported by keras-committee: it has no committee.json.\n"
            "  Import the model into a run, and use that: keras-committee import RECIPE MODEL --run DIR"
        )
    try:
        manifest = read_record(manifest_file, may_be_edited=True)
        labels, image = manifest["labels"], manifest["image"]
        shape = (image["height"], image["width"], image["channels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"Recipe(teacher=...): {manifest_file} is damaged: {error!r}.\n  Export again: keras-committee export RUN"
        ) from error

    def load() -> _Predict:
        try:
            loaded: Any = tf.saved_model.load(str(path))
            loaded.signatures[_SIGNATURE]
        except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
            raise RecipeError(
                f"Recipe(teacher=...): {path} cannot be loaded: {error}\n  Export again: keras-committee export RUN"
            ) from error

        def predict(images):  # keeps `loaded`, which owns the variables
            return _log(loaded.signatures[_SIGNATURE](image=tf.cast(images, tf.float32))["probabilities"])

        return _Predict(predict, shape, len(labels), supports_xla=False)

    files = sorted(file for file in path.rglob("*") if file.parent.name == "variables" or file.name == "saved_model.pb")
    return _Found(path, files, load, tuple(labels), len(labels), shape)


def _find_keras_file(path: Path) -> _Found:
    if other := other_format(path):
        raise RecipeError(f"Recipe(teacher=...): {path} is {other}")
    config, info = _architecture(path), read_data_info(path)
    classes = info.classes if info else None
    num_classes = len(classes) if classes is not None else _output_size(config)
    return _Found(
        path, [path], lambda: _keras_teacher(from_keras_file(path)), classes, num_classes, _input_shape(config)
    )


def _keras_teacher(model: keras.Model) -> _Predict:
    model.trainable = False
    return _Predict(
        lambda images: model(images, training=False),
        tuple(model.inputs[0].shape[1:]),
        model.outputs[0].shape[1],
        all(layer.supports_jit for layer in model._flatten_layers()),
    )


def _log(probabilities):
    return ops.where(
        probabilities < _SMALLEST_FLOAT32, LOG_ZERO, ops.log(ops.maximum(probabilities, _SMALLEST_FLOAT32))
    )


def _architecture(file: Path) -> dict[str, Any]:
    try:
        config, problem = read_architecture(file)
    except ValueError as error:
        raise RecipeError(f"Recipe(teacher=...): {file} cannot be loaded: {error}.") from error
    if problem:
        raise RecipeError(f"Recipe(teacher=...): {file} {problem}.")
    return config


def _input_shape(config: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the image shape of a serialized functional or Sequential model, or None."""
    shape = _end_layer(config, "input_layers", 0).get("batch_shape")
    if isinstance(shape, list) and len(shape) == 4 and None not in shape[1:]:
        return tuple(shape[1:])
    return None


def _output_size(config: dict[str, Any]) -> int | None:
    """Return the number of outputs of a serialized model that ends with a layer that has `units`, or None."""
    units = _end_layer(config, "output_layers", -1).get("units")
    return units if isinstance(units, int) else None


def _end_layer(config: dict[str, Any], ends: str, position: int) -> dict[str, Any]:
    """Return the fields of a serialized model's first or last layer: the one in `ends`, or at the position."""
    fields = config.get("config") or {}
    layers, name = fields.get("layers") or [], fields.get(ends)
    while isinstance(name, list) and name:
        name = name[0]  # [["dense", 0, 0]] or ["dense", 0, 0]
    found = [layer for layer in layers if layer.get("name") == name] if name else layers
    return (found[position].get("config") or {}) if found else {}


def _check_fits(found: _Found, splits: Splits) -> None:
    if found.classes is not None:
        _check_classes(found.path, found.classes, splits.classes)
    elif found.num_classes not in (None, len(splits.classes)):
        _raise_other_number_of_classes(found.path, found.num_classes, splits)
    if found.image_shape is not None:
        _check_image_shape(found.path, found.image_shape, splits)


def _check_classes(path: Path, classes: Sequence[str], wanted: Sequence[str]) -> None:
    pairs = enumerate(zip_longest(classes, wanted, fillvalue="none"))
    changed = next(((index, pair) for index, pair in pairs if pair[0] != pair[1]), None)
    if changed is not None:
        index, (teachers, students) = changed
        raise RecipeError(
            f"Recipe(teacher=...): {path} must have the classes of the data of the student, in the same order. First "
            f"difference: class {index} is {teachers} in the teacher, {students} in the data.\n"
            "  Use the data that the teacher was trained on, or another teacher."
        )


def _raise_other_number_of_classes(path: Path, classes: int | None, splits: Splits) -> None:
    raise RecipeError(
        f"Recipe(teacher=...): {path} has {classes} classes; the data of the student has {len(splits.classes)}."
    )


def _check_image_shape(path: Path, shape: Sequence[int], splits: Splits) -> None:
    if tuple(shape) != tuple(splits.train.image_shape):
        raise RecipeError(
            f"Recipe(teacher=...): {path} takes images of shape {tuple(shape)}; the data of the student has "
            f"{tuple(splits.train.image_shape)}. The teacher receives the images of the student: train it on images of "
            "this shape."
        )


@contextlib.contextmanager
def _kept_registrations() -> Iterator[None]:
    """Keep the layers that the student's recipe registered with Keras, if the teacher's has others of the same name."""
    registered = keras.saving.get_custom_objects()
    kept = dict(registered)
    try:
        yield
    finally:
        registered.update(kept)
