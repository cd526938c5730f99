"""Training of all members of a run as one JAX program, with exact resume after each epoch.

Member `i` has the seed `recipe.seed + i`, the batches and the augmentation that it has when trained alone. The state of
all members is one checkpoint; a member is finished when its `model.keras` exists, as in every run.
"""

import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_committee import metrics
from keras_committee.checkpoints import Checkpoint, Checkpoints, with_saved_dtype
from keras_committee.data.augment import PadCropFlip
from keras_committee.data.images import InMemoryImages
from keras_committee.data.resampling import class_weights
from keras_committee.data.splits import Splits
from keras_committee.errors import DivergedError, IncompleteError, RecipeError, RunError, pluralize
from keras_committee.evaluation.predictions import store_member_predictions
from keras_committee.layers.survival import stochastic_depth_blocks, survival_schedule
from keras_committee.models.building import (
    adapt_layers,
    adaptation_examples,
    build_member,
    layers_to_adapt,
    multiply_learning_rates,
)
from keras_committee.models.loading import save_member
from keras_committee.models.member_check import MemberCheck, registered_names
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown
from keras_committee.stacked.program import StackedProgram, StackedState
from keras_committee.training_run import (
    check_fit,
    data_info,
    finished_and_missing,
    load_training_data,
    record_start,
    translate_stop,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackedOptions:
    """How a stack is run. None of these options changes what a member learns, up to rounding.

    Args:
        mode: Mode of `StackedProgram`.
        checkpoint_seconds: Seconds between two checkpoints, which are written at the end of an epoch.
        max_members: Largest number of members in one program, for want of memory; None puts all into one.
        max_seconds: Time after which training stops at the end of an epoch, as if it were interrupted; None never stops
            it.
    """

    mode: str = "packed"
    checkpoint_seconds: float = 60.0
    max_members: int | None = None
    max_seconds: float | None = None


def train_stacked(
    run: Run,
    recipe: Recipe,
    *,
    members: Sequence[int] | None = None,
    options: StackedOptions | None = None,
    restart: bool = False,
    note: Callable[[str], None] = print,
) -> None:
    """Train every member of `recipe` that is not finished in `run`, several at once in one JAX program.

    The caller holds the lock of the run folder.

    Args:
        run: The run folder; it is afterwards as if the members had been trained one by one.
        recipe: What to train, built on Keras' JAX backend.
        members: Indices of the members to train; None trains all.
        options: How to run the stack.
        restart: Whether to discard the state of unfinished members first.
        note: Receives a line for the user after each epoch.

    Raises:
        RecipeError: If the recipe needs what a stack does not offer, or Keras does not run on JAX.
        DataError: If the data is invalid.
        RunError: If no checkpoint can be used, or the members were begun without a stack.
        DivergedError: If the loss of every member is no longer finite.
        IncompleteError: If that of some members is not; the others are finished.
        Interrupted: If training was interrupted; the state of the last epoch is saved.
    """
    options = options or StackedOptions()
    _check_supported(recipe)
    if restart:
        shutil.rmtree(run.stacked_state, ignore_errors=True)
    missing = _missing_members(run, recipe, members, restart)
    if not missing:
        return
    recipe, precision_line = run.begin_precision(recipe)
    if precision_line:
        note(precision_line)
    splits = load_training_data(recipe)
    _check_data(recipe, splits)
    fingerprint = record_start(run, recipe, splits, missing, workers=1)
    diverged: list[int] = []
    with GracefulShutdown(note) as shutdown, translate_stop(run, recipe, shutdown):
        while missing:
            group, checkpoint = _next_group(run.stacked_state, missing, options.max_members, note)
            diverged += _Stack(run, recipe, group, splits, fingerprint, options, shutdown, note).train(checkpoint)
            missing = [index for index in missing if index not in group]
    _raise_diverged(run, recipe, diverged)
    run.append_event("training_finished")


class _Stack:
    """The training of one group of members, in the order of its methods."""

    def __init__(self, run, recipe, group, splits, fingerprint, options, shutdown, note):
        self._run, self._recipe, self._group, self._splits = run, recipe, group, splits
        self._data_fingerprint, self._options, self._shutdown, self._note = fingerprint, options, shutdown, note
        if splits.resampling is not None:  # with other members, the same ones would see other images
            self._data_fingerprint = f"{fingerprint} {splits.resampling}"
        self._member_splits = [splits.for_member(index) for index in group]
        self._checkpoints = Checkpoints(run.stacked_state)
        self._models, self._program = build_program(recipe, group, splits, options.mode)
        self._blocks = stochastic_depth_blocks(self._models[0])
        self._factors = _rate_factors(recipe, group)
        self._state = self._program.initial_state()
        self._histories: list[list[dict[str, Any]]] = [[] for _ in group]
        self._last_save = time.monotonic()
        self._deadline = self._last_save + (math.inf if options.max_seconds is None else options.max_seconds)

    def train(self, checkpoint: Checkpoint | None) -> list[int]:
        """Train the group to its end, from a checkpoint if there is one; return the members that diverged."""
        self._resume(checkpoint)
        self._note(f"compiling the program of {pluralize(len(self._group), 'member')}")
        images, labels = jnp.asarray(self._splits.train.images.numpy()), jnp.asarray(self._splits.train.labels)
        while self._epoch < self._recipe.epochs:
            with self._shutdown.mask_signals():
                self._train_epoch(images, labels)
                if time.monotonic() > self._deadline:
                    self._shutdown.requested = self._shutdown.requested or signal.SIGTERM
                stopping = self._shutdown.requested is not None
                if stopping or time.monotonic() - self._last_save > self._options.checkpoint_seconds:
                    self._save()
                self._shutdown.check()
        with self._shutdown.mask_signals():
            diverged = self._finish()
            self._shutdown.check()
        return diverged

    @property
    def _epoch(self) -> int:
        return len(self._histories[0])

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        for index in self._group:
            name = "member_started" if checkpoint is None else "member_resumed"
            self._run.append_event(name, member=index, seed=self._recipe.seed + index)
        if checkpoint is None:
            self._save()
            return
        if checkpoint.document["data"] != self._data_fingerprint:
            raise RunError(
                f"the training data of {self._recipe.data.name} changed since the members began.\n"
                "  Their state was not changed. Restore the data, or train from the start: --restart."
            )
        self._restore(checkpoint)
        self._note(f"resuming {pluralize(len(self._group), 'member')} at epoch {self._epoch + 1}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.document["members"]
        positions = [saved.index(index) for index in self._group]
        leaves, structure = jax.tree.flatten(self._state)
        arrays = [checkpoint.arrays[f"{number:05d}"] for number in range(len(leaves))]
        if any(array.shape[1:] != leaf.shape[1:] for array, leaf in zip(arrays, leaves, strict=True)):
            raise RunError(
                f"the saved state in {self._run.stacked_state} belongs to another network or optimizer. "
                "Resume with the recipe that wrote it, or train from the start: --restart."
            )
        restored = [
            jnp.asarray(with_saved_dtype(array, leaf.dtype)[positions])
            for array, leaf in zip(arrays, leaves, strict=True)
        ]
        self._state: StackedState = jax.tree.unflatten(structure, restored)
        self._histories = [checkpoint.document["histories"][position] for position in positions]

    def _train_epoch(self, images: jax.Array, labels: jax.Array) -> None:
        steps, started = self._splits.steps_per_epoch, time.monotonic()
        self._set_survival()
        runs_before = self._program.values_of(self._state, [block.run_count for block in self._blocks])
        batches = [
            member.batch_indices(self._recipe.seed + index, self._epoch * steps, steps)
            for index, member in zip(self._group, self._member_splits, strict=True)
        ]
        indices, draws = (np.stack(arrays) for arrays in zip(*batches, strict=True))
        self._state, losses, num_correct, gradients = self._program.train_epoch(
            self._state, images, labels, indices, draws, self._factors
        )
        seconds = time.monotonic() - started
        runs = self._program.values_of(self._state, [block.run_count for block in self._blocks]) - runs_before
        log_probs = self._program.log_probabilities(self._state, self._splits.validation.images.numpy())
        is_finite = self._program.is_finite(self._state) & np.isfinite(log_probs).all(axis=(1, 2))
        rates = self._factors * self._program.learning_rate((self._epoch + 1) * steps)
        for position, history in enumerate(self._histories):
            history.append(
                self._history_row(
                    len(history) + 1, losses[position], num_correct[position], rates[position], seconds,
                    runs[position] / steps, gradients[position], log_probs[position], is_finite[position],
                )
            )  # fmt: skip
        self._write_logs(log_probs)
        self._note(self._log_line(seconds))

    def _history_row(
        self, epoch, losses, num_correct, rate, seconds, run_fractions, gradients, log_probs, is_finite
    ) -> dict[str, Any]:
        """Return the epoch's row of one member, with the keys of every run; the loss of a diverged one is None."""
        steps, batch_size = len(losses), self._splits.batch_size
        loss = float(np.mean(losses))
        row = {
            "epoch": epoch,
            "step": epoch * steps,
            "learning_rate": float(rate),
            "loss": loss if is_finite and math.isfinite(loss) else None,
            "accuracy": int(num_correct.sum()) / (steps * batch_size),
            "images_per_second": steps * batch_size / seconds,
        }
        if len(run_fractions):
            row["realised_depth"] = float(run_fractions.sum())
        if len(gradients):
            row["mean_abs_gradients"] = [float(value) for value in gradients]
        if loss_is_finite(row):
            scores = metrics.classification_metrics(np.exp(log_probs), self._splits.validation.labels)
            row |= {f"validation_{name}": value for name, value in scores.items()}
        return row

    def _write_logs(self, log_probs: np.ndarray) -> None:
        for index, history, predictions in zip(self._group, self._histories, log_probs, strict=True):
            self._run.member(index).write_history(history)
            if loss_is_finite(history[-1]):
                self._run.member(index).write_epoch_predictions(history[-1]["epoch"], predictions)

    def _log_line(self, seconds: float) -> str:
        rows = [history[-1] for history in self._histories]
        good = [row for row in rows if loss_is_finite(row)]
        images = len(rows) * self._splits.steps_per_epoch * self._splits.batch_size
        text = f"epoch {self._epoch}/{self._recipe.epochs}"
        if good:
            accuracies = [row["validation_accuracy"] for row in good]
            text += f"  loss {np.mean([row['loss'] for row in good]):.4f}  validation {np.mean(accuracies):.4f}"
            text += f" (members {min(accuracies):.4f} to {max(accuracies):.4f})"
        return f"{text}  {images / seconds:,.0f} images/s"

    def _set_survival(self) -> None:
        if self._recipe.survival is None or not self._blocks:
            return
        probabilities = survival_schedule(len(self._blocks), self._recipe.survival(self._epoch))
        variables = [block._survival for block in self._blocks]
        self._state = self._program.set_variable(self._state, variables, probabilities)

    def _save(self) -> None:
        arrays = {f"{number:05d}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(self._state))}
        document = {"members": self._group, "histories": self._histories, "data": self._data_fingerprint}
        self._checkpoints.save(self._epoch * self._splits.steps_per_epoch, arrays, document)
        self._last_save = time.monotonic()

    def _finish(self) -> list[int]:
        """Write the models of the members, then remove their common state; return the diverged members."""
        self._save()
        splits = {"validation": self._splits.validation, "test": self._splits.test}
        predictions = [
            (name, split.fingerprint(), self._program.log_probabilities(self._state, split.images.numpy()))
            for name, split in splits.items()
            if len(split) and isinstance(split.images, InMemoryImages)
        ]
        diverged = []
        for position, (index, model) in enumerate(zip(self._group, self._models, strict=True)):
            if not all(map(loss_is_finite, self._histories[position])):
                diverged.append(index)
                self._run.append_event("member_failed", member=index, error="its loss is not finite")
                continue
            self._program.assign_member(self._state, position, model)
            member_dir = self._run.member(index)
            with member_dir.lock():
                member_dir.write_history(self._histories[position])
                save_member(model, member_dir.model, data_info(self._splits))
            self._run.append_event("member_finished", member=index)
            for name, data_fingerprint, log_probs in predictions:
                store_member_predictions(self._run, index, name, data_fingerprint, log_probs[position])
        self._checkpoints.discard()
        return diverged


def loss_is_finite(row: dict[str, Any]) -> bool:
    """Return whether the member was still sound in this epoch of its history."""
    return row["loss"] is not None


def _check_supported(recipe: Recipe) -> None:
    if keras.backend.backend() != "jax":
        raise RecipeError(
            "--stacked needs Keras' JAX backend. Set KERAS_BACKEND=jax before Keras is imported. "
            f"Received: {keras.backend.backend()}"
        )
    unsupported = {
        "batch_augment": recipe.batch_augment is not None,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps != 1,
        "snapshots": recipe.snapshots != 1,
        "swa_epoch_start": recipe.swa_epoch_start is not None,
        "restore_best": recipe.restore_best is not None,
        "initial_weights": recipe.initial_weights is not None,
        "trainable_layers": recipe.trainable_layers is not None,
        "teacher": recipe.teacher is not None,
        "precision": recipe.precision == "mixed_float16",
    }
    if fields := [field for field, is_used in unsupported.items() if is_used]:
        raise RecipeError(
            f"--stacked does not support Recipe({fields[0]}={getattr(recipe, fields[0])!r}). "
            "Leave the field out, or train without --stacked."
        )


def _check_data(recipe: Recipe, splits: Splits) -> None:
    name = recipe.data.name
    parts = {"training": splits.train, "validation": splits.validation}
    for part, split in parts.items():
        if not isinstance(split.images, InMemoryImages):
            raise RecipeError(
                f"--stacked needs the images in memory; the {part} images of {name} are decoded from files in every "
                "epoch. Raise its `memory_limit`, or train without --stacked."
            )
    if not (splits.augment is None or isinstance(splits.augment, PadCropFlip)):
        raise RecipeError(
            "--stacked supports data.pad_crop_flip() and no augmentation. "
            f"Received: {type(splits.augment).__name__}. Change `augment`, or train without --stacked."
        )


def _missing_members(run: Run, recipe: Recipe, members: Sequence[int] | None, restart: bool) -> list[int]:
    _, missing = finished_and_missing(run, recipe, members)
    begun = [index for index in missing if Checkpoints(run.member(index).state).steps()]
    if restart:
        for index in begun:
            shutil.rmtree(run.member(index).state, ignore_errors=True)
    elif begun:
        raise RunError(
            f"member {begun[0]} of {run.path} was begun without --stacked. Its state is kept. To resume, leave out "
            "--stacked; to train it from the start, add --restart."
        )
    return missing


def _next_group(
    state_dir: Path, missing: list[int], max_members: int | None, note: Callable[[str], None]
) -> tuple[list[int], Checkpoint | None]:
    """Return the members to train next, and their state: those of the saved state, or as many as a program may hold."""
    checkpoints = Checkpoints(state_dir)
    checkpoint, problems = checkpoints.load_newest()
    for problem in problems:
        note(f"warning: {problem}")
    if checkpoint is not None:
        begun = [index for index in checkpoint.document["members"] if index in missing]
        if begun:
            return begun, checkpoint
        checkpoints.discard()  # of members that are finished
    return missing[:max_members], None


def build_program(
    recipe: Recipe, members: Sequence[int], splits: Splits, mode: str = "packed"
) -> tuple[list[keras.Model], StackedProgram]:
    """Return the untrained members, each built under its seed, and the program that trains them.

    Raises:
        RecipeError: If a member does not fit the data, or the members differ in their layers.
    """
    models, check = [], MemberCheck()
    for index in members:
        registered = registered_names()
        keras.utils.set_random_seed(recipe.seed + index)
        models.append(build_member(recipe, index))
        check_fit(models[-1], splits, index)
        check(models[-1], index, registered)
    _adapt_layers(models, [splits.for_member(index) for index in members])
    steps = recipe.epochs * splits.steps_per_epoch
    try:
        program = StackedProgram(
            models,
            recipe.optimizer(steps),
            recipe.loss,
            splits.augment if isinstance(splits.augment, PadCropFlip) else None,  # `_check_data` refuses others
            mode=mode,
            label_smoothing=recipe.label_smoothing,
            global_clipnorm=recipe.global_clipnorm,
            ema_momentum=recipe.ema_momentum,
            lookahead=recipe.lookahead,
            steps=steps,
            class_weights=class_weights(recipe.class_weight, splits.train.labels, splits.classes),
        )
    except ValueError as error:
        raise RecipeError(
            f"--stacked needs members of one architecture. {error}\n  Train members of one architecture with "
            "--members, or all of them without --stacked."
        ) from error
    multiply_learning_rates(recipe, program.optimizer, models[0])
    return models, program


def _adapt_layers(models, member_splits):
    """Adapt the layers of each member to the training images that it sees: where all see the same, only once."""
    if not layers_to_adapt(models[0]):
        return
    for model, splits in zip(models, member_splits, strict=True):
        if splits.resampling is None and model is not models[0]:
            for target, source in zip(layers_to_adapt(model), layers_to_adapt(models[0]), strict=True):
                target.set_weights(source.get_weights())
            continue
        rows = splits.training_rows
        adapt_layers(model, splits.train.images.numpy()[rows[adaptation_examples(len(rows), splits.train.image_shape)]])


def _rate_factors(recipe: Recipe, group: Sequence[int]) -> np.ndarray:
    scale = recipe.learning_rate_scale
    return np.array([1.0 if scale is None else scale(index) for index in group], np.float32)


def _raise_diverged(run: Run, recipe: Recipe, diverged: list[int]) -> None:
    if not diverged:
        return
    run.append_event("training_failed", members=diverged)
    finished = run.finished_members()
    listing = ", ".join(map(str, diverged))
    message = (
        f"the loss of member {listing} is no longer finite; {len(finished)} of {recipe.members} members are finished "
        f"in {run.path}.\n  Try a smaller learning rate, a longer warm-up or global_clipnorm, in a new run folder, or "
        "train these members without --stacked, which returns to the last good state."
    )
    raise IncompleteError(message) if finished else DivergedError(message)
