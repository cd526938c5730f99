"""`keras-committee import`: how do trained models from elsewhere become the members of a run?"""

from pathlib import Path
from typing import Any

import click

from keras_committee.cli import options
from keras_committee.cli.options import allow_duplicate_weights_option, json_option, set_option, standard_options
from keras_committee.cli.output import print_json, print_message, print_next_steps, reserve_stdout_for_json
from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

_SCALE_HELP = "Pixels that they were trained on: 0..255 (default), 0..1, -1..1, torch, caffe, or MEAN/STD."


@click.command("import")
@click.argument("recipe", type=click.Path(), shell_complete=options.complete_recipes)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--run",
    "run_dir",
    metavar="DIR",
    shell_complete=options.complete_runs,
    help="The run folder; runs/RECIPE by default.",
)
@set_option
@click.option("--input-scaling", "input_scalings", multiple=True, metavar="[MODEL=]SCALE", help=_SCALE_HELP)
@click.option(
    "--class-names-file",
    "class_names_files",
    multiple=True,
    metavar="[MODEL=]FILE",
    help="Names of the outputs in order, one a line.",
)
@click.option("--reorder-classes", is_flag=True, help="Bring outputs into the data's order of the same classes.")
@click.option("--resize", is_flag=True, help="Let a model of another image size resize the images itself.")
@click.option("--signature", default="serving_default", show_default=True, metavar="NAME", help="Of the SavedModels.")
@click.option("--output", metavar="NAME", help="Of the signature, where it has several.")
@allow_duplicate_weights_option
@click.option(
    "--skip-sanity-checks",
    is_flag=True,
    help="Adopt although the data contradict --input-scaling or --class-names-file.",
)
@json_option
@standard_options
@click.pass_obj
def import_models(
    settings: dict,
    recipe: str,
    models: tuple[str, ...],
    run_dir: str | None,
    overrides: tuple[str, ...],
    input_scalings: tuple[str, ...],
    class_names_files: tuple[str, ...],
    reorder_classes: bool,
    resize: bool,
    signature: str,
    output: str | None,
    allow_duplicate_weights: bool,
    skip_sanity_checks: bool,
    as_json: bool,
) -> None:
    """Make trained models from elsewhere the members of a run.

    Each MODEL is a .keras file or the folder of a SavedModel; the run is one on the data of RECIPE. Nothing is trained.
    """
    _check_models_exist(models)
    scale_by_model, labels_by_model = (
        _values_by_model(input_scalings, models, "--input-scaling"),
        _values_by_model(class_names_files, models, "--class-names-file"),
    )
    recipe_file = RecipeFile.read(recipe)
    run_dir = run_dir or str(Path("runs", recipe_file.name))
    parameters = _with_member_count(recipe_file, run_dir, list(overrides), len(models))
    class_names = {model: _read_class_names(labels_by_model[model]) for model in models if model in labels_by_model}
    run = Run.create(run_dir, recipe_file, parameters, command=settings["command"])
    with run.lock(), reserve_stdout_for_json(as_json):
        built = recipe_file.build(parameters)
        from keras_committee.evaluation.import_models import ImportOptions, ModelSource, import_models

        common = {"signature": signature, "output": output}
        scale = {model: _parse_scale(scale_by_model.get(model, "0..255")) for model in models}
        sources = [
            ModelSource(path=Path(model), input_scaling=scale[model], classes=class_names.get(model), **common)
            for model in models
        ]
        options = ImportOptions(
            reorder_classes=reorder_classes,
            resize=resize,
            allow_duplicate_weights=allow_duplicate_weights,
            skip_sanity_checks=skip_sanity_checks,
        )
        imported = import_models(run, built, sources, options)
    if as_json:
        print_json({"recipe": recipe_file.name, "run": run_dir, "knobs": parameters, "adopted": imported})
        return
    for record in imported:
        click.echo(_format_summary(record))
    print_message(f"{len(run.finished_members())} members in {run_dir}.")
    print_next_steps("evaluate", run_dir)


def _check_models_exist(models: tuple[str, ...]) -> None:
    """Raises RecipeError for what is not there: told before TensorFlow is imported, or a run begun."""
    missing = [model for model in models if not Path(model).exists()]
    if missing:
        raise RecipeError(
            f"there is no model {', '.join(missing)}. Nothing was begun.\n"
            "  Give .keras files and folders of SavedModels: keras-committee import RECIPE MODEL..."
        )


def _values_by_model(values: tuple[str, ...], models: tuple[str, ...], option: str) -> dict[str, str]:
    """`[MODEL=]VALUE` as a value for each model that is meant: the last one that names it, else one that names none."""
    unprefixed = [value for value in values if value.rpartition("=")[0] not in models]
    if any("=" in value for value in unprefixed):
        raise click.BadParameter(f"{unprefixed[0]!r} names none of the models.", param_hint=option)
    found = {model: unprefixed[-1] for model in models if unprefixed}
    return found | {value.rpartition("=")[0]: value.rpartition("=")[2] for value in values if value not in unprefixed}


def _with_member_count(recipe_file: RecipeFile, folder: str, overrides: list[str], count: int) -> dict[str, Any]:
    """The knobs, with as many members as there are then, unless `--set members` says how many."""
    parameters = recipe_file.resolve(overrides)
    if "members" not in parameters or any(override.startswith("members=") for override in overrides):
        return parameters
    run = Run(Path(folder))
    planned = run.parameters().get("members", 0) if (run.path / "environment.json").is_file() else 0
    return {**parameters, "members": max(planned, len(run.finished_members()) + count)}


def _parse_scale(text: str) -> Any:
    from keras_committee.models.external import parse_input_scaling

    try:
        return parse_input_scaling(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--input-scaling") from error


def _read_class_names(file: str) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in Path(file).read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--class-names-file: {file} cannot be read: {error}") from error


def _format_summary(record: dict[str, Any]) -> str:
    outputs = "" if record["outputs"] == "logits" else f"; {record['outputs']}"
    return (
        f"member {record['member']}: {record['path']}, right on {record['right']:.1%} of {record['examples']} images"
        f"; classes {record['order']}{outputs}"
    )
