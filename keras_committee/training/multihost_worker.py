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
from keras_committee.training.devices import be_deterministic, make_strategy
from keras_committee.training.multihost import Team, read_cluster
from keras_committee.training.reporting import Settings
from keras_committee.training.signals import Interruption, Stopped
from keras_committee.training.trainer import train_member

_SECONDS_FOR_FILES = 60.0  # for what the chief wrote to be seen on a network file system


def take_part(
    folder: str,
    recipe_file: RecipeFile,
    knobs: dict[str, Any],
    smoke: bool,
    workers: int | Literal["auto"],
    settings: Settings,
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
    cluster, run = read_cluster(), Run(Path(folder))
    if cluster.is_chief:
        return False
    recipe = recipe_file.build(knobs, smoke=smoke)
    if len(run.finished_members()) >= recipe.members:  # the chief has nothing to train either
        return True
    _say(f"{cluster.name(cluster.index)} waits for {cluster.name(0)}")
    if settings.deterministic:
        be_deterministic()
    with Team(cluster, run, settings) as team:
        devices = make_strategy("multiworker", recipe.data.batch_size)
        team.joined(devices)
        _check_same(_opened(run), recipe_file, knobs, smoke)
        with Interruption() as stop, stop.deferred():  # only now, as TensorFlow's server takes SIGTERM over
            try:
                _train_all(recipe, run, devices, team, stop, settings)
            except Stopped:
                raise stop.ended(f"{cluster.name(0)} saved what was reached", "The same command goes on.") from None
    return True


def _train_all(recipe, run, devices, team, stop, settings) -> None:
    splits = recipe.data.load()
    while (index := team.next_member(stop)) is not None:
        try:
            train_member(recipe, index, splits, run.member(index), devices, Told(), stop, settings, team)
        except DivergedError as error:  # the chief tells it at the end, and goes on with the next one
            _say(f"error: {error}")


class Told:
    """A report to the terminal of this host: the chief's has the rest."""

    def resumed(self, index: int, step: int) -> None:
        pass

    def steps_ended(self, index: int, steps: int = 1) -> None:
        pass

    def epoch_ended(self, index: int, row: dict[str, Any]) -> None:
        pass

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        _say(text)

    def note(self, text: str) -> None:
        _say(text)


def _opened(run: Run) -> Run:
    """The run that the chief has recorded, as soon as it is seen here."""
    until = time.monotonic() + _SECONDS_FOR_FILES
    while True:
        try:
            return Run.open(run.path)
        except RunError as error:
            if time.monotonic() > until:
                raise RunError(
                    f"the chief's run folder {run.path} is not seen on this host.\n"
                    "  Give every host the same --run folder, on a file system that they share."
                ) from error
        time.sleep(0.5)


def _check_same(run: Run, recipe_file: RecipeFile, knobs: dict[str, Any], smoke: bool) -> None:
    theirs = {**run.knobs(), "--smoke": run.smoke}
    ours = {**knobs, "--smoke": smoke}
    other = [f"{key} {theirs.get(key)} -> {value}" for key, value in ours.items() if theirs.get(key) != value]
    other = [text for text in other if not text.startswith("data_dir ")]
    if run.recipe_file().source != recipe_file.source:
        other.append(f"{recipe_file.path} has other lines")
    if other:
        listing = "\n  ".join(other)
        raise RunError(
            f"this host was given something else than the chief, whose run folder is {run.path}:\n  {listing}\n"
            "Give every host the same command and the same recipe."
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
