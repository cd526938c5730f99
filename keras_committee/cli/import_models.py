"""`keras-committee import`: import trained models as members of a run."""

import click

from keras_committee import api
from keras_committee.cli.options import (
    HomePath,
    allow_duplicate_weights_option,
    json_option,
    recipe_argument,
    run_dir_option,
    set_option,
    standard_options,
)
from keras_committee.cli.output import print_json, print_next_steps, reserve_stdout_for_json
from keras_committee.tables import print_blocks

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
    with reserve_stdout_for_json(as_json):
        result = api.import_models(
            recipe,
            models,
            run=run_dir,
            input_scaling=_values_by_model(input_scalings, models, "--input-scaling"),
            class_names=_values_by_model(class_names_files, models, "--class-names-file"),
            reorder_classes=reorder_classes,
            resize=resize,
            signature=signature,
            output=output,
            allow_duplicate_weights=allow_duplicate_weights,
            skip_sanity_checks=skip_sanity_checks,
            parameters=overrides,
            command=settings["command"],
        )
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    print_next_steps("evaluate", result["run"])


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
