"""Which training step does a member take in an epoch?"""

from collections.abc import Callable

import tensorflow as tf

from keras_committee.layers import set_survival
from keras_committee.recipe import Recipe
from keras_committee.training.freezing import Freezer
from keras_committee.training.gauges import BlockGauges
from keras_committee.training.state import MemberState
from keras_committee.training.step import training_step


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
