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
from keras_committee.member_dir import MemberFolder
from keras_committee.models.loading import load_member
from keras_committee.models.precision import under_policy
from keras_committee.models.predict import Predictor
from keras_committee.recipe import Recipe
from keras_committee.training.checkpoint import Best, Checkpoints, MemberState
from keras_committee.training.devices import distribute
from keras_committee.training.ema import Averages
from keras_committee.training.freezing import Freezer
from keras_committee.training.multihost import Alone
from keras_committee.training.reporting import Report, Settings
from keras_committee.training.signals import Interruption, Stopped
from keras_committee.training.tensorboard import MemberLog, Profile
from keras_committee.training.train_step import BlockGauges, training_step

# A rollback asks for other batches than those that led astray; members' own seeds lie close together.
_SEEDS_APART = 1_000_000_007


class Diverged(Exception):
    """The loss or a weight is no longer a finite number."""


def train_member(
    recipe: Recipe,
    index: int,
    splits: Splits,
    folder: MemberFolder,
    strategy: tf.distribute.Strategy,
    report: Report,
    stop: Interruption,
    settings: Settings,
    team: Alone | None = None,
) -> None:
    """Train member `index`, or go on with it, and leave `model.keras`, its history and its votes in `folder`.

    `team`: the hosts that train it together; each calls this, and the chief alone writes.

    Raises:
        RecipeError: If the model does not fit the data.
        RunError: If there are checkpoints that cannot be used.
        ResourceError: If a checkpoint cannot be written.
        DivergedError: If the loss or a weight is no longer finite, after `rollbacks` returns to the last checkpoint.
        Stopped: If `stop` was requested; the state up to then is saved.
    """
    training = _Training(recipe, index, splits, folder, strategy, report, stop, settings, team or Alone())
    training.resume()
    with Profile(folder.tensorboard, settings.profile, report.note) as profile:
        while not training.ended:
            try:
                training.train_epoch(profile)
                training.validate()
            except Diverged as error:
                training.roll_back(str(error))
            except Stopped:
                training.save_what_is_new()
                raise
    training.finish()


class _Training:
    """One member at work."""

    def __init__(self, recipe, index, splits, folder, strategy, report, stop, settings, team):
        self._recipe, self._index, self._splits, self._folder = recipe, index, splits, folder
        self._strategy, self._report, self._stop, self._settings = strategy, report, stop, settings
        self._team = team
        self._state = state = build_member(recipe, index, splits, strategy)
        self._gauges = BlockGauges(state.model)
        self._steps = EpochSteps(recipe, state, strategy, self._gauges)
        self._predictor = Predictor(state.model)
        self._checkpoints = Checkpoints(folder.state, read_only=not team.is_chief)
        self._log = MemberLog(folder, report.note)
        self._data = splits.train.fingerprint()
        self._saved, self._rolled_back = (-1, time.monotonic()), 0

    @property
    def ended(self) -> bool:
        return self._state.stopped or len(self._state.history) == self._recipe.epochs

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, or make the first one."""
        state = self._state
        checkpoint, damages = self._checkpoints.newest()
        for damage in damages:
            self._report.event(self._index, "damaged", damage)
        if checkpoint is None:
            state.begin_epoch(self._gauges.runs())
            self.save("start")
            self._log.began(state.model)
            return
        before = self._compatible(checkpoint.document)
        state.restore(checkpoint)
        self._saved = (checkpoint.step, time.monotonic())
        self._report.resumed(self._index, checkpoint.step)
        epoch, step = divmod(checkpoint.step, self._splits.steps_per_epoch)
        text = f"resuming member {self._index} at epoch {epoch + 1} step {step}{before}"
        self._report.event(self._index, "member_resumed", text, step=checkpoint.step)

    def train_epoch(self, profile: Profile) -> None:
        """The steps that the unfinished epoch still lacks."""
        state, steps = self._state, self._splits.steps_per_epoch
        epoch = len(state.history)
        self._team.agree(state.step, self._data, state.model)
        take_step = self._steps.begin_epoch(epoch)
        seed = self._recipe.seed + self._index + _SEEDS_APART * state.rollbacks
        stream = partial(self._splits.stream, seed, state.step, (epoch + 1) * steps - state.step, mix=self._recipe.mix)
        batches, ended = iter(distribute(stream, self._strategy)), None
        while state.step < (epoch + 1) * steps:
            with self._stop.deferred(when=state.step != self._saved[0]), profile.step():
                results = take_step(*next(batches))
                self._count(results)
            if ended is not None:  # a first step traces the graph
                state.timed = (state.timed[0] + 1, state.timed[1] + time.monotonic() - ended)
            with self._stop.deferred(), self._team.together(self._stop, Diverged):
                self._between_steps()
            ended = time.monotonic()

    def _count(self, results) -> None:
        loss, hits, gradients = (result.numpy() for result in results)
        state = self._state
        if not math.isfinite(loss):
            raise Diverged(f"step {state.step + 1} (loss={loss})")
        state.losses.append(float(loss))
        state.hits.append(int(hits))
        state.gradients.append(gradients)
        state.step += 1  # last: only now is there anything to save

    def _between_steps(self) -> None:
        self._report.steps_ended(self._index)
        self._stop.check()
        if time.monotonic() - self._saved[1] > self._settings.save_seconds:
            self.save("interval")

    def validate(self) -> None:
        """The chief judges the epoch, and all hosts do what follows from it."""
        with self._team.together(self._stop, Diverged):
            if self._team.is_chief:
                self._validate()
            else:
                self._state.history.append({})  # the chief has the row
                self._state.begin_epoch(self._gauges.runs())
        self._state.stopped = self._team.from_chief(self._state.stopped)

    def _validate(self) -> None:
        """Predict the validation split, log the epoch and save."""
        state, batch_size = self._state, self._splits.batch_size
        with self._stop.deferred():
            batches = self._stop.watch(self._splits.validation.batches(batch_size))
            with _averaged(state.averages):
                votes = self._predictor(batches)
                weights = state.weights() if self._recipe.keep_best else None
            if not np.isfinite(votes).all():
                raise Diverged(f"step {state.step} (validation logits are not finite)")
            row, blocks = self._row(votes)
            state.history.append(row)
            self._judge(row, weights)
            state.begin_epoch(self._gauges.runs())
            self.save("epoch")
            self._log.epoch_ended(state.history, votes, blocks)
            self._report.epoch_ended(self._index, row)
            self._stop.check()

    def _row(self, votes) -> tuple[dict, dict]:
        """The row of the history that an epoch gave, and figures `(blocks,)` of each residual block."""
        state, steps = self._state, len(self._state.losses)
        row = {
            "epoch": len(state.history) + 1,
            "step": state.step,
            "learning_rate": float(keras.ops.convert_to_numpy(state.optimizer.learning_rate)),
            "loss": float(np.mean(state.losses)),
            "accuracy": sum(state.hits) / (steps * self._splits.batch_size),
            "images_per_second": state.timed[0] * self._splits.batch_size / max(state.timed[1], 1e-9),
        }
        blocks = {
            "gradient": np.mean(state.gradients, axis=0, dtype=np.float64),
            "open": (self._gauges.runs() - state.runs) / steps,
        }
        if len(blocks["open"]):
            row["realised_depth"] = float(blocks["open"].sum())
        validation = metrics.summary(np.exp(votes), self._splits.validation.labels)
        return row | {f"validation_{name}": value for name, value in validation.items()}, blocks

    def _judge(self, row: dict, weights: dict | None) -> None:
        """Keep the weights of the best epoch, and stop where there has been none for long."""
        state, recipe = self._state, self._recipe
        if recipe.keep_best is None or weights is None:
            return
        score = row[f"validation_{recipe.keep_best}"] * (1 if recipe.keep_best == "accuracy" else -1)
        if state.best is None or score > state.best.score:
            name = self._checkpoints.save_aside(f"best-{row['epoch']:06d}", weights)
            state.best = Best(row["epoch"], score, name)
        state.stopped = recipe.patience is not None and row["epoch"] - state.best.epoch >= recipe.patience

    def save_what_is_new(self) -> None:
        """Save, unless no step was counted since the last time: a signal may have come in the middle of that step."""
        if self._state.step != self._saved[0]:
            self.save("stop")

    def save(self, reason: str) -> None:
        """Write a checkpoint, unless a weight is not finite: the last one is the last good one then.

        Raises:
            ResourceError: If it cannot be written.
            RunError: If the member was given to another process.
        """
        self._stop.before_saving()
        state, started = self._state, time.monotonic()
        if not self._team.is_chief:
            return
        if not state.is_finite():
            raise Diverged(f"step {state.step} (a weight is not finite)")
        document = state.document() | {"replicas": self._strategy.num_replicas_in_sync, "data": self._data}
        self._checkpoints.save(state.step, state.arrays(), document, needs=state.best.weights if state.best else None)
        self._saved = (state.step, time.monotonic())
        seconds = time.monotonic() - started
        if reason in ("stop", "interval"):
            text = f"saved member {self._index} at step {state.step} in {seconds:.1f} s"
            self._report.event(self._index, "member_saved", text, step=state.step, seconds=round(seconds, 3))

    def _compatible(self, document: dict) -> str:
        """What the user must know of a checkpoint before it is put on; raises RunError where it would be wrong."""
        if document["data"] != self._data:
            raise RunError(
                f"the training data of {self._recipe.data.name} are not those that member {self._index} began with.\n"
                f"  Its state in {self._folder.state} was left as it is. Bring the data back, or train this member "
                "again: --from-scratch."
            )
        replicas = self._strategy.num_replicas_in_sync
        if document["replicas"] == replicas:
            return ""
        return f"; {document['replicas']} -> {replicas} replicas: continues, not bit-identical"

    def roll_back(self, where: str) -> None:
        """Go back to the last checkpoint and on with other batches; give up after `rollbacks` times."""
        checkpoint, _ = self._checkpoints.newest()
        if self._rolled_back == self._settings.rollbacks or checkpoint is None:
            raise DivergedError(
                f"member {self._index} diverged at {where}, after {self._rolled_back} returns to its last good state.\n"
                f"  Its last good checkpoint, step {checkpoint.step if checkpoint else 0}, is kept in "
                f"{self._folder.state}; other members are untouched.\n"
                "  Try a smaller learning rate, a longer warm-up or clip_norm, in a new run folder."
            )
        self._rolled_back += 1
        self._state.restore(checkpoint)
        self._state.rollbacks += self._rolled_back
        text = f"member {self._index} diverged at {where}; back to step {checkpoint.step}, on with other batches"
        self._report.event(self._index, "rolled_back", text, step=checkpoint.step)

    def finish(self) -> None:
        """Leave the model: of the best epoch where one was asked for, else averaged where there are averages."""
        state = self._state
        self._steps.end()
        if not self._team.is_chief:
            return
        if state.best:
            state.set_weights(self._checkpoints.load_aside(state.best.weights))
        elif state.averages:
            state.averages.copy_to_weights()
        self._stop.before_saving()
        self._log.write_history(state.history)
        self._log.save_model(state.model)
        self._checkpoints.discard()


def _averaged(averages: Averages | None):
    return averages.in_place() if averages else contextlib.nullcontext()


def build_member(recipe: Recipe, index: int, splits: Splits, strategy: tf.distribute.Strategy) -> MemberState:
    """The untrained member, its optimizer and its moving averages, built under `recipe.seed + index`.

    Raises:
        RecipeError: If the model does not fit the data, or the initial weights do not fit the model.
    """
    keras.utils.set_random_seed(recipe.seed + index)
    with strategy.scope():
        with under_policy(recipe.precision):
            model = recipe.member(index)
        check_fit(model, splits, index)
        copy_weights(recipe.initial, model, index)
        optimizer = recipe.optimizer(recipe.epochs * splits.steps_per_epoch)
        if recipe.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
    averages = Averages(model, recipe.ema, strategy) if recipe.ema is not None else None
    return MemberState(model, optimizer, averages)


def check_fit(model: keras.Model, splits: Splits, index: int) -> None:
    """Raise a RecipeError unless `model` takes the images of `splits` gives one logit for each of its classes, and can
    be trained."""
    takes, gives = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    has, wants = tuple(splits.train.image_shape), (len(splits.classes),)
    if takes != has:
        raise RecipeError(f"member {index} ({model.name}) takes images of shape {takes}; the data has {has}.")
    if _gives_probabilities(model):
        raise RecipeError(
            f"member {index} ({model.name}) ends with a softmax. A member returns logits: leave the activation of its "
            "last layer out."
        )
    if not model.trainable_variables:
        raise RecipeError(
            f"member {index} ({model.name}) has no weight to train. `keras-committee adopt` takes it as it is."
        )
    if gives != wants:
        raise RecipeError(
            f"member {index} ({model.name}) has outputs of shape {gives}; the data has {wants[0]} classes.\n"
            "  A member returns one logit for each class: give its builder `classes` to match the data."
        )


def _gives_probabilities(model: keras.Model) -> bool:
    last = model.outputs[0]._keras_history.operation
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


class EpochSteps:
    """The training step of each epoch: traced again only where other layers train than in the epoch before.

    Raises:
        RecipeError: If `recipe.trains` names layers that the member does not have.
    """

    def __init__(self, recipe: Recipe, state: MemberState, strategy: tf.distribute.Strategy, gauges: BlockGauges):
        self._recipe, self._state, self._strategy, self._gauges = recipe, state, strategy, gauges
        self._freezer = Freezer(state.model, recipe.trains, recipe.epochs)
        self._step: Callable | None = None
        self._trained: tuple[str, ...] = ()

    def begin_epoch(self, epoch: int) -> Callable:
        """The step for this epoch, once its survival is set and its layers are frozen."""
        if self._recipe.survival is not None:
            set_survival(self._state.model, self._recipe.survival(epoch))
        trained = self._freezer.begin_epoch(epoch)
        if self._step is None or trained != self._trained:
            self._step, self._trained = self._make(), trained
        return self._step

    def end(self) -> None:
        """Nothing is frozen any more."""
        self._freezer.thaw()

    def _make(self) -> Callable:
        recipe, state = self._recipe, self._state
        return training_step(
            state.model,
            state.optimizer,
            recipe.loss,
            self._strategy,
            self._gauges,
            accumulate=recipe.accumulate,
            clip_norm=recipe.clip_norm,
            label_smoothing=recipe.label_smoothing,
            averages=state.averages,
        )


def copy_weights(initial: str | Callable[[int], str] | None, model: keras.Model, index: int) -> None:
    """Copy the weights of a trained network into `model` wherever layers of one place have the same shapes.

    The layers that have weights are taken in their order. A layer of other shapes keeps its random weights, such as the
    logits of another number of classes; there must be as many such layers in both, and at least one must fit.

    Args:
        initial: A `.keras` file, or a run folder, whose member `index` is taken; or a function of the index that
            returns one. None leaves the model as it is.
        model: The member, just built.
        index: Its index.

    Raises:
        RecipeError: If there is no such file, or the network in it is another one.
    """
    if initial is None:
        return
    path = _find(Path(initial(index) if callable(initial) else initial), index)
    try:
        source = load_member(path)
    except (RunError, VerificationError) as error:
        raise RecipeError(f"Recipe(initial=...): cannot load {path}: {error.__cause__ or error}") from error
    theirs, ours = _with_weights(source), _with_weights(model)
    if len(theirs) != len(ours):
        raise RecipeError(
            f"Recipe(initial=...): {path} has {len(theirs)} layers with weights; member {index} ({model.name}) has "
            f"{len(ours)}. Give the weights of a network of the same family and depth."
        )
    pairs = [(there, here) for there, here in zip(theirs, ours, strict=True) if _shapes(there) == _shapes(here)]
    if not pairs:
        raise RecipeError(f"Recipe(initial=...): no layer of {path} has the shapes of member {index} ({model.name}).")
    for there, here in pairs:
        here.set_weights(there.get_weights())


def _find(path: Path, index: int) -> Path:
    file = MemberFolder(path, index).model if path.is_dir() else path
    if not file.is_file():
        raise RecipeError(
            f"Recipe(initial=...): there is no {file}. Give a .keras file or a folder with finished members."
        )
    if file.suffix != ".keras":  # what is in an .h5 file runs as code, whatever `safe_mode` says
        raise RecipeError(
            f"Recipe(initial=...): {file} is no .keras file. Give one, or a folder with finished members."
        )
    return file


def _with_weights(model: keras.Model) -> list[keras.layers.Layer]:
    """The innermost layers that have weights, in their order."""
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    return [layer for layer in layers if not any(inner.weights for inner in layer._flatten_layers(include_self=False))]


def _shapes(layer) -> list[tuple]:
    return [tuple(weight.shape) for weight in layer.weights]
