"""Training of the members of a recipe."""

import contextlib
import importlib.util
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from keras_committee import tracking
from keras_committee.api.options import between, check_choice, check_conflicts, is_integer, option, require
from keras_committee.api.run import Run
from keras_committee.choices import STRATEGIES
from keras_committee.errors import DataError, RecipeError
from keras_committee.files import expand_home
from keras_committee.keras_config import loading_backend, select_backend
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run as RunFolder
from keras_committee.run import default_run_path, open_run
from keras_committee.step_display import displayed
from keras_committee.tables import print_text
from keras_committee.tracking.committee_history import CommitteeHistory

RecipeSource = str | Path | RecipeFile | Callable[..., Recipe]
Parameters = Mapping[str, Any] | Sequence[str]


@displayed
def train(
    recipe: RecipeSource,
    /,
    *,
    run: str | Path | Run | None = None,
    parameters: Parameters = (),
    smoke: bool = False,
    member_indices: Sequence[int] | None = None,
    workers: int | Literal["auto"] = "auto",
    strategy: str = "auto",
    ray_address: str | None = None,
    resources_per_member: str | None = None,
    deterministic: bool = False,
    checkpoint_every: float = 300.0,
    allow_config_change: bool = False,
    restart: bool = False,
    profile: tuple[int, int] | None = None,
    stacked: bool = False,
    track: str | None = None,
    command: str | None = None,
    **recipe_parameters: Any,
) -> Run:
    """Train the members of a recipe.

    Training can be interrupted at any time; the same call again resumes from the last checkpoint. A finished member is
    never trained again.

    A function is recorded in the run folder by its source, with the imports and definitions of its module or notebook
    that it uses, so that worker processes and later sessions build the same recipe.

    Args:
        recipe: The path of a recipe file, or a function that returns a `Recipe`; its arguments, with literal defaults,
            are the recipe parameters.
        run: The run folder; None is `runs/NAME` with the name of the file or function.
        parameters: Recipe parameters whose names are arguments of this function: a dict, or texts `"NAME=VALUE"`.
        smoke: Test the recipe: train two members for a few batches.
        member_indices: Train these members only. Other processes may train others of the same run.
        workers: Number of members trained in parallel, or `"auto"`.
        strategy: Distribution of each member over devices: `"auto"`, `"single"`, `"mirrored"`, or `"multiworker"`,
            which uses all hosts of TF_CONFIG; make the same call on each host.
        ray_address: Train on a Ray cluster: `"auto"`, `"HOST:PORT"` or `"local"`.
        resources_per_member: CPUs and GPUs of each member on the Ray cluster, `"cpus=N,gpus=N"`.
        deterministic: Make training bit-for-bit reproducible, at lower speed.
        checkpoint_every: Seconds between checkpoints.
        allow_config_change: Resume a run although the recipe or its parameters have changed.
        restart: Delete the checkpoints of unfinished members and train them again.
        profile: First and last step to profile of each member, for TensorBoard.
        stacked: Train all members as one JAX program on a GPU. Keras must not have been imported before.
        track: Log the run to a tracker: `"mlflow"` or `"mlflow:URI"`, `"wandb"`, `"wandb:PROJECT"` or
            `"wandb:ENTITY/PROJECT"`. The run folder records it, so that later steps on the run log to it, too, until
            `"none"` is passed. If the tracker fails, training continues, and what is missing is sent later.
        command: Command that resumes the run, for messages; None is the command line of these arguments.
        **recipe_parameters: Recipe parameters that differ from their defaults.

    Returns:
        The run.

    Raises:
        RecipeError: If the recipe, a parameter or an option is invalid; nothing was started.
        DataError: If the data is missing or invalid.
        RunError: If the folder belongs to another recipe or other parameters, or is in use.
        DivergedError: If every member diverged.
        IncompleteError: If some members failed; the others are finished.
        Interrupted: If training was interrupted; the progress is saved.

    Example:
        >>> run = train("recipes/digits_wrn.py", epochs=3, members=2)
    """
    if track is not None:
        tracking.Tracking.parse(track)  # raises
    recipe_file, values = resolve_recipe(recipe, parameters, recipe_parameters)
    check_choice("strategy", strategy, STRATEGIES)
    require(
        "workers",
        workers == "auto" or is_integer(workers, 1),
        "'auto' or a positive integer",
        workers,
    )
    require("checkpoint_every", between(checkpoint_every, -1e-9), "0 or more seconds", checkpoint_every)
    if stacked:
        _prepare_stack(
            {
                "strategy": strategy != "auto",
                "ray_address": ray_address is not None,
                "workers": workers != "auto",
                "deterministic": deterministic,
                "profile": profile is not None,
            }
        )
    path = run.path if isinstance(run, Run) else expand_home(run or default_run_path(recipe_file, smoke=smoke))
    options = ["--run", path, *(["--smoke"] if smoke else []), *(["--track", track] if track else [])]
    command = command or recipe_command("train", recipe_file, path, options, values)
    if strategy == "multiworker":
        from keras_committee import training

        options = training.TrainingOptions(deterministic=deterministic)
        if training.run_as_worker(str(path), recipe_file, values, smoke, workers, options):
            return Run(path)
    opened = open_run(
        recipe_file,
        values,
        path=path,
        command=command,
        smoke=smoke,
        allow_config_change=allow_config_change,
        shared=member_indices is not None,
        check=None if stacked else partial(_check_teacher, restart=restart),
    )
    with opened as (folder, built), contextlib.ExitStack() as stack:
        _warn_about_changed_versions(folder)
        if restart and len(folder.finished_members()) < built.members:
            CommitteeHistory(folder.path).clear()
        tracking.record(folder.path, track)
        stack.enter_context(tracking.sending(folder.path))
        if stacked:
            _train_stacked(folder, built, member_indices, checkpoint_every, restart)
        else:
            with loading_backend():
                from keras_committee.training import TrainingOptions, connect, train_committee

            options = TrainingOptions(
                checkpoint_seconds=checkpoint_every, deterministic=deterministic, profile_steps=profile
            )
            with connect(ray_address, resources_per_member) as ray:
                train_committee(
                    folder,
                    built,
                    strategy,
                    workers=workers,
                    members=member_indices,
                    options=options,
                    restart=restart,
                    ray_cluster=ray,
                )
    return Run(path)


def resolve_recipe(
    recipe: RecipeSource, parameters: Parameters = (), recipe_parameters: Mapping[str, Any] | None = None
) -> tuple[RecipeFile, dict[str, Any]]:
    """Return the recipe file and all its parameters as `resolve_parameters`, for a training.

    Raises:
        RecipeError: If the recipe or a parameter is invalid.
        DataError: If the folder of the parameter `data_dir` is missing.
    """
    recipe_file, values = resolve_parameters(recipe, parameters, recipe_parameters)
    data_dir = values.get("data_dir")
    if isinstance(data_dir, str) and not expand_home(data_dir).exists():
        raise DataError(
            f"no such data directory: {data_dir} (parameter data_dir). No run was started.\n"
            "  Set the folder of the images: --set data_dir=PATH"
        )
    return recipe_file, values


def resolve_parameters(
    recipe: RecipeSource, parameters: Parameters = (), recipe_parameters: Mapping[str, Any] | None = None
) -> tuple[RecipeFile, dict[str, Any]]:
    """Return the recipe file and all its parameters, without executing it.

    Args:
        recipe: As in `train`.
        parameters: As in `train`.
        recipe_parameters: Further parameters.

    Raises:
        RecipeError: If the recipe or a parameter is invalid.
    """
    recipe_file = _recipe_file(recipe)
    given = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
    if recipe_parameters:
        texts = {} if isinstance(given, dict) else recipe_file.resolve(given)
        given = {**texts, **(given if isinstance(given, dict) else {}), **recipe_parameters}
    return recipe_file, recipe_file.resolve(given)


def _recipe_file(recipe: RecipeSource) -> RecipeFile:
    if isinstance(recipe, RecipeFile):
        return recipe
    if isinstance(recipe, str | Path):
        return RecipeFile.read(recipe)
    if isinstance(recipe, Recipe):
        raise RecipeError(
            "a recipe is a function that returns the Recipe, or the path of a file with one: the run folder records "
            "its source, from which worker processes and later commands build the recipe again. Received: a Recipe.\n"
            "  Put it into a function: def recipe(members=4): return Recipe(...)"
        )
    return RecipeFile.from_function(recipe)


def recipe_command(
    name: str, recipe_file: RecipeFile, run: Path, words: Sequence[Any], parameters: Mapping[str, Any]
) -> str:
    """Return the command line of a recipe; that of a function takes the recipe that a run recorded.

    Args:
        name: Name of the command.
        recipe_file: The recipe.
        run: The run folder that records it.
        words: Arguments and options after the recipe.
        parameters: All recipe parameters; those that differ from their defaults are added with `--set`.
    """
    source = recipe_file.path if recipe_file.path.exists() else run / "recipe.py"
    changed = {name: value for name, value in parameters.items() if value != recipe_file.defaults[name]}
    settings = [word for name, value in changed.items() for word in ("--set", f"{name}={value}")]
    return shlex.join(map(str, ["keras-committee", name, source, *words, *settings]))


def _prepare_stack(contradicting: Mapping[str, bool]) -> None:
    """Choose Keras' JAX backend for this process, before the recipe imports Keras.

    Raises:
        RecipeError: If another option contradicts `--stacked`, JAX is not installed, or Keras runs on another backend.
    """
    check_conflicts(
        {
            f"--stacked trains all members in one program; leave out {option(name)}": is_used
            for name, is_used in contradicting.items()
        }
    )
    if importlib.util.find_spec("jax") is None:
        raise RecipeError("--stacked needs the package jax: pip install keras-committee[jax]")
    select_backend("jax")


def _train_stacked(
    folder: RunFolder, built: Recipe, member_indices: Sequence[int] | None, checkpoint_every: float, restart: bool
) -> None:
    with loading_backend():
        from keras_committee.stacked import StackedOptions, train_stacked

    train_stacked(
        folder,
        built,
        members=member_indices,
        options=StackedOptions(checkpoint_seconds=checkpoint_every),
        restart=restart,
        note=partial(print_text, err=True),
    )


def _check_teacher(run: RunFolder, recipe: Recipe, *, restart: bool) -> None:
    """Check the teacher before a run folder is made for its student."""
    if recipe.teacher is None:
        return
    with loading_backend():
        from keras_committee.training.distillation import check_teacher

    check_teacher(recipe, run, restart=restart)


def _warn_about_changed_versions(run: RunFolder) -> None:
    if changed := run.changed_versions():
        logging.getLogger(__name__).warning(
            "warning: %s was started with other versions: %s.\n"
            "  Training resumes, but the result will not be bit-for-bit reproducible.",
            run.path,
            ", ".join(changed),
        )
