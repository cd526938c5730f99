"""Which options do several commands have?"""

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

import keras_committee
from keras_committee.errors import CommitteeError
from keras_committee.recipe_file import RecipeFile


def recipes(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The recipes in recipes/ and in the current folder; other files where none fits."""
    files = [*sorted(Path("recipes").glob("*.py")), *sorted(Path().glob("*.py"))]
    return _matching(map(str, files), incomplete) or [CompletionItem(incomplete, type="file")]


def runs(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The run folders in runs/; other folders where none fits."""
    return _matching(_run_folders(), incomplete) or [CompletionItem(incomplete, type="dir")]


def models(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The exported models in saved_models/; other folders where none fits."""
    return _matching(_model_folders(), incomplete) or [CompletionItem(incomplete, type="dir")]


def runs_or_models(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For `predict`: whom to ask, and then pictures."""
    asked = context.params.get("what") or context.params.get("url")
    folders = [] if asked else _matching([*_run_folders(), *_model_folders()], incomplete)
    return folders or [CompletionItem(incomplete, type="file")]


def knobs(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The knobs of the recipe that stands on the line, read from its signature; with their defaults as help."""
    words = [context.params.get("recipe"), *context.args]  # click leaves it there while --set has no value yet
    try:
        defaults = RecipeFile.read(next((word for word in words if word), "")).defaults
    except CommitteeError:
        return []
    return [
        CompletionItem(f"{knob}=", help=f"default {default!r}")
        for knob, default in defaults.items()
        if knob.startswith(incomplete)
    ]


def _run_folders() -> list[str]:
    return sorted(str(file.parent) for file in Path("runs").glob("*/knobs.json"))


def _model_folders() -> list[str]:
    return sorted({str(file.parent.parent) for file in Path("saved_models").glob("*/*/saved_model.pb")})


def _matching(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def standard_options(command):
    return _debug_option(_version_option(command))


def _debug_option(command):
    def remember(context: click.Context, _parameter, debug: bool) -> None:
        if debug:
            context.obj["debug"] = True

    return click.option(
        "--debug", is_flag=True, is_eager=True, expose_value=False, callback=remember, help="Show tracebacks of errors."
    )(command)


def _version_option(command):
    def show_version(context: click.Context, _parameter, asked: bool) -> None:
        if asked:
            click.echo(f"keras-committee {keras_committee.__version__}")
            context.exit()

    return click.option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Show the version."
    )(command)


set_option = click.option(
    "--set", "overrides", metavar="KNOB=VALUE", multiple=True, help="Turn a knob of the recipe.", shell_complete=knobs
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document; all else goes to stderr.")

split_option = click.option(
    "--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True,
    help="The examples to measure on.",
)  # fmt: skip
min_members_option = click.option(
    "--min-members", type=click.IntRange(1), metavar="N", help="Take a run as it is with so many members."
)
allow_twins_option = click.option("--allow-twins", is_flag=True, help="Members may have identical weights.")
