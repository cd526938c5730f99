"""A host that trains members together with the chief.

It reads the checkpoints to resume, and writes nothing but temporary files.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf

from keras_committee.errors import DivergedError, RecipeError, RunError
from keras_committee.files import expand_home
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run, is_moved_data
from keras_committee.signals import GracefulShutdown, TrainingStopped
from keras_committee.training.devices import enable_determinism, make_strategy
from keras_committee.training.multihost import HostGroup, read_cluster
from keras_committee.training.reporting import Phase, TrainingOptions
from keras_committee.training.temp_dir import own_temp_dir
from keras_committee.training.trainer import train_member
from keras_committee.training_run import load_splits

_FILE_SYNC_SECONDS = 60.0  # for the chief's files to appear on a network file system


def run_as_worker(
    run_dir: str,
    recipe_file: RecipeFile,
    parameters: dict[str, Any],
    smoke: bool,
    workers: int | Literal["auto"],
    options: TrainingOptions,
) -> bool:
    """Train with the chief all members that it trains, unless this host is the chief; return whether it did.

    Args:
        run_dir: The chief's run folder.
        recipe_file: The recipe.
        parameters: Its resolved parameters.
        smoke: Whether this is a smoke run.
        workers: Number of members to train at once; only 1 and `"auto"` are allowed.
        options: Options of the training.

    Raises:
        RecipeError: If TF_CONFIG or `workers` is invalid.
        RunError: If the chief's run folder does not appear, or was created by another command.
        IncompleteError: If another host is lost.
        DivergedError, Interrupted: As on the chief.
    """
    if workers not in (1, "auto"):
        raise RecipeError(f"strategy 'multiworker' trains one member at a time. Received: --workers {workers}")
    cluster, run = read_cluster(), Run(expand_home(run_dir))
    if cluster.is_chief:
        return False
    recipe = recipe_file.build(parameters, smoke=smoke)
    if len(run.finished_members()) >= recipe.members:  # the chief has nothing to train, either
        return True
    chief = cluster.host_name(0)
    _print(f"{cluster.host_name(cluster.index)} is waiting for {chief}")
    if options.deterministic:
        enable_determinism()
    with HostGroup(cluster, run, options) as host_group:
        tf_strategy = make_strategy("multiworker", recipe.data.batch_size)
        host_group.on_strategy_created(tf_strategy)
        _check_same_command(_wait_for_run(run), recipe_file, parameters, smoke, recipe)
        recipe, precision_line = run.begin_precision(recipe)
        if precision_line:
            _print(precision_line)
        # Only now, as TensorFlow's server replaces the handler of SIGTERM.
        with GracefulShutdown() as shutdown, shutdown.mask_signals(), own_temp_dir(run):
            try:
                _train_all(recipe, run, tf_strategy, host_group, shutdown, options)
            except TrainingStopped:
                hint = "To resume, run the same command on every host."
                raise shutdown.as_error(f"the progress is saved on {chief}", hint) from None
    return True


class StderrReporter:
    """Prints events on this host; the chief displays the progress."""

    def on_resume(self, index: int, step: int) -> None:
        pass

    def on_phase(self, index: int, epoch: int, phase: Phase) -> None:
        pass

    def on_steps_end(self, index: int, steps: int = 1) -> None:
        pass

    def on_epoch_end(self, index: int, row: dict[str, Any]) -> None:
        pass

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        _print(text)

    def note(self, text: str) -> None:
        _print(text)


def _train_all(
    recipe: Recipe,
    run: Run,
    tf_strategy: tf.distribute.Strategy,
    host_group: HostGroup,
    shutdown: GracefulShutdown,
    options: TrainingOptions,
) -> None:
    splits, reporter = load_splits(recipe), StderrReporter()
    while (index := host_group.next_member(shutdown)) is not None:
        if (predecessor := recipe.predecessor(index)) is not None:
            _wait_for_model(run, predecessor)
        try:
            train_member(recipe, index, splits, run.member(index), tf_strategy, reporter, shutdown, options, host_group)
        except DivergedError as error:  # the chief reports it at the end, and continues with the next member
            _print(f"error: {error}")


def _wait_for_model(run: Run, index: int) -> None:
    """Wait until the finished member, from which the next one starts, is visible here."""
    member = run.member(index)

    def check() -> None:
        if not member.finished:
            raise RunError("its training has not ended")

    _wait_until_visible(check, f"{member.model} of the chief")


def _wait_for_run(run: Run) -> Run:
    """Return the run that the chief has recorded, once it is visible here."""

    def check() -> None:
        if Run.open(run.path).precision is None:  # the chief records it before it waits for the other hosts
            raise RunError("its training has not begun")

    _wait_until_visible(check, f"the chief's run folder {run.path}")
    return run


def _wait_until_visible(check: Callable[[], None], what: str) -> None:
    """Wait until `check` raises no RunError, for as long as files take to appear on other hosts. Raises RunError."""
    deadline = time.monotonic() + _FILE_SYNC_SECONDS
    while True:
        try:
            return check()
        except RunError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{what} is not visible on this host.\n"
                    "  Give every host the same --run folder, on a file system that they share."
                ) from error
        time.sleep(0.5)


def _check_same_command(
    run: Run, recipe_file: RecipeFile, parameters: dict[str, Any], smoke: bool, recipe: Recipe
) -> None:
    chief_parameters = {**run.parameters(), "--smoke": run.smoke}
    own_parameters = {**parameters, "--smoke": smoke}
    differences = [
        f"{name} {chief_parameters.get(name)} -> {value}"
        for name, value in own_parameters.items()
        if chief_parameters.get(name) != value and not is_moved_data(name, chief_parameters, own_parameters, recipe)
    ]
    if run.recipe_file().files() != recipe_file.files():
        differences.append(f"{recipe_file.path} has other content")
    if differences:
        listing = "\n  ".join(differences)
        raise RunError(
            f"this host's command differs from the chief's, whose run folder is {run.path}:\n  {listing}\n"
            "Run the same command with the same recipe on every host."
        )


def _print(text: str) -> None:
    """Print a line, unless stderr is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
