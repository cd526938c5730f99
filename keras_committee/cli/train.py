"""`keras-committee train`: train the members of a recipe."""

from typing import Any, Literal

import click

from keras_committee import api
from keras_committee.api.training import resolve_recipe
from keras_committee.choices import STRATEGIES
from keras_committee.cli.options import json_option, recipe_argument, run_dir_option, set_option, standard_options
from keras_committee.cli.output import (
    forwarded_options,
    print_json,
    print_message,
    print_next_steps,
    reserve_stdout_for_json,
)
from keras_committee.errors import RunError
from keras_committee.huge_pages import restart_with_huge_pages
from keras_committee.tables import print_blocks, print_text, training_table


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
@click.option(
    "--track",
    metavar="TRACKER",
    help="Log the run, and what later commands do with it: mlflow[:URI], wandb[:PROJECT] or wandb:ENTITY/PROJECT; none "
    "ends it.",
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
    track: str | None,
    smoke: bool,
    as_json: bool,
) -> None:
    """Train the members of a recipe.

    Training can be interrupted at any time; run the same command again to resume from the last checkpoint.
    """
    num_workers, members, profile = _parse_workers(workers), _parse_members(member_indices), _parse_steps(profile_steps)
    recipe_file, parameters = resolve_recipe(recipe, overrides)
    if settings["is_program"]:
        restart_with_huge_pages()
    with reserve_stdout_for_json(as_json):
        run = api.train(
            recipe_file,
            run=run_dir,
            parameters=parameters,
            smoke=smoke,
            member_indices=members,
            workers=num_workers,
            strategy=strategy,
            ray_address=ray_address,
            resources_per_member=resources_per_member,
            deterministic=deterministic,
            checkpoint_every=checkpoint_every,
            allow_config_change=allow_config_change,
            restart=restart,
            profile=profile,
            stacked=stacked,
            track=track,
            command=settings["command"],
        )
    if strategy == "multiworker" and not _is_chief():
        return
    run_dir = run_dir or str(run.path)
    trained = _training_summary(run)
    if as_json:
        document = {"recipe": recipe_file.name, "run": run_dir, "parameters": parameters, "smoke": smoke}
        print_json({**document, "finished": run.members, "members": trained})
        return
    if trained:
        print_blocks([training_table(trained)])
    _print_summary(run_dir, len(run.members), run.planned_members)


def _is_chief() -> bool:
    """Return whether this host writes the run folder."""
    from keras_committee.training.multihost import read_cluster

    return read_cluster().is_chief


def _training_summary(run: api.Run) -> list[dict[str, Any]]:
    """Return the epoch kept, the validation scores and the time of each member."""
    try:
        return run.training
    except RunError as error:  # a damaged history or journal; the members are trained
        print_text(f"warning: {error}", err=True)
        return []


def _print_summary(run_dir: str, finished: int, members: int) -> None:
    """Print the number of finished members, some of which other processes may still train, and the next command."""
    missing = members - finished
    total = f" of {members}" if missing else ""
    print_message(f"{run_dir} has {finished}{total} member{'' if members == 1 else 's'}.")
    print_next_steps("evaluate", run_dir, *forwarded_options(finished if missing else None))


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
