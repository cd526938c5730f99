"""Which options do several commands have?"""

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

import keras_committee
from keras_committee.errors import CommitteeError
from keras_committee.recipe_file import RecipeFile


def complete_recipes(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The recipes in recipes/ and in the current folder; other files where none fits."""
    files = [*sorted(Path("recipes").glob("*.py")), *sorted(Path().glob("*.py"))]
    return _completion_items(map(str, files), incomplete) or [CompletionItem(incomplete, type="file")]


def complete_runs(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The run folders in runs/; other folders where none fits."""
    return _completion_items(_run_folders(), incomplete) or [CompletionItem(incomplete, type="dir")]


def complete_exports(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The exported models in saved_models/; other folders where none fits."""
    return _completion_items(_export_folders(), incomplete) or [CompletionItem(incomplete, type="dir")]


def complete_runs_or_exports(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """For `predict`: whom to ask, and then pictures."""
    source = context.params.get("source_and_images") or context.params.get("url")
    folders = [] if source else _completion_items([*_run_folders(), *_export_folders()], incomplete)
    return folders or [CompletionItem(incomplete, type="file")]


def complete_parameters(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The knobs of the recipe that stands on the line, read from its signature; with their defaults as help."""
    words = [context.params.get("recipe"), *context.args]  # click leaves it there while --set has no value yet
    try:
        defaults = RecipeFile.read(next((word for word in words if word), "")).defaults
    except CommitteeError:
        return []
    return [
        CompletionItem(f"{name}=", help=f"default {default!r}")
        for name, default in defaults.items()
        if name.startswith(incomplete)
    ]


def _run_folders() -> list[str]:
    return sorted(str(file.parent) for file in Path("runs").glob("*/parameters.json"))


def _export_folders() -> list[str]:
    return sorted({str(file.parent.parent) for file in Path("saved_models").glob("*/*/saved_model.pb")})


def _completion_items(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def standard_options(command):
    return _debug_option(_version_option(command))


def _debug_option(command):
    def set_debug(context: click.Context, _parameter, debug: bool) -> None:
        if debug:
            context.obj["debug"] = True

    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=set_debug,
        help="Show tracebacks of errors.",
    )(command)


def _version_option(command):
    def show_version(context: click.Context, _parameter, requested: bool) -> None:
        if requested:
            click.echo(f"keras-committee {keras_committee.__version__}")
            context.exit()

    return click.option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Show the version."
    )(command)


set_option = click.option(
    "--set",
    "overrides",
    metavar="KNOB=VALUE",
    multiple=True,
    help="Turn a knob of the recipe.",
    shell_complete=complete_parameters,
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document; all else goes to stderr.")

split_option = click.option(
    "--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True,
    help="The examples to measure on.",
)  # fmt: skip
min_members_option = click.option(
    "--allow-incomplete",
    "min_members",
    type=click.IntRange(1),
    metavar="N",
    help="Take a run as it is with so many members.",
)
allow_duplicate_weights_option = click.option(
    "--allow-duplicate-weights", is_flag=True, help="Members may have identical weights."
)
