"""`keras-committee train`: how does a recipe become trained members in a run folder?"""

from pathlib import Path
from typing import Any, Literal

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, set_option, standard_options
from keras_committee.cli.output import carried, only_json, print_json, say, say_next
from keras_committee.errors import DataError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

_STRATEGIES = ["auto", "one", "mirrored", "multiworker"]
_MULTIWORKER = "multiworker: each member on all hosts of TF_CONFIG; the same command on each host."


@click.command()
@click.argument("recipe", type=click.Path(), shell_complete=options.recipes)
@click.option(
    "--run", "folder", metavar="DIR", shell_complete=options.runs, help="The run folder; runs/RECIPE by default."
)
@set_option
@click.option("--members", "only", metavar="I,J,...", help="Train only these; other jobs may train others beside it.")
@click.option(
    "--workers", default="auto", show_default=True, metavar="N", help="Members that train at once, a number or auto."
)
@click.option("--strategy", default="auto", show_default=True, type=click.Choice(_STRATEGIES), help=_MULTIWORKER)
@click.option("--ray", "address", metavar="ADDRESS", help="Train on a Ray cluster: auto, HOST:PORT, local.")
@click.option("--per-member", metavar="cpus=N,gpus=N", help="What each member asks --ray for.")
@click.option("--deterministic", is_flag=True, help="Equal bits from equal runs, at a price in speed.")
@click.option(
    "--save-every",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Between checkpoints.",
)
@click.option("--allow-change", is_flag=True, help="Go on in a run folder of an edited recipe or other knobs.")
@click.option("--from-scratch", is_flag=True, help="Discard the state of unfinished members.")
@click.option("--profile", "steps", metavar="FIRST,LAST", help="Profile these steps of each member, for TensorBoard.")
@click.option("--smoke", is_flag=True, help="Two members, one epoch, a few batches: does it run at all?")
@json_option
@standard_options
@click.pass_obj
def train(
    settings: dict,
    recipe: str,
    folder: str | None,
    overrides: tuple[str, ...],
    only: str | None,
    workers: str,
    strategy: str,
    address: str | None,
    per_member: str | None,
    deterministic: bool,
    save_every: float,
    allow_change: bool,
    from_scratch: bool,
    steps: str | None,
    smoke: bool,
    as_json: bool,
) -> None:
    """Train every member of RECIPE. The same command again goes on where it was, to the very step."""
    many, members, profile = _parse_workers(workers), _parse_members(only), _parse_steps(steps)
    recipe_file = RecipeFile.read(recipe)
    knobs = recipe_file.resolve(list(overrides))
    _check_data_dir(knobs)
    folder = folder or str(Path("runs", f"{recipe_file.name}-smoke" if smoke else recipe_file.name))
    if strategy == "multiworker":
        from keras_committee import training

        if training.take_part(folder, recipe_file, knobs, smoke, many, training.Settings(deterministic=deterministic)):
            return
    run = Run.create(
        folder,
        recipe_file,
        knobs,
        smoke=smoke,
        command=settings["command"],
        allow_change=allow_change,
        shared=only is not None,
    )
    _warn_of_versions(run)
    with run.lock(shared=members is not None), only_json(as_json):
        built = recipe_file.build(knobs, smoke=smoke)
        from keras_committee.training import Settings, joined, train_committee

        how = Settings(save_seconds=save_every, deterministic=deterministic, profile=profile)
        with joined(address, per_member) as ray:
            train_committee(
                run, built, strategy, workers=many, members=members, settings=how, from_scratch=from_scratch, ray=ray
            )
    if as_json:
        finished = run.finished_members()
        print_json({"recipe": recipe_file.name, "run": folder, "knobs": knobs, "smoke": smoke, "finished": finished})
    else:
        _tell(folder, len(run.finished_members()), built.members)


def _tell(folder: str, finished: int, members: int) -> None:
    """What is there, and what comes next; members that other jobs train may still be missing."""
    missing = members - finished
    of_all = f" of {members}" if missing else ""
    say(f"{finished}{of_all} member{'' if finished == members == 1 else 's'} in {folder}.")
    say_next("evaluate", folder, *carried(finished if missing else None))


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
        wanted = "expected the first and the last step, counted from 1, such as 10,20"
        raise click.BadParameter(f"{wanted}. Received: {text!r}", param_hint="--profile")
    return int(parts[0]), int(parts[1])


def _check_data_dir(knobs: dict[str, Any]) -> None:
    """Raises DataError where the knob `data_dir` names nothing: told before TensorFlow is imported, or a run begun."""
    named = knobs.get("data_dir")
    if isinstance(named, str) and not Path(named).exists():
        raise DataError(
            f"no such data directory: {named} (knob data_dir). Nothing was begun.\n"
            "  Give the folder of the images: --set data_dir=PATH"
        )


def _warn_of_versions(run: Run) -> None:
    changed = run.changed_versions()
    if changed:
        click.echo(f"warning: {run.path} was begun with other versions: {', '.join(changed)}.", err=True)
        click.echo("  It goes on, but not bit for bit as it would have.", err=True)
