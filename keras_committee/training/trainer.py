"""The training loop of one member, and its exact resume after any interruption.

1. The member is built under its own seed, `recipe.seed + index`. The state of its newest valid checkpoint is restored.
2. Step `s` trains on the batch at position `s` of the member's stream, a pure function of (seed, position). So a member
   resumes at the exact step of the checkpoint and ends as one that was never interrupted.
3. After each epoch the member predicts the validation split once; all validation figures come from these predictions.
4. A checkpoint is written before the first step, after each epoch, every `checkpoint_seconds` and when training is
   interrupted; never one with a weight that is not finite.
5. `model.keras` is renamed into place as the last act before the checkpoints are removed: where it exists, the member
   is finished.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_committee import metrics
from keras_committee.checkpoints import Checkpoints
from keras_committee.data import Splits
from keras_committee.data.resampling import class_weights
from keras_committee.data.validation import name_unreadable_images
from keras_committee.errors import DivergedError, RecipeError, RunError, VerificationError, pluralize
from keras_committee.files import expand_home, file_hash
from keras_committee.layers import set_survival
from keras_committee.member_dir import MemberDir
from keras_committee.models.building import (
    adapt_layers,
    adaptation_examples,
    build_member,
    layers_to_adapt,
    multiply_learning_rates,
)
from keras_committee.models.loading import load_member
from keras_committee.models.member_check import MemberCheck, registered_names
from keras_committee.models.predict import Predictor
from keras_committee.recipe import Recipe
from keras_committee.schedules import scale_learning_rate
from keras_committee.signals import GracefulShutdown, TrainingStopped
from keras_committee.training.averaging import SlowWeights, StochasticWeightAverage, WeightEMA
from keras_committee.training.devices import distribute
from keras_committee.training.distillation import Distillation, load_distillation
from keras_committee.training.freezing import LayerFreezer
from keras_committee.training.member_check import make_member_check
from keras_committee.training.member_state import BestEpoch, MemberState
from keras_committee.training.multihost import SingleHost
from keras_committee.training.reporting import Reporter, TrainingOptions
from keras_committee.training.tensorboard import MemberLog, StepProfiler
from keras_committee.training.train_step import BlockStats, make_train_step
from keras_committee.training_run import check_fit, data_info

# After a rollback the batches differ from those that led to divergence; the members' own seeds lie close together.
_ROLLBACK_SEED_STRIDE = 1_000_000_007
# For batch statistics of averaged weights: what more images would change is far below what one batch varies.
_STATISTICS_IMAGES = 10_000


class NonFiniteError(Exception):
    """The loss, a weight or a logit is no longer a finite number."""


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
    """Train member `index`, or resume it, and leave its model, history and validation predictions in `member_dir`.

    Args:
        recipe: What to train.
        index: Index of the member.
        splits: The data.
        member_dir: Folder of the member.
        strategy: Distribution strategy of the model.
        reporter: Receives progress and events.
        shutdown: Requests the end of training.
        options: How to run and protect the training.
        host_group: The hosts that train the member together. Each of them calls this function; only the chief writes.

    Raises:
        RecipeError: If the model does not fit the data.
        RunError: If none of the existing checkpoints can be used.
        ResourceError: If a checkpoint cannot be written.
        DivergedError: If the loss or a weight is not finite after `options.max_rollbacks` rollbacks.
        TrainingStopped: If `shutdown` was requested; the state so far is saved.
    """
    trainer = _Trainer(
        recipe, index, splits, member_dir, strategy, reporter, shutdown, options, host_group or SingleHost()
    )
    trainer.resume()
    with (
        StepProfiler(member_dir.tensorboard, options.profile_steps, reporter.note) as profiler,
        name_unreadable_images(splits.train, splits.validation),
    ):
        while not trainer.is_done:
            try:
                trainer.train_epoch(profiler)
                trainer.validate()
            except NonFiniteError as error:
                trainer.roll_back(str(error))
            except TrainingStopped:
                trainer.save_if_stepped()
                raise
    trainer.finish()


class _Trainer:
    """The training of one member, in the order of its methods."""

    def __init__(self, recipe, index, splits, member_dir, strategy, reporter, shutdown, options, host_group):
        splits = splits.for_member(index)
        self._recipe, self._index, self._splits, self._member_dir = recipe, index, splits, member_dir
        self._strategy, self._reporter, self._shutdown, self._options = strategy, reporter, shutdown, options
        self._host_group = host_group
        # Before the names are registered and the seed is set: it belongs to no member.
        self._distillation = load_distillation(recipe.teacher, splits, strategy)
        self._registered = registered_names()
        predecessor = recipe.predecessor(index)
        self._start_file = None if predecessor is None else MemberDir(member_dir.run, predecessor).model
        self._start_weights = self._start_file and file_hash(self._start_file)
        self._state = state = _build_member(recipe, index, splits, strategy, self._start_file)
        self._block_stats = BlockStats(state.model)
        self._epoch_steps = _EpochSteps(recipe, state, strategy, self._block_stats, splits, self._distillation)
        self._traced_step: Callable | None = None
        self._batches: Iterator = iter(())
        self._stream_position = (-1, -1)  # seed and step of the next of the batches
        self._predictor = Predictor(state.model)
        self._checkpoints = Checkpoints(member_dir.state, read_only=not host_group.is_chief)
        self._log = MemberLog(member_dir, reporter.note)
        self._data_fingerprint = splits.training_fingerprint()
        self._last_save, self._num_rollbacks = (-1, time.monotonic()), 0  # step and time of the last checkpoint

    @cached_property
    def _validation_batches(self) -> tf.data.Dataset:
        return self._splits.validation.batches(self._splits.batch_size)

    @property
    def is_done(self) -> bool:
        return self._state.stopped_early or len(self._state.history) == self._recipe.epochs

    def resume(self) -> None:
        """Restore the newest valid checkpoint, or write the first one."""
        state = self._state
        checkpoint, problems = self._checkpoints.load_newest()
        for problem in problems:
            self._reporter.event(self._index, "damaged", problem)
        if checkpoint is None:
            _member_check()(state.model, self._index, self._registered)
        # The check drew random numbers; a member that resumes has none.
        keras.utils.set_random_seed(self._recipe.seed + self._index)
        if checkpoint is None:
            self._adapt_layers()
            state.begin_epoch(self._block_stats.run_counts())
            self._save("start")
            self._log.on_train_begin(state.model)
            return
        replicas_note = self._check_compatible(checkpoint.document)
        state.restore(checkpoint)
        self._last_save = (checkpoint.step, time.monotonic())
        self._reporter.on_resume(self._index, checkpoint.step)
        epoch, step = divmod(checkpoint.step, self._splits.steps_per_epoch)
        text = f"resuming member {self._index} at epoch {epoch + 1} step {step}{replicas_note}"
        self._reporter.event(self._index, "member_resumed", text, step=checkpoint.step)

    def _adapt_layers(self) -> None:
        """Adapt the layers that need it to training images; weights that were trained elsewhere fit theirs already."""
        model, train = self._state.model, self._splits.train
        is_trained = self._recipe.initial_weights is not None or self._start_file is not None
        if is_trained or not layers_to_adapt(model):
            return
        rows = self._splits.training_rows
        examples = train.subset(rows[adaptation_examples(len(rows), train.image_shape)])
        images = [images.numpy() for images, _ in examples.batches(self._splits.batch_size)]
        adapt_layers(model, np.concatenate(images))

    def train_epoch(self, profiler: StepProfiler) -> None:
        """Take the remaining steps of the unfinished epoch."""
        state, epoch = self._state, len(self._state.history)
        epoch_end = (epoch + 1) * self._splits.steps_per_epoch
        self._host_group.assert_in_sync(state.step, self._data_fingerprint, state.model)
        take_step = self._epoch_steps.begin_epoch(epoch)
        seed = self._recipe.seed + self._index + _ROLLBACK_SEED_STRIDE * state.rollbacks
        if (seed, state.step) != self._stream_position:
            self._batches = self._open_stream(seed, state.step)
        last_step_end = None
        is_new, self._traced_step = take_step is not self._traced_step, take_step
        self._reporter.on_phase(self._index, epoch + 1, "tracing" if is_new else "training")
        while state.step < epoch_end:
            with self._shutdown.mask_signals(enabled=state.step != self._last_save[0]), profiler.step():
                results = take_step(*next(self._batches))
                self._record_step(results)
            if last_step_end is None and is_new:
                self._reporter.on_phase(self._index, epoch + 1, "training")
            if last_step_end is not None:  # a first step traces the graph
                state.timed_steps = (state.timed_steps[0] + 1, state.timed_steps[1] + time.monotonic() - last_step_end)
            with self._shutdown.mask_signals(), self._host_group.in_sync(self._shutdown, NonFiniteError):
                self._after_step()
            last_step_end = time.monotonic()
        self._stream_position = (seed, state.step)

    def _open_stream(self, seed: int, step: int) -> Iterator:
        """Return the batches from `step` to the end of the training; pipelines of single epochs cost traces."""
        steps = self._recipe.epochs * self._splits.steps_per_epoch - step
        stream = partial(self._splits.stream, seed, step, steps, batch_augment=self._recipe.batch_augment)
        return iter(distribute(stream, self._strategy))

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
            self._save("interval")

    def validate(self) -> None:
        """Validate the epoch on the chief, and end or continue on all hosts as the chief decides."""
        with self._host_group.in_sync(self._shutdown, NonFiniteError), self._shutdown.mask_signals():
            with self._averaged_weights():
                validated = self._predict_validation() if self._host_group.is_chief else None
            if validated is not None:
                self._end_epoch(*validated)
            else:
                self._state.history.append({})  # only the chief has the row
                self._state.begin_epoch(self._block_stats.run_counts())
        self._state.stopped_early = self._host_group.broadcast(self._state.stopped_early)

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Give the model the averages of its weights inside the block, if there are any at the end of this epoch."""
        state, epoch = self._state, len(self._state.history) + 1
        self._reporter.on_phase(self._index, epoch, "validating")
        averaged_epochs = self._recipe.averaged_epochs(epoch)
        if state.swa and averaged_epochs:
            state.swa.add_epoch(averaged_epochs)
        if state.averages is None or (state.swa and not averaged_epochs):
            yield
            return
        with state.averages.swapped_in():
            if state.swa:
                state.swa.compute_statistics(self._check_each_on_all_hosts(self._statistics_batches))
            yield

    @cached_property
    def _statistics_batches(self):
        """The batches for the batch statistics of averaged weights: the first ones of the member's training.

        They are a function of seed and recipe, whatever the epoch, and augmented and mixed as in training.
        """
        splits, seed = self._splits, self._recipe.seed + self._index
        steps = min(splits.steps_per_epoch, math.ceil(_STATISTICS_IMAGES / splits.batch_size))
        stream = partial(splits.stream, seed, 0, steps, batch_augment=self._recipe.batch_augment)
        return distribute(stream, self._strategy)

    def _check_each_on_all_hosts(self, batches: Iterable) -> Iterator:
        for batch in batches:
            with self._host_group.in_sync(self._shutdown, NonFiniteError):
                self._shutdown.check()
            yield batch

    def _predict_validation(self) -> tuple[np.ndarray, dict | None]:
        """Return the log-probabilities of the validation split, and the weights if they may be the best ones."""
        state = self._state
        log_probs = self._predictor(self._shutdown.check_each(self._validation_batches))
        if not np.isfinite(log_probs).all():
            raise NonFiniteError(f"step {state.step} (validation logits are not finite)")
        is_average = not state.swa or self._recipe.averaged_epochs(len(state.history) + 1) > 0
        return log_probs, state.weights() if self._recipe.restore_best and is_average else None

    def _end_epoch(self, log_probs: np.ndarray, weights: dict | None) -> None:
        """Log the epoch and save."""
        state = self._state
        row, block_values = self._history_row(log_probs)
        state.history.append(row)
        self._update_best(row, weights)
        state.begin_epoch(self._block_stats.run_counts())
        self._save("epoch")
        self._log.on_epoch_end(state.history, log_probs, block_values)
        self._reporter.on_epoch_end(self._index, row)
        self._shutdown.check()

    def _history_row(self, log_probs: np.ndarray) -> tuple[dict, dict]:
        """Return the epoch's row of the history, and values `(blocks,)` for each residual block by their name."""
        state, steps = self._state, len(self._state.losses)
        row = {
            "epoch": len(state.history) + 1,
            "step": state.step,
            "learning_rate": float(keras.ops.convert_to_numpy(state.optimizer.learning_rate)),
            "loss": float(np.mean(state.losses)),
            "accuracy": sum(state.num_correct) / (steps * self._splits.batch_size),
            "images_per_second": state.timed_steps[0] * self._splits.batch_size / max(state.timed_steps[1], 1e-9),
        }
        run_fraction = (self._block_stats.run_counts() - state.block_run_counts) / steps
        block_values = {
            "mean_abs_gradient": np.mean(state.gradients, axis=0, dtype=np.float64),
            "run_fraction": run_fraction,
        }
        if averaged_epochs := self._recipe.averaged_epochs(row["epoch"]):
            row["averaged_epochs"] = averaged_epochs
        if len(run_fraction):
            row["realised_depth"] = float(run_fraction.sum())
        if len(block_values["mean_abs_gradient"]):
            row["mean_abs_gradients"] = block_values["mean_abs_gradient"].tolist()
        validation = metrics.classification_metrics(np.exp(log_probs), self._splits.validation.labels)
        return row | {f"validation_{name}": value for name, value in validation.items()}, block_values

    def _update_best(self, row: dict, weights: dict | None) -> None:
        """Save the weights of the best epoch so far, and stop early after `patience` epochs without a better one."""
        state, recipe = self._state, self._recipe
        if recipe.restore_best is None or weights is None:
            return
        score = row[f"validation_{recipe.restore_best}"] * (1 if recipe.restore_best == "accuracy" else -1)
        if state.best is None or score > state.best.score:
            name = self._checkpoints.save_named(f"best-{row['epoch']:06d}", weights)
            state.best = BestEpoch(row["epoch"], score, name)
        state.stopped_early = recipe.patience is not None and row["epoch"] - state.best.epoch >= recipe.patience

    def roll_back(self, where: str) -> None:
        """Restore the last checkpoint and continue with other batches; raise DivergedError after `max_rollbacks`."""
        checkpoint, _ = self._checkpoints.load_newest()
        if self._num_rollbacks == self._options.max_rollbacks or checkpoint is None:
            raise DivergedError(
                f"member {self._index} diverged at {where}, after {pluralize(self._num_rollbacks, 'rollback')} "
                "to its last good state.\n"
                f"  Its last good checkpoint, step {checkpoint.step if checkpoint else 0}, is kept in "
                f"{self._member_dir.state}. No other member was changed.\n"
                "  Try a smaller learning rate, a longer warm-up or global_clipnorm, in a new run folder."
            )
        self._num_rollbacks += 1
        self._state.restore(checkpoint)
        self._state.rollbacks += self._num_rollbacks
        text = f"member {self._index} diverged at {where}; back to step {checkpoint.step}, other batches follow"
        self._reporter.event(self._index, "rolled_back", text, step=checkpoint.step)

    def save_if_stepped(self) -> None:
        """Save unless no step was counted since the last checkpoint: a signal may have come within that step."""
        if self._state.step != self._last_save[0]:
            self._save("stop")

    def finish(self) -> None:
        """Save the final model: the weights of the best epoch with `restore_best`, else the averages if any."""
        state = self._state
        self._epoch_steps.unfreeze()
        if not self._host_group.is_chief:
            return
        if state.best:
            state.set_weights(self._checkpoints.load_named(state.best.weights_name))
        elif state.averages:
            state.averages.copy_to_weights()
        self._shutdown.check_before_saving()
        self._log.on_train_end(state.history, state.model, data_info(self._splits))
        self._checkpoints.discard()

    def _save(self, reason: str) -> None:
        """Write a checkpoint.

        Raises:
            NonFiniteError: If a weight is not finite; the last checkpoint is then the last good one.
            ResourceError: If it cannot be written.
            RunError: If the member was given to another process.
        """
        self._shutdown.check_before_saving()
        state, started = self._state, time.monotonic()
        if not self._host_group.is_chief:
            return
        if not state.is_finite():
            raise NonFiniteError(f"step {state.step} (a weight is not finite)")
        document = state.document() | {
            "replicas": self._strategy.num_replicas_in_sync,
            "data": self._data_fingerprint,
            "start": self._start_weights,
        }
        self._checkpoints.save(
            state.step, state.arrays(), document, requires=state.best.weights_name if state.best else None
        )
        self._last_save = (state.step, time.monotonic())
        seconds = time.monotonic() - started
        if reason in ("stop", "interval"):
            text = f"saved member {self._index} at step {state.step} in {seconds:.1f} s"
            self._reporter.event(self._index, "member_saved", text, step=state.step, seconds=round(seconds, 3))

    def _check_compatible(self, document: dict) -> str:
        """Return a note on a changed number of replicas, or "".

        Raises:
            RunError: If the training data changed, or the member started from other weights.
        """
        if document["data"] != self._data_fingerprint:
            raise RunError(
                f"the training data of {self._recipe.data.name} changed since member {self._index} began.\n"
                f"  Its state in {self._member_dir.state} was not changed. Restore the data, or train this member "
                "from the start: --restart."
            )
        if document.get("start") != self._start_weights:
            raise RunError(
                f"member {self._index} did not start from the weights that are now in {self._start_file}.\n"
                f"  Its state in {self._member_dir.state} was not changed. Restore that file, or train this member "
                "from the start: --restart."
            )
        replicas = self._strategy.num_replicas_in_sync
        if document["replicas"] == replicas:
            return ""
        return f"; {document['replicas']} -> {replicas} replicas: continues, not bit-identical"


@cache
def _member_check() -> MemberCheck:
    """Return the check of this process, which checks each architecture once."""
    return make_member_check()


class _EpochSteps:
    """The training step of each epoch, traced again only if other layers train than in the epoch before."""

    def __init__(
        self,
        recipe: Recipe,
        state: MemberState,
        strategy: tf.distribute.Strategy,
        block_stats: BlockStats,
        splits: Splits,
        distillation: Distillation | None,
    ):
        self._recipe, self._state, self._strategy, self._block_stats = recipe, state, strategy, block_stats
        self._distillation = distillation
        self._class_weights = class_weights(recipe.class_weight, splits.train.labels, splits.classes)
        self._freezer = LayerFreezer(state.model, recipe.trainable_layers, recipe.epochs)
        self._step: Callable | None = None
        self._trainable_patterns: tuple[str, ...] = ()

    def begin_epoch(self, epoch: int) -> Callable:
        """Set the survival probabilities, freeze the layers of this epoch and return its training step."""
        if self._recipe.survival is not None:
            set_survival(self._state.model, self._recipe.survival(epoch))
        trainable_patterns = self._freezer.begin_epoch(epoch)
        if self._step is None or trainable_patterns != self._trainable_patterns:
            self._step, self._trainable_patterns = self._make_step(), trainable_patterns
        return self._step

    def unfreeze(self) -> None:
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
            slow_weights=state.slow_weights,
            distillation=self._distillation,
            class_weights=self._class_weights,
        )


def _build_member(
    recipe: Recipe, index: int, splits: Splits, strategy: tf.distribute.Strategy, start_file: Path | None = None
) -> MemberState:
    """Build the untrained member, its optimizer and its averages under the seed `recipe.seed + index`.

    Args:
        recipe: What to train.
        index: Index of the member.
        splits: The data.
        strategy: Distribution strategy of the model.
        start_file: Model of the member from whose weights it starts; None starts it as the first one of a chain.

    Raises:
        RecipeError: If the model does not fit the data, or the initial weights do not fit the model.
    """
    keras.utils.set_random_seed(recipe.seed + index)
    with strategy.scope():
        model = build_member(recipe, index)
        check_fit(model, splits, index)
        if start_file is None:
            copy_weights(recipe.initial_weights, model, index)
        else:
            _copy_all_weights(start_file, model, index)
        optimizer = recipe.optimizer(recipe.epochs * splits.steps_per_epoch)
        if recipe.learning_rate_scale is not None:
            scale_learning_rate(optimizer, recipe.learning_rate_scale(index))
        multiply_learning_rates(recipe, optimizer, model)
        if recipe.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
    ema = swa = slow_weights = None
    if recipe.ema_momentum is not None:
        ema = WeightEMA(model, recipe.ema_momentum, strategy)
    if recipe.swa_epoch_start is not None:
        swa = StochasticWeightAverage(model, strategy, recipe.gradient_accumulation_steps)
    if recipe.lookahead is not None:
        slow_weights = SlowWeights(model, recipe.lookahead, recipe.epochs * splits.steps_per_epoch, strategy)
    return MemberState(model, optimizer, ema, swa, slow_weights)


def untrained_step(
    recipe: Recipe, index: int, splits: Splits, strategy: tf.distribute.Strategy, epoch: int
) -> Callable[..., tuple]:
    """Return the training step of member `index` in an epoch, untrained and without checkpoints, to measure it."""
    distillation = load_distillation(recipe.teacher, splits, strategy)
    state = _build_member(recipe, index, splits, strategy)
    steps = _EpochSteps(recipe, state, strategy, BlockStats(state.model), splits, distillation)
    return steps.begin_epoch(epoch)


def copy_weights(initial_weights: str | Callable[[int], str] | None, model: keras.Model, index: int) -> None:
    """Copy the weights of a trained network into `model` wherever corresponding layers have the same shapes.

    Layers with weights correspond by their order. A layer with other shapes keeps its random weights, for example the
    logits for another number of classes. Both networks must have as many layers with weights, and at least one of them
    must match.

    Args:
        initial_weights: A `.keras` file, a run folder, whose member `index` is used, or a function of the index that
            returns one of them. None leaves the model unchanged.
        model: The member, just built.
        index: Index of the member.

    Raises:
        RecipeError: If the file does not exist, or its network does not correspond to `model`.
    """
    if initial_weights is None:
        return
    path = _find_weights_file(
        expand_home(initial_weights(index) if callable(initial_weights) else initial_weights), index
    )
    try:
        source_model = load_member(path)
    except (RunError, VerificationError) as error:
        raise RecipeError(f"Recipe(initial_weights=...): cannot load {path}: {error.__cause__ or error}") from error
    sources, targets = _layers_with_weights(source_model), _layers_with_weights(model)
    if len(sources) != len(targets):
        raise RecipeError(
            f"Recipe(initial_weights=...): {path} has {len(sources)} layers with weights; "
            f"member {index} ({model.name}) has {len(targets)}. "
            "Use the weights of a network of the same family and depth."
        )
    pairs = [
        (source, target)
        for source, target in zip(sources, targets, strict=True)
        if _weight_shapes(source) == _weight_shapes(target)
    ]
    if not pairs:
        raise RecipeError(
            f"Recipe(initial_weights=...): no layer of {path} has the shapes of member {index} ({model.name}). "
            "Use the weights of a network of the same family and width."
        )
    for source, target in pairs:
        target.set_weights(source.get_weights())


def _copy_all_weights(file: Path, model: keras.Model, index: int) -> None:
    """Copy the weights of the member that `model` continues; unlike with `copy_weights`, every layer must have them.

    Raises:
        RecipeError: If the members differ in their architecture.
        RunError: If the file cannot be read.
    """
    sources, targets = _layers_with_weights(load_member(file)), _layers_with_weights(model)
    if list(map(_weight_shapes, sources)) != list(map(_weight_shapes, targets)):
        raise RecipeError(
            f"Recipe(snapshots=...): member {index} ({model.name}) starts from the weights of {file}, whose layers "
            "have other shapes. Build the members of a chain with one architecture."
        )
    for source, target in zip(sources, targets, strict=True):
        target.set_weights(source.get_weights())


def _find_weights_file(path: Path, index: int) -> Path:
    file = MemberDir(path, index).model if path.is_dir() else path
    if not file.is_file():
        raise RecipeError(
            f"Recipe(initial_weights=...): {file} does not exist. Use a .keras file or a folder with finished members."
        )
    if file.suffix != ".keras":  # the content of an .h5 file is executed as code, even with `safe_mode`
        raise RecipeError(
            f"Recipe(initial_weights=...): {file} is not a .keras file. Use one, or a folder with finished members."
        )
    return file


def _layers_with_weights(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the innermost layers that have weights, in their order."""
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    return [layer for layer in layers if not any(inner.weights for inner in layer._flatten_layers(include_self=False))]


def _weight_shapes(layer: keras.layers.Layer) -> list[tuple]:
    return [tuple(weight.shape) for weight in layer.weights]
