"""How is one member trained, and how does it go on after whatever stopped it?

1. The member is built under its own seed, `recipe.seed + index`; the state of its newest whole checkpoint is put on it.
2. Step `s` takes the batch at position `s` of the member's stream: a pure function of (seed, position). So a member
   goes on at the very step of the checkpoint, and ends as one that was never stopped.
3. After each epoch the member predicts the validation split once; that is all that is logged from it.
4. A checkpoint is written before the first step, after each epoch, every `save_seconds` and when training is asked to
   stop; never one with a weight that is not a finite number.
5. `model.keras` is renamed into place as the last act but for the removal of the checkpoints: where it stands, the
   member is finished.
"""

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_committee import metrics
from keras_committee.data import Splits
from keras_committee.errors import DivergedError, RecipeError, RunError, VerificationError
from keras_committee.layers import set_survival
from keras_committee.member_dir import MemberDir
from keras_committee.models.loading import load_member
from keras_committee.models.precision import dtype_policy_scope
from keras_committee.models.predict import Predictor
from keras_committee.recipe import Recipe
from keras_committee.training.checkpoint import BestEpoch, Checkpoints, MemberState
from keras_committee.training.devices import distribute
from keras_committee.training.ema import WeightEMA
from keras_committee.training.freezing import LayerFreezer
from keras_committee.training.multihost import SingleHost
from keras_committee.training.reporting import Reporter, TrainingOptions
from keras_committee.training.signals import GracefulShutdown, TrainingStopped
from keras_committee.training.tensorboard import MemberLog, StepProfiler
from keras_committee.training.train_step import BlockStats, make_train_step

# A rollback asks for other batches than those that led astray; members' own seeds lie close together.
_ROLLBACK_SEED_STRIDE = 1_000_000_007


class NonFiniteError(Exception):
    """The loss or a weight is no longer a finite number."""


def train_member(
    recipe: Recipe,
    index: int,
    splits: Splits,
    member_dir: MemberDir,
    strategy: tf.distribute.Strategy,
    reporter: Reporter,
    shutdown: GracefulShutdown,
    options: TrainingOptions,
    host_group: SingleHost | None = None,
) -> None:
    """Train member `index`, or go on with it, and leave `model.keras`, its history and its votes in `member_dir`.

    `host_group`: the hosts that train it together; each calls this, and the chief alone writes.

    Raises:
        RecipeError: If the model does not fit the data.
        RunError: If there are checkpoints that cannot be used.
        ResourceError: If a checkpoint cannot be written.
        DivergedError: If the loss or a weight is no longer finite, after `rollbacks` returns to the last checkpoint.
        Stopped: If `shutdown` was requested; the state up to then is saved.
    """
    trainer = _Trainer(
        recipe, index, splits, member_dir, strategy, reporter, shutdown, options, host_group or SingleHost()
    )
    trainer.resume()
    with StepProfiler(member_dir.tensorboard, options.profile_steps, reporter.note) as profile:
        while not trainer.is_done:
            try:
                trainer.train_epoch(profile)
                trainer.validate()
            except NonFiniteError as error:
                trainer.roll_back(str(error))
            except TrainingStopped:
                trainer.save_if_stepped()
                raise
    trainer.finish()


class _Trainer:
    """One member at work."""

    def __init__(self, recipe, index, splits, member_dir, strategy, reporter, shutdown, options, host_group):
        self._recipe, self._index, self._splits, self._member_dir = recipe, index, splits, member_dir
        self._strategy, self._reporter, self._shutdown, self._options = strategy, reporter, shutdown, options
        self._host_group = host_group
        self._state = state = build_member(recipe, index, splits, strategy)
        self._block_stats = BlockStats(state.model)
        self._epoch_steps = EpochSteps(recipe, state, strategy, self._block_stats)
        self._predictor = Predictor(state.model)
        self._checkpoints = Checkpoints(member_dir.state, read_only=not host_group.is_chief)
        self._log = MemberLog(member_dir, reporter.note)
        self._data_fingerprint = splits.train.fingerprint()
        self._last_save, self._num_rollbacks = (-1, time.monotonic()), 0

    @property
    def is_done(self) -> bool:
        return self._state.stopped_early or len(self._state.history) == self._recipe.epochs

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, or make the first one."""
        state = self._state
        checkpoint, problems = self._checkpoints.load_newest()
        for problem in problems:
            self._reporter.event(self._index, "damaged", problem)
        if checkpoint is None:
            state.begin_epoch(self._block_stats.run_counts())
            self.save("start")
            self._log.on_train_begin(state.model)
            return
        replicas_note = self._check_compatible(checkpoint.document)
        state.restore(checkpoint)
        self._last_save = (checkpoint.step, time.monotonic())
        self._reporter.on_resume(self._index, checkpoint.step)
        epoch, step = divmod(checkpoint.step, self._splits.steps_per_epoch)
        text = f"resuming member {self._index} at epoch {epoch + 1} step {step}{replicas_note}"
        self._reporter.event(self._index, "member_resumed", text, step=checkpoint.step)

    def train_epoch(self, profile: StepProfiler) -> None:
        """The steps that the unfinished epoch still lacks."""
        state, steps_per_epoch = self._state, self._splits.steps_per_epoch
        epoch = len(state.history)
        self._host_group.assert_in_sync(state.step, self._data_fingerprint, state.model)
        take_step = self._epoch_steps.begin_epoch(epoch)
        seed = self._recipe.seed + self._index + _ROLLBACK_SEED_STRIDE * state.rollbacks
        stream = partial(
            self._splits.stream,
            seed,
            state.step,
            (epoch + 1) * steps_per_epoch - state.step,
            batch_augment=self._recipe.batch_augment,
        )
        batches, last_step_end = iter(distribute(stream, self._strategy)), None
        while state.step < (epoch + 1) * steps_per_epoch:
            with self._shutdown.mask_signals(enabled=state.step != self._last_save[0]), profile.step():
                results = take_step(*next(batches))
                self._record_step(results)
            if last_step_end is not None:  # a first step traces the graph
                state.timed_steps = (state.timed_steps[0] + 1, state.timed_steps[1] + time.monotonic() - last_step_end)
            with self._shutdown.mask_signals(), self._host_group.in_sync(self._shutdown, NonFiniteError):
                self._after_step()
            last_step_end = time.monotonic()

    def _record_step(self, results) -> None:
        loss, num_correct, gradients = (result.numpy() for result in results)
        state = self._state
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {state.step + 1} (loss={loss})")
        state.losses.append(float(loss))
        state.num_correct.append(int(num_correct))
        state.gradients.append(gradients)
        state.step += 1  # last: only now is there anything to save

    def _after_step(self) -> None:
        self._reporter.on_steps_end(self._index)
        self._shutdown.check()
        if time.monotonic() - self._last_save[1] > self._options.checkpoint_seconds:
            self.save("interval")

    def validate(self) -> None:
        """The chief judges the epoch, and all hosts do what follows from it."""
        with self._host_group.in_sync(self._shutdown, NonFiniteError):
            if self._host_group.is_chief:
                self._validate()
            else:
                self._state.history.append({})  # the chief has the row
                self._state.begin_epoch(self._block_stats.run_counts())
        self._state.stopped_early = self._host_group.broadcast(self._state.stopped_early)

    def _validate(self) -> None:
        """Predict the validation split, log the epoch and save."""
        state, batch_size = self._state, self._splits.batch_size
        with self._shutdown.mask_signals():
            batches = self._shutdown.check_each(self._splits.validation.batches(batch_size))
            with _swap_in_ema(state.ema):
                log_probs = self._predictor(batches)
                weights = state.weights() if self._recipe.restore_best else None
            if not np.isfinite(log_probs).all():
                raise NonFiniteError(f"step {state.step} (validation logits are not finite)")
            row, block_values = self._history_row(log_probs)
            state.history.append(row)
            self._update_best(row, weights)
            state.begin_epoch(self._block_stats.run_counts())
            self.save("epoch")
            self._log.on_epoch_end(state.history, log_probs, block_values)
            self._reporter.on_epoch_end(self._index, row)
            self._shutdown.check()

    def _history_row(self, log_probs) -> tuple[dict, dict]:
        """The row of the history that an epoch gave, and figures `(blocks,)` of each residual block."""
        state, steps = self._state, len(self._state.losses)
        row = {
            "epoch": len(state.history) + 1,
            "step": state.step,
            "learning_rate": float(keras.ops.convert_to_numpy(state.optimizer.learning_rate)),
            "loss": float(np.mean(state.losses)),
            "accuracy": sum(state.num_correct) / (steps * self._splits.batch_size),
            "images_per_second": state.timed_steps[0] * self._splits.batch_size / max(state.timed_steps[1], 1e-9),
        }
        block_values = {
            "gradient": np.mean(state.gradients, axis=0, dtype=np.float64),
            "open": (self._block_stats.run_counts() - state.block_run_counts) / steps,
        }
        if len(block_values["open"]):
            row["realised_depth"] = float(block_values["open"].sum())
        validation = metrics.classification_metrics(np.exp(log_probs), self._splits.validation.labels)
        return row | {f"validation_{name}": value for name, value in validation.items()}, block_values

    def _update_best(self, row: dict, weights: dict | None) -> None:
        """Keep the weights of the best epoch, and stop where there has been none for long."""
        state, recipe = self._state, self._recipe
        if recipe.restore_best is None or weights is None:
            return
        score = row[f"validation_{recipe.restore_best}"] * (1 if recipe.restore_best == "accuracy" else -1)
        if state.best is None or score > state.best.score:
            name = self._checkpoints.save_named(f"best-{row['epoch']:06d}", weights)
            state.best = BestEpoch(row["epoch"], score, name)
        state.stopped_early = recipe.patience is not None and row["epoch"] - state.best.epoch >= recipe.patience

    def save_if_stepped(self) -> None:
        """Save, unless no step was counted since the last time: a signal may have come in the middle of that step."""
        if self._state.step != self._last_save[0]:
            self.save("stop")

    def save(self, reason: str) -> None:
        """Write a checkpoint, unless a weight is not finite: the last one is the last good one then.

        Raises:
            ResourceError: If it cannot be written.
            RunError: If the member was given to another process.
        """
        self._shutdown.check_before_saving()
        state, started = self._state, time.monotonic()
        if not self._host_group.is_chief:
            return
        if not state.is_finite():
            raise NonFiniteError(f"step {state.step} (a weight is not finite)")
        document = state.document() | {"replicas": self._strategy.num_replicas_in_sync, "data": self._data_fingerprint}
        self._checkpoints.save(
            state.step, state.arrays(), document, requires=state.best.weights_name if state.best else None
        )
        self._last_save = (state.step, time.monotonic())
        seconds = time.monotonic() - started
        if reason in ("stop", "interval"):
            text = f"saved member {self._index} at step {state.step} in {seconds:.1f} s"
            self._reporter.event(self._index, "member_saved", text, step=state.step, seconds=round(seconds, 3))

    def _check_compatible(self, document: dict) -> str:
        """What the user must know of a checkpoint before it is put on; raises RunError where it would be wrong."""
        if document["data"] != self._data_fingerprint:
            raise RunError(
                f"the training data of {self._recipe.data.name} are not those that member {self._index} began with.\n"
                f"  Its state in {self._member_dir.state} was left as it is. Bring the data back, or train this member "
                "again: --restart."
            )
        replicas = self._strategy.num_replicas_in_sync
        if document["replicas"] == replicas:
            return ""
        return f"; {document['replicas']} -> {replicas} replicas: continues, not bit-identical"

    def roll_back(self, where: str) -> None:
        """Go back to the last checkpoint and on with other batches; give up after `rollbacks` times."""
        checkpoint, _ = self._checkpoints.load_newest()
        if self._num_rollbacks == self._options.max_rollbacks or checkpoint is None:
            raise DivergedError(
                f"member {self._index} diverged at {where}, after {self._num_rollbacks} returns to its last good state.\n"
                f"  Its last good checkpoint, step {checkpoint.step if checkpoint else 0}, is kept in "
                f"{self._member_dir.state}; other members are untouched.\n"
                "  Try a smaller learning rate, a longer warm-up or clip_norm, in a new run folder."
            )
        self._num_rollbacks += 1
        self._state.restore(checkpoint)
        self._state.rollbacks += self._num_rollbacks
        text = f"member {self._index} diverged at {where}; back to step {checkpoint.step}, on with other batches"
        self._reporter.event(self._index, "rolled_back", text, step=checkpoint.step)

    def finish(self) -> None:
        """Leave the model: of the best epoch where one was asked for, else averaged where there are averages."""
        state = self._state
        self._epoch_steps.unfreeze()
        if not self._host_group.is_chief:
            return
        if state.best:
            state.set_weights(self._checkpoints.load_named(state.best.weights_name))
        elif state.ema:
            state.ema.copy_to_weights()
        self._shutdown.check_before_saving()
        self._log.write_history(state.history)
        self._log.save_model(state.model)
        self._checkpoints.discard()


def _swap_in_ema(ema: WeightEMA | None):
    return ema.swapped_in() if ema else contextlib.nullcontext()


def build_member(recipe: Recipe, index: int, splits: Splits, strategy: tf.distribute.Strategy) -> MemberState:
    """The untrained member, its optimizer and its moving averages, built under `recipe.seed + index`.

    Raises:
        RecipeError: If the model does not fit the data, or the initial weights do not fit the model.
    """
    keras.utils.set_random_seed(recipe.seed + index)
    with strategy.scope():
        with dtype_policy_scope(recipe.precision):
            model = recipe.member(index)
        check_fit(model, splits, index)
        copy_weights(recipe.initial_weights, model, index)
        optimizer = recipe.optimizer(recipe.epochs * splits.steps_per_epoch)
        if recipe.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
    ema = WeightEMA(model, recipe.ema_momentum, strategy) if recipe.ema_momentum is not None else None
    return MemberState(model, optimizer, ema)


def check_fit(model: keras.Model, splits: Splits, index: int) -> None:
    """Raise a RecipeError unless `model` takes the images of `splits` gives one logit for each of its classes, and can
    be trained."""
    input_shape, output_shape = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    image_shape, expected_output_shape = tuple(splits.train.image_shape), (len(splits.classes),)
    if input_shape != image_shape:
        raise RecipeError(
            f"member {index} ({model.name}) takes images of shape {input_shape}; the data has {image_shape}."
        )
    if _ends_with_softmax(model):
        raise RecipeError(
            f"member {index} ({model.name}) ends with a softmax. A member returns logits: leave the activation of its "
            "last layer out."
        )
    if not model.trainable_variables:
        raise RecipeError(
            f"member {index} ({model.name}) has no weight to train. `keras-committee import` takes it as it is."
        )
    if output_shape != expected_output_shape:
        raise RecipeError(
            f"member {index} ({model.name}) has outputs of shape {output_shape}; the data has {expected_output_shape[0]} classes.\n"
            "  A member returns one logit for each class: give its builder `classes` to match the data."
        )


def _ends_with_softmax(model: keras.Model) -> bool:
    last_operation = model.outputs[0]._keras_history.operation
    return (
        isinstance(last_operation, keras.layers.Softmax)
        or getattr(last_operation, "activation", None) is keras.activations.softmax
    )


class EpochSteps:
    """The training step of each epoch: traced again only where other layers train than in the epoch before.

    Raises:
        RecipeError: If `recipe.trains` names layers that the member does not have.
    """

    def __init__(self, recipe: Recipe, state: MemberState, strategy: tf.distribute.Strategy, block_stats: BlockStats):
        self._recipe, self._state, self._strategy, self._block_stats = recipe, state, strategy, block_stats
        self._freezer = LayerFreezer(state.model, recipe.trainable_layers, recipe.epochs)
        self._step: Callable | None = None
        self._trainable_patterns: tuple[str, ...] = ()

    def begin_epoch(self, epoch: int) -> Callable:
        """The step for this epoch, once its survival is set and its layers are frozen."""
        if self._recipe.survival is not None:
            set_survival(self._state.model, self._recipe.survival(epoch))
        trainable_patterns = self._freezer.begin_epoch(epoch)
        if self._step is None or trainable_patterns != self._trainable_patterns:
            self._step, self._trainable_patterns = self._make_step(), trainable_patterns
        return self._step

    def unfreeze(self) -> None:
        """Nothing is frozen any more."""
        self._freezer.unfreeze()

    def _make_step(self) -> Callable:
        recipe, state = self._recipe, self._state
        return make_train_step(
            state.model,
            state.optimizer,
            recipe.loss,
            self._strategy,
            self._block_stats,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            global_clipnorm=recipe.global_clipnorm,
            label_smoothing=recipe.label_smoothing,
            ema=state.ema,
        )


def copy_weights(initial_weights: str | Callable[[int], str] | None, model: keras.Model, index: int) -> None:
    """Copy the weights of a trained network into `model` wherever layers of one place have the same shapes.

    The layers that have weights are taken in their order. A layer of other shapes keeps its random weights, such as the
    logits of another number of classes; there must be as many such layers in both, and at least one must fit.

    Args:
        initial_weights: A `.keras` file, or a run folder, whose member `index` is taken; or a function of the index that
            returns one. None leaves the model as it is.
        model: The member, just built.
        index: Its index.

    Raises:
        RecipeError: If there is no such file, or the network in it is another one.
    """
    if initial_weights is None:
        return
    path = _find_weights_file(Path(initial_weights(index) if callable(initial_weights) else initial_weights), index)
    try:
        source = load_member(path)
    except (RunError, VerificationError) as error:
        raise RecipeError(f"Recipe(initial=...): cannot load {path}: {error.__cause__ or error}") from error
    source_layers, target_layers = _layers_with_weights(source), _layers_with_weights(model)
    if len(source_layers) != len(target_layers):
        raise RecipeError(
            f"Recipe(initial=...): {path} has {len(source_layers)} layers with weights; member {index} ({model.name}) has "
            f"{len(target_layers)}. Give the weights of a network of the same family and depth."
        )
    pairs = [
        (there, here)
        for there, here in zip(source_layers, target_layers, strict=True)
        if _weight_shapes(there) == _weight_shapes(here)
    ]
    if not pairs:
        raise RecipeError(f"Recipe(initial=...): no layer of {path} has the shapes of member {index} ({model.name}).")
    for there, here in pairs:
        here.set_weights(there.get_weights())


def _find_weights_file(path: Path, index: int) -> Path:
    file = MemberDir(path, index).model if path.is_dir() else path
    if not file.is_file():
        raise RecipeError(
            f"Recipe(initial=...): there is no {file}. Give a .keras file or a folder with finished members."
        )
    if file.suffix != ".keras":  # what is in an .h5 file runs as code, whatever `safe_mode` says
        raise RecipeError(
            f"Recipe(initial=...): {file} is no .keras file. Give one, or a folder with finished members."
        )
    return file


def _layers_with_weights(model: keras.Model) -> list[keras.layers.Layer]:
    """The innermost layers that have weights, in their order."""
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    return [layer for layer in layers if not any(inner.weights for inner in layer._flatten_layers(include_self=False))]


def _weight_shapes(layer) -> list[tuple]:
    return [tuple(weight.shape) for weight in layer.weights]
