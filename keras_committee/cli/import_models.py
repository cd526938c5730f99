"""`keras-committee import`: import trained models as members of a run."""

from pathlib import Path
from typing import Any

import click

from keras_committee.cli.options import (
    HomePath,
    allow_duplicate_weights_option,
    json_option,
    recipe_argument,
    run_dir_option,
    set_option,
    standard_options,
)
from keras_committee.cli.output import print_json, print_message, print_next_steps, reserve_stdout_for_json
from keras_committee.errors import RecipeError, VerificationError
from keras_committee.files import expand_home
from keras_committee.input_scaling import InputScaling, parse_input_scaling
from keras_committee.keras_archive import other_format, read_architecture
from keras_committee.keras_config import loading_backend
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run, default_run_path, open_run

_DEFAULT_SCALING = "0..255"


@click.command("import")
@recipe_argument
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=HomePath())
@run_dir_option
@set_option
@click.option(
    "--input-scaling",
    "input_scalings",
    multiple=True,
    metavar="[MODEL=]SCALING",
    help="Pixel scaling that the models expect: 0..255, 0..1, -1..1, torch, caffe or MEAN/STD. May be repeated.",
    show_default=_DEFAULT_SCALING,
)
@click.option(
    "--class-names-file",
    "class_names_files",
    multiple=True,
    metavar="[MODEL=]FILE",
    help="Text file with the class name of each output, one per line. May be repeated.",
)
@click.option("--reorder-classes", is_flag=True, help="Reorder outputs whose classes are in another order.")
@click.option("--resize", is_flag=True, help="Resize images inside models of another image size.")
@click.option(
    "--signature", default="serving_default", show_default=True, metavar="NAME", help="Signature of the SavedModels."
)
@click.option("--output", metavar="NAME", help="Output of the signature, if it has several.")
@allow_duplicate_weights_option
@click.option(
    "--skip-sanity-checks",
    is_flag=True,
    help="Import even if the data contradict --input-scaling or --class-names-file.",
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
    """Import trained models as members of a run.

    Each MODEL is a .keras file or a SavedModel folder. RECIPE defines the data on which the members are evaluated;
    nothing is trained.
    """
    _check_models(models)
    scaling_by_model = _values_by_model(input_scalings, models, "--input-scaling")
    names_file_by_model = _values_by_model(class_names_files, models, "--class-names-file")
    recipe_file = RecipeFile.read(recipe)
    run_dir = run_dir or str(default_run_path(recipe_file))
    parameters = _with_member_count(recipe_file, run_dir, list(overrides), len(models))
    scalings = {model: _parse_scaling(text) for model, text in scaling_by_model.items()}
    class_names = {model: _read_class_names(file) for model, file in names_file_by_model.items()}
    _check_archives(models)
    opened = open_run(recipe_file, parameters, path=run_dir, command=settings["command"], record_last=True)
    with reserve_stdout_for_json(as_json), opened as (run, built):
        with loading_backend():
            from keras_committee.evaluation.import_models import ImportOptions, ModelSource, import_models

        sources = [
            ModelSource(
                path=Path(model),
                input_scaling=scalings.get(model, _DEFAULT_SCALING),
                classes=class_names.get(model),
                signature=signature,
                output=output,
            )
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
        print_json({"recipe": recipe_file.name, "run": run_dir, "parameters": parameters, "imported": imported})
        return
    for record in imported:
        print_message(_format_summary(record))
    count = len(run.finished_members())
    print_message(f"{run_dir} has {count} member{'' if count == 1 else 's'}.")
    print_next_steps("evaluate", run_dir)


def _check_models(models: tuple[str, ...]) -> None:
    """Raise RecipeError for missing and other files, before a run folder is created or its members are more."""
    missing = [model for model in models if not Path(model).exists()]
    if missing:
        raise RecipeError(
            f"no such model: {', '.join(missing)}. No run was started.\n"
            "  Name .keras files or SavedModel folders: keras-committee import RECIPE MODEL..."
        )
    for model in map(Path, models):
        if model.is_file() and model.suffix != ".keras":
            raise RecipeError(
                f"{model} is not a .keras file. No run was changed.\n"
                "  Load it with the library that wrote it and save it again: with Keras 3, model.save('name.keras');\n"
                "  with Keras 2 (tf_keras), model.export('folder'), which writes a SavedModel that `import` reads."
            )


def _check_archives(models: tuple[str, ...]) -> None:
    """Raise VerificationError for a `.keras` file that cannot be read, before TensorFlow is imported."""
    for file in [Path(model) for model in models if Path(model).is_file()]:
        if other := other_format(file):
            raise VerificationError(f"{file} is {other}")
        try:
            _, problem = read_architecture(file)
        except ValueError as error:
            raise VerificationError(
                f"{file} cannot be loaded: {error}. No run was changed.\n  Copy or save the model again."
            ) from error
        if problem:
            raise VerificationError(f"{file} {problem}. No code in it was run, and no run was changed.")


def _values_by_model(values: tuple[str, ...], models: tuple[str, ...], option: str) -> dict[str, str]:
    """Return the value of each model from `[MODEL=]VALUE`; one with a model precedes one without, and the last wins."""
    unprefixed = [value for value in values if value.rpartition("=")[0] not in models]
    if any("=" in value for value in unprefixed):
        raise click.BadParameter(
            f"the part before '=' must be one of the models. Received: {unprefixed[0]!r}", param_hint=f"'{option}'"
        )
    by_model = {model: unprefixed[-1] for model in models if unprefixed}
    return by_model | {
        value.rpartition("=")[0]: value.rpartition("=")[2] for value in values if value not in unprefixed
    }


def _with_member_count(recipe_file: RecipeFile, run_dir: str, overrides: list[str], count: int) -> dict[str, Any]:
    """Return the parameters, with `members` raised to make room for `count` more unless `--set members` is given."""
    parameters = recipe_file.resolve(overrides)
    if "members" not in parameters or any(override.startswith("members=") for override in overrides):
        return parameters
    run = Run(Path(run_dir))
    planned = run.parameters().get("members", 0) if (run.path / "environment.json").is_file() else 0
    return {**parameters, "members": max(planned, len(run.finished_members()) + count)}


def _parse_scaling(text: str) -> InputScaling:
    try:
        return parse_input_scaling(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--input-scaling'") from error


def _read_class_names(file: str) -> tuple[str, ...]:
    try:
        text = expand_home(file).read_text(encoding="utf-8-sig")  # Windows writes a byte order mark
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--class-names-file: cannot read {file}: {error}") from error


def _format_summary(record: dict[str, Any]) -> str:
    outputs = "" if record["outputs"] == "logits" else f"; {record['outputs']}"
    return (
        f"member {record['member']}: {record['path']}, accuracy {record['right']:.1%} on {record['examples']:,} images"
        f"; classes {record['order']}{outputs}"
    )
