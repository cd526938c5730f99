"""What can the word be that is typed in the shell: a recipe, a run, an exported model, a knob?

Answers come at each press of a key: nothing of a recipe is executed, nothing heavy imported.
"""

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

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
