"""What does a host do that trains members with the chief, but does not own the run folder?

It reads the checkpoints to go on from them, and writes nothing.
"""

import sys
import time
from pathlib import Path
from typing import Any, Literal

from keras_committee.errors import DivergedError, RecipeError, RunError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training.devices import enable_determinism, make_strategy
from keras_committee.training.multihost import HostGroup, read_cluster
from keras_committee.training.reporting import TrainingOptions
from keras_committee.training.signals import GracefulShutdown, TrainingStopped
from keras_committee.training.trainer import train_member

_FILE_SYNC_SECONDS = 60.0  # for what the chief wrote to be seen on a network file system


def run_as_worker(
    run_dir: str,
    recipe_file: RecipeFile,
    parameters: dict[str, Any],
    smoke: bool,
    workers: int | Literal["auto"],
    options: TrainingOptions,
) -> bool:
    """Train with the chief whatever it trains, unless this host is the chief; returns whether it did.

    Raises:
        RecipeError: If TF_CONFIG or `workers` does not fit.
        RunError: If the chief's run folder is not seen, or is one of another recipe.
        IncompleteError: If another host is gone.
        DivergedError, Interrupted: As on the chief.
    """
    if workers not in (1, "auto"):
        raise RecipeError(f"strategy 'multiworker' trains one member at a time. Received: --workers {workers}")
    cluster, run = read_cluster(), Run(Path(run_dir))
    if cluster.is_chief:
        return False
    recipe = recipe_file.build(parameters, smoke=smoke)
    if len(run.finished_members()) >= recipe.members:  # the chief has nothing to train either
        return True
    _print(f"{cluster.host_name(cluster.index)} waits for {cluster.host_name(0)}")
    if options.deterministic:
        enable_determinism()
    with HostGroup(cluster, run, options) as host_group:
        tf_strategy = make_strategy("multiworker", recipe.data.batch_size)
        host_group.on_strategy_created(tf_strategy)
        _check_same_command(_wait_for_run(run), recipe_file, parameters, smoke)
        with (
            GracefulShutdown() as shutdown,
            shutdown.mask_signals(),
        ):  # only now, as TensorFlow's server takes SIGTERM over
            try:
                _train_all(recipe, run, tf_strategy, host_group, shutdown, options)
            except TrainingStopped:
                raise shutdown.as_error(
                    f"{cluster.host_name(0)} saved what was reached", "The same command goes on."
                ) from None
    return True


def _train_all(recipe, run, tf_strategy, host_group, shutdown, options) -> None:
    splits = recipe.data.load()
    while (index := host_group.next_member(shutdown)) is not None:
        try:
            train_member(
                recipe, index, splits, run.member(index), tf_strategy, StderrReporter(), shutdown, options, host_group
            )
        except DivergedError as error:  # the chief tells it at the end, and goes on with the next one
            _print(f"error: {error}")


class StderrReporter:
    """A report to the terminal of this host: the chief's has the rest."""

    def on_resume(self, index: int, step: int) -> None:
        pass

    def on_steps_end(self, index: int, steps: int = 1) -> None:
        pass

    def on_epoch_end(self, index: int, row: dict[str, Any]) -> None:
        pass

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        _print(text)

    def note(self, text: str) -> None:
        _print(text)


def _wait_for_run(run: Run) -> Run:
    """The run that the chief has recorded, as soon as it is seen here."""
    deadline = time.monotonic() + _FILE_SYNC_SECONDS
    while True:
        try:
            return Run.open(run.path)
        except RunError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"the chief's run folder {run.path} is not seen on this host.\n"
                    "  Give every host the same --run folder, on a file system that they share."
                ) from error
        time.sleep(0.5)


def _check_same_command(run: Run, recipe_file: RecipeFile, parameters: dict[str, Any], smoke: bool) -> None:
    chief_parameters = {**run.parameters(), "--smoke": run.smoke}
    own_parameters = {**parameters, "--smoke": smoke}
    differences = [
        f"{key} {chief_parameters.get(key)} -> {value}"
        for key, value in own_parameters.items()
        if chief_parameters.get(key) != value
    ]
    differences = [text for text in differences if not text.startswith("data_dir ")]
    if run.recipe_file().source != recipe_file.source:
        differences.append(f"{recipe_file.path} has other lines")
    if differences:
        listing = "\n  ".join(differences)
        raise RunError(
            f"this host was given something else than the chief, whose run folder is {run.path}:\n  {listing}\n"
            "Give every host the same command and the same recipe."
        )


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
