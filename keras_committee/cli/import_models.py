"""`keras-committee adopt`: how do trained models from elsewhere become the members of a run?"""

from pathlib import Path
from typing import Any

import click

from keras_committee.cli import options
from keras_committee.cli.options import allow_twins_option, json_option, set_option, standard_options
from keras_committee.cli.output import only_json, print_json, say, say_next
from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

_SCALE = "Pixels that they were trained on: 0..255 (default), 0..1, -1..1, torch, caffe, or MEAN/STD."


@click.command()
@click.argument("recipe", type=click.Path(), shell_complete=options.recipes)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--run", "folder", metavar="DIR", shell_complete=options.runs, help="The run folder; runs/RECIPE by default."
)
@set_option
@click.option("--scale", "scales", multiple=True, metavar="[MODEL=]SCALE", help=_SCALE)
@click.option("--labels", multiple=True, metavar="[MODEL=]FILE", help="Names of the outputs in order, one a line.")
@click.option("--reorder", is_flag=True, help="Bring outputs into the data's order of the same classes.")
@click.option("--resize", is_flag=True, help="Let a model of another image size resize the images itself.")
@click.option("--signature", default="serving_default", show_default=True, metavar="NAME", help="Of the SavedModels.")
@click.option("--output", metavar="NAME", help="Of the signature, where it has several.")
@allow_twins_option
@click.option("--as-declared", is_flag=True, help="Adopt although the data contradict --scale or --labels.")
@json_option
@standard_options
@click.pass_obj
def adopt(
    settings: dict,
    recipe: str,
    models: tuple[str, ...],
    folder: str | None,
    overrides: tuple[str, ...],
    scales: tuple[str, ...],
    labels: tuple[str, ...],
    reorder: bool,
    resize: bool,
    signature: str,
    output: str | None,
    allow_twins: bool,
    as_declared: bool,
    as_json: bool,
) -> None:
    """Make trained models from elsewhere the members of a run.

    Each MODEL is a .keras file or the folder of a SavedModel; the run is one on the data of RECIPE. Nothing is trained.
    """
    _require_models(models)
    scale_of, labels_of = _by_model(scales, models, "--scale"), _by_model(labels, models, "--labels")
    recipe_file = RecipeFile.read(recipe)
    folder = folder or str(Path("runs", recipe_file.name))
    knobs = _with_places(recipe_file, folder, list(overrides), len(models))
    names = {model: _read_labels(labels_of[model]) for model in models if model in labels_of}
    run = Run.create(folder, recipe_file, knobs, command=settings["command"])
    with run.lock(), only_json(as_json):
        built = recipe_file.build(knobs)
        from keras_committee.evaluation.import_models import Allowed, Offer, adopt

        of_all = {"signature": signature, "output": output}
        scale = {model: _scale(scale_of.get(model, "0..255")) for model in models}
        offers = [Offer(path=Path(each), scale=scale[each], classes=names.get(each), **of_all) for each in models]
        allowed = Allowed(reorder=reorder, resize=resize, twins=allow_twins, as_declared=as_declared)
        records = adopt(run, built, offers, allowed)
    if as_json:
        print_json({"recipe": recipe_file.name, "run": folder, "knobs": knobs, "adopted": records})
        return
    for record in records:
        click.echo(_told(record))
    say(f"{len(run.finished_members())} members in {folder}.")
    say_next("evaluate", folder)


def _require_models(models: tuple[str, ...]) -> None:
    """Raises RecipeError for what is not there: told before TensorFlow is imported, or a run begun."""
    gone = [model for model in models if not Path(model).exists()]
    if gone:
        raise RecipeError(
            f"there is no model {', '.join(gone)}. Nothing was begun.\n"
            "  Give .keras files and folders of SavedModels: keras-committee adopt RECIPE MODEL..."
        )


def _by_model(values: tuple[str, ...], models: tuple[str, ...], option: str) -> dict[str, str]:
    """`[MODEL=]VALUE` as a value for each model that is meant: the last one that names it, else one that names none."""
    for_all = [value for value in values if value.rpartition("=")[0] not in models]
    if any("=" in value for value in for_all):
        raise click.BadParameter(f"{for_all[0]!r} names none of the models.", param_hint=option)
    found = {model: for_all[-1] for model in models if for_all}
    return found | {value.rpartition("=")[0]: value.rpartition("=")[2] for value in values if value not in for_all}


def _with_places(recipe_file: RecipeFile, folder: str, overrides: list[str], count: int) -> dict[str, Any]:
    """The knobs, with as many members as there are then, unless `--set members` says how many."""
    knobs = recipe_file.resolve(overrides)
    if "members" not in knobs or any(override.startswith("members=") for override in overrides):
        return knobs
    run = Run(Path(folder))
    planned = run.knobs().get("members", 0) if (run.path / "environment.json").is_file() else 0
    return {**knobs, "members": max(planned, len(run.finished_members()) + count)}


def _scale(text: str) -> Any:
    from keras_committee.models.external import scale_named

    try:
        return scale_named(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--scale") from error


def _read_labels(file: str) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in Path(file).read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--labels: {file} cannot be read: {error}") from error


def _told(record: dict[str, Any]) -> str:
    outputs = "" if record["outputs"] == "logits" else f"; {record['outputs']}"
    return (
        f"member {record['member']}: {record['path']}, right on {record['right']:.1%} of {record['examples']} images"
        f"; classes {record['order']}{outputs}"
    )
