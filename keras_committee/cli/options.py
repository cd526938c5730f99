"""Arguments, options and completions that several commands share."""

import os
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

import keras_committee
from keras_committee.choices import SPLITS
from keras_committee.class_folders import check_split_folders
from keras_committee.errors import CommitteeError, RecipeError
from keras_committee.recipe_file import RecipeFile


class HomePath(click.Path):
    """A path whose leading `~` or `~user` is a home folder, also where the shell leaves it, as in `--run=~/runs/a`."""

    def convert(self, value, param, ctx):
        return super().convert(os.path.expanduser(value), param, ctx)


def complete_recipes(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the recipes in recipes/ and in the current folder, or any file if none matches."""
    files = [*sorted(Path("recipes").glob("*.py")), *sorted(Path().glob("*.py"))]
    return _completion_items(map(str, files), incomplete) or [CompletionItem(incomplete, type="file")]


def complete_runs(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the run folders in runs/, or any folder if none matches."""
    return _completion_items(_run_folders(), incomplete) or [CompletionItem(incomplete, type="dir")]


def complete_exports(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the exported models in saved_models/, or any folder if none matches."""
    return _completion_items(_export_folders(), incomplete) or [CompletionItem(incomplete, type="dir")]


def complete_runs_or_exports(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the first argument of `predict`, a run or an exported model; the later ones are image files."""
    source = context.params.get("source_and_images") or context.params.get("url")
    folders = [] if source else _completion_items([*_run_folders(), *_export_folders()], incomplete)
    return folders or [CompletionItem(incomplete, type="file")]


def complete_parameters(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the parameters of the recipe on the command line, or of that of the run, without executing it.

    The defaults are the help.
    """
    runs = context.params.get("runs") or [context.params.get("run")]
    words = [context.params.get("recipe"), *runs, *context.args]  # click keeps it in `args` while --set has no value
    source = Path(next((word for word in words if word), ""))
    try:
        defaults = RecipeFile.read(source / "recipe.py" if source.is_dir() else source).defaults
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


def _set_debug(context: click.Context, _parameter: click.Parameter, debug: bool) -> None:
    if debug:
        context.obj["debug"] = True


def standard_options(command):
    """Add `--debug` and `--version`."""
    debug = click.option(
        "--debug", is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show error tracebacks."
    )
    version = click.version_option(
        keras_committee.__version__, message="%(prog)s %(version)s", help="Show the version."
    )
    return debug(version(command))


recipe_argument = click.argument("recipe", type=HomePath(), shell_complete=complete_recipes)
run_argument = click.argument("run", type=HomePath(), shell_complete=complete_runs)
runs_argument = click.argument(
    "runs", metavar="RUN...", nargs=-1, required=True, type=HomePath(), shell_complete=complete_runs
)

run_dir_option = click.option(
    "--run",
    "run_dir",
    type=HomePath(),
    metavar="DIR",
    shell_complete=complete_runs,
    help="Run folder.",
    show_default="runs/RECIPE",
)
set_option = click.option(
    "--set",
    "overrides",
    metavar="NAME=VALUE",
    multiple=True,
    help="Override a recipe parameter. May be repeated.",
    shell_complete=complete_parameters,
)
moved_data_option = click.option(
    "--set",
    "overrides",
    metavar="NAME=PATH",
    multiple=True,
    help="Set the recipe parameter of data that were moved, and record it. May be repeated.",
    shell_complete=complete_parameters,
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document; log to stderr.")
split_option = click.option(
    "--split",
    type=click.Choice(SPLITS),
    help="Dataset split to evaluate on.",
    show_default="test, or validation if there is no test split",
)
min_members_option = click.option(
    "--allow-incomplete",
    "min_members",
    type=click.IntRange(1),
    metavar="N",
    help="Accept incomplete runs with at least N trained members.",
)


class _SplitFolders(click.ParamType):
    """Folders of the splits: `train=FOLDER,test=FOLDER` or `none`; converted to a dict."""

    name = "split_folders"

    def convert(self, value, param, ctx):
        pairs = {} if value == "none" else dict(part.partition("=")[::2] for part in value.split(","))
        try:
            check_split_folders(pairs, "--split-folders")
        except RecipeError:
            self.fail(f"must be train=FOLDER, with validation=FOLDER and test=FOLDER, or none. Received: {value!r}")
        return pairs


split_folders_option = click.option(
    "--split-folders",
    type=_SplitFolders(),
    metavar="SPLIT=FOLDER,...|none",
    help="Folders of the splits train, validation and test below the folder of the images; none if every folder is a "
    "class.",
    show_default="recognized by their names",
)
allow_duplicate_weights_option = click.option(
    "--allow-duplicate-weights", is_flag=True, help="Accept members with identical weights."
)
