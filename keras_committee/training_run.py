"""What every way to train a run has in common: the members to train, their data, the journal, and being stopped."""

import contextlib
import dataclasses
import logging
from collections.abc import Collection, Iterator, Sequence

import keras

from keras_committee.data import Splits, validation
from keras_committee.data.resampling import Resampling, class_weights
from keras_committee.errors import RecipeError, RunError, pluralize
from keras_committee.member_dir import DataInfo
from keras_committee.models.outputs import classify_outputs, noise_images
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown, TrainingStopped, preserve_stop


def finished_and_missing(run: Run, recipe: Recipe, members: Sequence[int] | None) -> tuple[list[int], list[int]]:
    """Return the indices of the requested members that are finished, and of those to train.

    Args:
        run: The run folder.
        recipe: Its recipe.
        members: Indices of the requested members; None requests all.

    Raises:
        RecipeError: If the recipe has no such member.
    """
    requested = range(recipe.members) if members is None else sorted(set(members))
    unknown = [index for index in requested if not 0 <= index < recipe.members]
    if unknown:
        reason = "--smoke trains no more" if run.smoke else "to train more, set its `members`"
        raise RecipeError(
            f"there is no member {unknown[0]}: the recipe has members 0 to {recipe.members - 1}; {reason}."
        )
    finished = set(run.finished_members()) & set(requested)
    return sorted(finished), [index for index in requested if index not in finished]


def check_chains(run: Run, recipe: Recipe, missing: Sequence[int], *, restart: bool = False) -> None:
    """Check that the members to train have the members they start from, and that none has started from them already.

    Args:
        run: The run folder.
        recipe: Its recipe, with its chains of `snapshots`.
        missing: Indices of the members to train.
        restart: Whether the state of these members is discarded first.

    Raises:
        RecipeError: If a member starts from one that is neither finished nor trained now.
        RunError: If a member would be trained again from whose weights another one started.
    """
    finished = run.finished_members()
    for index in missing:
        predecessor, successor = recipe.predecessor(index), index + 1
        if predecessor is not None and predecessor not in (*finished, *missing):
            raise RecipeError(
                f"member {index} starts from the weights of member {predecessor}, which is not trained.\n"
                f"  Train whole chains: add {predecessor} to --members."
            )
        if successor == recipe.members or recipe.predecessor(successor) != index:
            continue
        is_begun = run.member(successor).state.exists() and not (restart and successor in missing)
        if successor in finished or is_begun:
            raise RunError(
                f"member {index} is not trained in {run.path}, but member {successor}, which started from its weights, "
                f"is {'finished' if successor in finished else 'begun'}. No member was changed.\n"
                f"  Restore {run.member(index).model}; or delete {run.member(successor).path}, and the members behind "
                "it in its chain, to train them again."
            )


def startable_members(recipe: Recipe, finished: Collection[int], pending: Sequence[int]) -> list[int]:
    """Return the pending members that can be trained now: with `snapshots`, each follows the one it starts from."""
    return [index for index in pending if recipe.predecessor(index) in (None, *finished)]


def num_parallel(recipe: Recipe, members: Sequence[int]) -> int:
    """Return how many of the members can be trained at once: one of each chain of `snapshots`."""
    return len({index // recipe.snapshots for index in members})


def load_training_data(recipe: Recipe) -> Splits:
    """Load the data of a recipe, and warn of images that are in two splits.

    Raises:
        DataError: If the data is invalid.
        RecipeError: If there is no validation split, or `class_weight` has an unknown class.
    """
    splits = load_splits(recipe)
    if not len(splits.validation):
        raise RecipeError(
            f"{recipe.data.name} has no validation split. Set its `validation` to a number of examples or a fraction."
        )
    class_weights(recipe.class_weight, splits.train.labels, splits.classes)  # raises for an unknown class
    if duplicates_text := validation.duplicates_warning(splits):
        logging.getLogger(__name__).warning("%s: %s", recipe.data.name, duplicates_text)
    return splits


def load_splits(recipe: Recipe) -> Splits:
    """Load the data of a recipe for training: with the examples that each member sees.

    Raises:
        DataError: If the data is invalid.
    """
    return with_sampling(recipe, recipe.data.load())


def with_sampling(recipe: Recipe, splits: Splits) -> Splits:
    """Return splits of which each member of a recipe sees the training examples, and as often, as it defines."""
    resampling = None
    if recipe.resample is not None:
        resampling = Resampling(method=recipe.resample, members=recipe.members, seed=recipe.seed)
    return dataclasses.replace(splits, resampling=resampling, is_balanced=recipe.sampling == "balanced")


def record_start(run: Run, recipe: Recipe, splits: Splits, missing: Sequence[int], workers: int) -> str:
    """Append the start of a training to the journal, and return the fingerprint of the training images.

    Args:
        run: The run folder.
        recipe: Its recipe, with the precision in which it trains.
        splits: The data.
        missing: Indices of the members to train.
        workers: Number of processes that train members.

    Raises:
        RecipeError: If the classes differ from those that the members of the run were trained on.
        RunError: If the data were moved, and the images differ.
        ResourceError: If the journal cannot be written.
    """
    fingerprint = run.require_data(splits)
    run.append_event(
        "training_started",
        members=missing,
        kept=run.finished_members(),
        workers=workers,
        smoke=run.smoke,
        precision=recipe.precision,
        restore_best=recipe.restore_best,
        data=fingerprint,
        **({} if splits.resampling is None else {"resampling": dataclasses.asdict(splits.resampling)}),
        **dataclasses.asdict(data_info(splits)),
    )
    return fingerprint


def data_info(splits: Splits) -> DataInfo:
    """Return the description of the data that goes into the files of the members trained on them."""
    return DataInfo(classes=splits.classes, transform=dataclasses.asdict(splits.train.transform))


def check_fit(model: keras.Model, splits: Splits, index: int) -> None:
    """Raise RecipeError unless `model` is trainable and maps the images of `splits` to one logit per class."""
    name, image_shape, num_classes = f"member {index} ({model.name})", splits.train.image_shape, len(splits.classes)
    input_shape, output_shape = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    if input_shape != tuple(image_shape):
        raise RecipeError(f"{name} takes images of shape {input_shape}; the data has {tuple(image_shape)}.")
    if not model.trainable_variables:
        raise RecipeError(f"{name} has no trainable weights. To use it without training, run: keras-committee import")
    if output_shape != (num_classes,):
        raise RecipeError(
            f"{name} has outputs of shape {output_shape}; the data has {num_classes} classes.\n"
            "  A member must return one logit per class: pass a matching `classes` to its builder."
        )
    outputs = classify_outputs(model, noise_images(image_shape))
    if outputs.kind != "logits":
        raise RecipeError(
            f"{name} {outputs.description}. A member must return logits: remove the activation of its last layer."
        )


@contextlib.contextmanager
def translate_stop(run: Run, recipe: Recipe, shutdown: GracefulShutdown) -> Iterator[None]:
    """Raise `Interrupted` in place of `TrainingStopped`, and append the stop to the journal."""
    try:
        with preserve_stop():
            yield
    except TrainingStopped:
        run.append_event("training_stopped", signal=shutdown.requested.name if shutdown.requested else None)
        text = f"{progress(run, recipe)} finished, the others saved"
        raise shutdown.as_error(text, f"To resume, run: {run.environment()['command']}") from None


def progress(run: Run, recipe: Recipe) -> str:
    """Return `"2 of 3 members"`, the finished ones."""
    return f"{len(run.finished_members())} of {pluralize(recipe.members, 'member')}"
