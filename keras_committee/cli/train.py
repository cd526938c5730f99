"""`keras-committee train`: how does a recipe become trained members in a run folder?"""

from pathlib import Path
from typing import Any, Literal

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, set_option, standard_options
from keras_committee.cli.output import (
    forwarded_options,
    print_json,
    print_message,
    print_next_steps,
    reserve_stdout_for_json,
)
from keras_committee.errors import DataError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

_STRATEGIES = ["auto", "single", "mirrored", "multiworker"]
_STRATEGY_HELP = "multiworker: each member on all hosts of TF_CONFIG; the same command on each host."


@click.command()
@click.argument("recipe", type=click.Path(), shell_complete=options.complete_recipes)
@click.option(
    "--run",
    "run_dir",
    metavar="DIR",
    shell_complete=options.complete_runs,
    help="The run folder; runs/RECIPE by default.",
)
@set_option
@click.option(
    "--members", "member_indices", metavar="I,J,...", help="Train only these; other jobs may train others beside it."
)
@click.option(
    "--workers", default="auto", show_default=True, metavar="N", help="Members that train at once, a number or auto."
)
@click.option("--strategy", default="auto", show_default=True, type=click.Choice(_STRATEGIES), help=_STRATEGY_HELP)
@click.option("--ray-address", metavar="ADDRESS", help="Train on a Ray cluster: auto, HOST:PORT, local.")
@click.option("--resources-per-member", metavar="cpus=N,gpus=N", help="What each member asks --ray-address for.")
@click.option("--deterministic", is_flag=True, help="Equal bits from equal runs, at a price in speed.")
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Between checkpoints.",
)
@click.option("--allow-config-change", is_flag=True, help="Go on in a run folder of an edited recipe or other knobs.")
@click.option("--restart", is_flag=True, help="Discard the state of unfinished members.")
@click.option(
    "--profile", "profile_steps", metavar="FIRST,LAST", help="Profile these steps of each member, for TensorBoard."
)
@click.option("--smoke", is_flag=True, help="Two members, one epoch, a few batches: does it run at all?")
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
    smoke: bool,
    as_json: bool,
) -> None:
    """Train every member of RECIPE. The same command again goes on where it was, to the very step."""
    num_workers, members, profile = _parse_workers(workers), _parse_members(member_indices), _parse_steps(profile_steps)
    recipe_file = RecipeFile.read(recipe)
    parameters = recipe_file.resolve(list(overrides))
    _check_data_dir(parameters)
    run_dir = run_dir or str(Path("runs", f"{recipe_file.name}-smoke" if smoke else recipe_file.name))
    if strategy == "multiworker":
        from keras_committee import training

        if training.run_as_worker(
            run_dir, recipe_file, parameters, smoke, num_workers, training.TrainingOptions(deterministic=deterministic)
        ):
            return
    run = Run.create(
        run_dir,
        recipe_file,
        parameters,
        smoke=smoke,
        command=settings["command"],
        allow_config_change=allow_config_change,
        shared=member_indices is not None,
    )
    _warn_about_changed_versions(run)
    with run.lock(shared=members is not None), reserve_stdout_for_json(as_json):
        built = recipe_file.build(parameters, smoke=smoke)
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
    if as_json:
        finished = run.finished_members()
        print_json(
            {"recipe": recipe_file.name, "run": run_dir, "knobs": parameters, "smoke": smoke, "finished": finished}
        )
    else:
        _print_summary(run_dir, len(run.finished_members()), built.members)


def _print_summary(folder: str, finished: int, members: int) -> None:
    """What is there, and what comes next; members that other jobs train may still be missing."""
    missing = members - finished
    total = f" of {members}" if missing else ""
    print_message(f"{finished}{total} member{'' if finished == members == 1 else 's'} in {folder}.")
    print_next_steps("evaluate", folder, *forwarded_options(finished if missing else None))


def _parse_workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"expected auto or a number of 1 or more. Received: {text!r}", param_hint="--workers")
    return int(text)


def _parse_members(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"expected indices such as 0,3. Received: {text!r}", param_hint="--members")
    return [int(part) for part in parts]


def _parse_steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        expected = "expected the first and the last step, counted from 1, such as 10,20"
        raise click.BadParameter(f"{expected}. Received: {text!r}", param_hint="--profile")
    return int(parts[0]), int(parts[1])


def _check_data_dir(parameters: dict[str, Any]) -> None:
    """Raises DataError where the knob `data_dir` names nothing: told before TensorFlow is imported, or a run begun."""
    data_dir = parameters.get("data_dir")
    if isinstance(data_dir, str) and not Path(data_dir).exists():
        raise DataError(
            f"no such data directory: {data_dir} (knob data_dir). Nothing was begun.\n"
            "  Give the folder of the images: --set data_dir=PATH"
        )


def _warn_about_changed_versions(run: Run) -> None:
    changed = run.changed_versions()
    if changed:
        click.echo(f"warning: {run.path} was begun with other versions: {', '.join(changed)}.", err=True)
        click.echo("  It goes on, but not bit for bit as it would have.", err=True)
