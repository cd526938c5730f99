"""`keras-committee train`: train the members of a recipe."""

import importlib.util
from functools import partial
from typing import Any, Literal

import click

from keras_committee.choices import STRATEGIES
from keras_committee.cli.options import json_option, recipe_argument, run_dir_option, set_option, standard_options
from keras_committee.cli.output import (
    forwarded_options,
    print_json,
    print_message,
    print_next_steps,
    reserve_stdout_for_json,
)
from keras_committee.errors import DataError, RecipeError, RunError
from keras_committee.files import expand_home
from keras_committee.huge_pages import restart_with_huge_pages
from keras_committee.keras_config import loading_backend, select_backend
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run, default_run_path, open_run
from keras_committee.tables import print_text, print_training


@click.command()
@recipe_argument
@run_dir_option
@set_option
@click.option(
    "--members",
    "member_indices",
    metavar="I,J,...",
    help="Train these members only. Other processes may train others of the same run.",
)
@click.option(
    "--workers", default="auto", show_default=True, metavar="N", help="Number of members trained in parallel, or auto."
)
@click.option(
    "--strategy",
    default="auto",
    show_default=True,
    type=click.Choice(STRATEGIES),
    help="Distribution of each member over devices. multiworker uses all hosts of TF_CONFIG; run the same command on "
    "each host.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Train on a Ray cluster: auto, HOST:PORT or local.")
@click.option(
    "--resources-per-member", metavar="cpus=N,gpus=N", help="CPUs and GPUs of each member on the Ray cluster."
)
@click.option("--deterministic", is_flag=True, help="Make training bit-for-bit reproducible, at lower speed.")
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between checkpoints, in seconds.",
)
@click.option(
    "--allow-config-change", is_flag=True, help="Resume a run although the recipe or its parameters have changed."
)
@click.option("--restart", is_flag=True, help="Delete the checkpoints of unfinished members and train them again.")
@click.option(
    "--profile",
    "profile_steps",
    metavar="FIRST,LAST",
    help="Profile these training steps of each member for TensorBoard.",
)
@click.option(
    "--stacked",
    is_flag=True,
    help="Train all members as one JAX program on a GPU. For members of one architecture and images in memory.",
)
@click.option("--smoke", is_flag=True, help="Test the recipe: train two members for a few batches.")
@json_option
@standard_options
@click.pass_obj
def train(
    settings: dict,
    recipe: str,
    run_dir: str | None,
    overrides: tuple[str, ...],
    member_indices: str | None,
    workers: str,
    strategy: str,
    ray_address: str | None,
    resources_per_member: str | None,
    deterministic: bool,
    checkpoint_every: float,
    allow_config_change: bool,
    restart: bool,
    profile_steps: str | None,
    stacked: bool,
    smoke: bool,
    as_json: bool,
) -> None:
    """Train the members of a recipe.

    Training can be interrupted at any time; run the same command again to resume from the last checkpoint.
    """
    num_workers, members, profile = _parse_workers(workers), _parse_members(member_indices), _parse_steps(profile_steps)
    recipe_file = RecipeFile.read(recipe)
    parameters = recipe_file.resolve(list(overrides))
    _check_data_dir(parameters)
    if settings["is_program"]:
        restart_with_huge_pages()
    if stacked:
        _prepare_stack(strategy != "auto", ray_address, workers != "auto", deterministic, profile_steps)
    run_dir = run_dir or str(default_run_path(recipe_file, smoke=smoke))
    if strategy == "multiworker":
        from keras_committee import training

        if training.run_as_worker(
            run_dir, recipe_file, parameters, smoke, num_workers, training.TrainingOptions(deterministic=deterministic)
        ):
            return
    opened = open_run(
        recipe_file,
        parameters,
        path=run_dir,
        command=settings["command"],
        smoke=smoke,
        allow_config_change=allow_config_change,
        shared=members is not None,
    )
    with reserve_stdout_for_json(as_json), opened as (run, built):
        _warn_about_changed_versions(run)
        if stacked:
            with loading_backend():
                from keras_committee.stacked import StackedOptions, train_stacked

            train_stacked(
                run,
                built,
                members=members,
                options=StackedOptions(checkpoint_seconds=checkpoint_every),
                restart=restart,
                note=partial(print_text, err=True),
            )
        else:
            with loading_backend():
                from keras_committee.training import TrainingOptions, connect, train_committee

            options = TrainingOptions(
                checkpoint_seconds=checkpoint_every, deterministic=deterministic, profile_steps=profile
            )
            with connect(ray_address, resources_per_member) as ray:
                train_committee(
                    run,
                    built,
                    strategy,
                    workers=num_workers,
                    members=members,
                    options=options,
                    restart=restart,
                    ray_cluster=ray,
                )
    finished, members_trained = run.finished_members(), _training_summary(run, built)
    if as_json:
        document = {"recipe": recipe_file.name, "run": run_dir, "parameters": parameters, "smoke": smoke}
        print_json({**document, "finished": finished, "members": members_trained})
    else:
        if members_trained:
            print_training(members_trained)
        _print_summary(run_dir, len(finished), built.members)


def _training_summary(run: Run, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the epoch kept, the validation scores and the time of each member."""
    from keras_committee.evaluation import training_summary

    try:
        return training_summary(run, recipe)
    except RunError as error:  # a damaged history or journal; the members are trained
        print_text(f"warning: {error}", err=True)
        return []


def _print_summary(run_dir: str, finished: int, members: int) -> None:
    """Print the number of finished members, some of which other processes may still train, and the next command."""
    missing = members - finished
    total = f" of {members}" if missing else ""
    print_message(f"{run_dir} has {finished}{total} member{'' if members == 1 else 's'}.")
    print_next_steps("evaluate", run_dir, *forwarded_options(finished if missing else None))


def _prepare_stack(
    has_strategy: bool, ray_address: str | None, has_workers: bool, deterministic: bool, profile_steps: str | None
) -> None:
    """Choose Keras' JAX backend for this process, before the recipe imports Keras.

    Raises:
        click.UsageError: If another option contradicts `--stacked`.
        RecipeError: If JAX is not installed, or Keras runs on another backend already.
    """
    contradicting = {
        "--strategy": has_strategy,
        "--ray-address": ray_address is not None,
        "--workers": has_workers,
        "--deterministic": deterministic,
        "--profile": profile_steps is not None,
    }
    if options := [option for option, is_used in contradicting.items() if is_used]:
        raise click.UsageError(f"--stacked trains all members in one program; leave out {options[0]}.")
    if importlib.util.find_spec("jax") is None:
        raise RecipeError("--stacked needs the package jax: pip install keras-committee[jax]")
    select_backend("jax")


def _parse_workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"must be auto or a positive integer. Received: {text!r}", param_hint="'--workers'")
    return int(text)


def _parse_members(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"must be member indices such as 0,3. Received: {text!r}", param_hint="'--members'")
    return [int(part) for part in parts]


def _parse_steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        message = f"must be the first and the last step, counted from 1, such as 10,20. Received: {text!r}"
        raise click.BadParameter(message, param_hint="'--profile'")
    return int(parts[0]), int(parts[1])


def _check_data_dir(parameters: dict[str, Any]) -> None:
    """Raise DataError if the parameter `data_dir` is missing, before TensorFlow is imported and a run is created."""
    data_dir = parameters.get("data_dir")
    if isinstance(data_dir, str) and not expand_home(data_dir).exists():
        raise DataError(
            f"no such data directory: {data_dir} (parameter data_dir). No run was started.\n"
            "  Set the folder of the images: --set data_dir=PATH"
        )


def _warn_about_changed_versions(run: Run) -> None:
    changed = run.changed_versions()
    if changed:
        print_text(
            f"warning: {run.path} was started with other versions: {', '.join(changed)}.\n"
            "  Training resumes, but the result will not be bit-for-bit reproducible.",
            err=True,
        )
