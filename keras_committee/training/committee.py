"""Which members are still to be trained, and with what?"""

import time

from keras_committee.errors import RecipeError
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.training.member import train_member
from keras_committee.training.monitoring import Monitor
from keras_committee.training.strategy import make_strategy


def train_committee(run: Run, recipe: Recipe, strategy: str = "auto") -> None:
    """Train every member of `recipe` that is not finished in `run`, one after another.

    A finished member is never trained again. The caller holds the lock of the run folder.

    Args:
        run: The run folder; it gets models, histories, TensorBoard logs and a journal.
        recipe: What to train.
        strategy: `"auto"`, `"one"` or `"mirrored"`, see `strategy.make_strategy`.

    Raises:
        DataError: If the pre-flight of the data finds anything; nothing was trained then.
        RecipeError: If the strategy, the batch size or a model does not fit, or there is no validation split.
        DivergedError: If a member diverges; the members before it are kept.
    """
    finished = run.finished_members()
    missing = [index for index in range(recipe.members) if index not in finished]
    if not missing:
        return
    devices = make_strategy(strategy, recipe.data.batch_size)
    splits = recipe.data.load()
    if not len(splits.validation):
        raise RecipeError(f"{recipe.data.name} has no validation split. Give its `validation` a count or a fraction.")
    run.journal("training_started", members=missing, kept=finished, devices=devices.num_replicas_in_sync)
    with Monitor(run, recipe, splits.validation.labels, splits.steps_per_epoch, missing) as monitor:
        for index in missing:
            _journalled(run, recipe, index, splits, devices, monitor)
    run.journal("training_finished")


def _journalled(run, recipe, index, splits, devices, monitor) -> None:
    run.journal("member_started", member=index, seed=recipe.seed + index)
    started = time.monotonic()
    try:
        with monitor.member(index):
            train_member(recipe, index, splits, run.member(index), devices, monitor)
    except BaseException as error:
        run.journal("member_failed", member=index, error=f"{type(error).__name__}: {error}")
        raise
    run.journal("member_finished", member=index, seconds=round(time.monotonic() - started, 1))
