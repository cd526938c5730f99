"""The command line: `keras-committee COMMAND`.

Commands import TensorFlow only where they need it, so that `--help` and usage errors appear at once.
"""

import logging
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from keras_committee.cli.calibrate import calibrate
from keras_committee.cli.completion import completion
from keras_committee.cli.describe import describe
from keras_committee.cli.doctor import doctor
from keras_committee.cli.evaluate import evaluate
from keras_committee.cli.export import export
from keras_committee.cli.import_models import import_models
from keras_committee.cli.init import init
from keras_committee.cli.make_tfrecords import make_tfrecords
from keras_committee.cli.options import standard_options
from keras_committee.cli.output import print_log, protect_standard_streams, stdout_error
from keras_committee.cli.predict import predict
from keras_committee.cli.push import push
from keras_committee.cli.report import report
from keras_committee.cli.robustness import robustness
from keras_committee.cli.search import search
from keras_committee.cli.select import select
from keras_committee.cli.serve import serve
from keras_committee.cli.serving_config import serving_config
from keras_committee.cli.train import train
from keras_committee.errors import CommitteeError, ResourceError
from keras_committee.progress import use_display
from keras_committee.recipe_file import RecipeFile
from keras_committee.step_display import make_display
from keras_committee.tables import print_text

__all__ = ["cli", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: The words after `keras-committee`; None takes them from `sys.argv`.

    Returns:
        0 on success, 2 for a usage error, 130 for Ctrl-C, or the `exit_code` of the `CommitteeError`.
    """
    is_program = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    protect_standard_streams()
    # TensorFlow's C++ log prints a banner and, without a GPU, warnings; real failures raise Python exceptions, too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Its Python log warns of retracing when several models predict, each of them once.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    command = shlex.join(["keras-committee", *arguments])
    settings = {"debug": False, "command": command, "is_program": is_program}
    try:
        code = cli.main(arguments, prog_name="keras-committee", standalone_mode=False, obj=settings) or 0
        if error := stdout_error():
            raise ResourceError(f"cannot write to standard output: {error.strerror}. A part of the output is missing.")
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _print_error(error, _usage_message(error, arguments), error.exit_code, settings)
    except CommitteeError as error:
        return _print_error(error, str(error), error.exit_code, settings)
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):  # click reads it as Ctrl-D; here it is a truncated file
            raise error.__cause__ from None
        return _print_error(error, f"interrupted. To resume, run: {settings['command']}", 130, settings)


class _OrderedGroup(click.Group):
    """Group that lists its commands in the order of a workflow."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_OrderedGroup, context_settings={"help_option_names": ["-h", "--help"]})
@standard_options
@click.pass_context
def cli(context: click.Context) -> None:
    """Train, evaluate and export committees of small image classifiers.

    A RECIPE is a Python file; a RUN is the folder that `train` writes. Both contain code that the commands execute:
    use only files that you trust.
    """
    if context.invoked_subcommand != "doctor":  # which reports the variable
        _select_tensorflow()
    context.with_resource(use_display(make_display()))
    if context.invoked_subcommand != "serve":  # which prints a log with times
        context.with_resource(print_log())


for command in (
    doctor,
    init,
    make_tfrecords,
    describe,
    train,
    search,
    import_models,
    evaluate,
    calibrate,
    robustness,
    select,
    report,
    predict,
    export,
    push,
    serve,
    serving_config,
    completion,
):
    cli.add_command(command)


def _select_tensorflow() -> None:
    """Let Keras run on TensorFlow, whatever KERAS_BACKEND, left over from another project, and keras.json state."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        print_text(f"note: KERAS_BACKEND={backend} is ignored; keras-committee runs on TensorFlow.", err=True)
    os.environ["KERAS_BACKEND"] = "tensorflow"


def _usage_message(error: click.ClickException, arguments: list[str]) -> str:
    context = getattr(error, "ctx", None)
    if context is None:
        return error.format_message()
    return f"{error.format_message()}{_parameter_hint(context, arguments)}\n  See: {context.command_path} --help"


def _parameter_hint(context: click.Context, arguments: list[str]) -> str:
    """Return how to set a recipe parameter that was given as an option or a word: `--epochs 3`, `epochs=3`."""
    if not any("--set" in parameter.opts for parameter in context.command.params):
        return ""
    options = {
        option for parameter in context.command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    defaults = next(filter(None, map(_recipe_defaults, arguments)), {})
    for index, word in enumerate(arguments):
        option, separator, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        follows_set = index > 0 and arguments[index - 1] == "--set"
        is_given = not follows_set if separator else follows_set or word.startswith("--")
        if name not in defaults or option in options or not is_given:
            continue
        following = arguments[index + 1 : index + 2]
        value = value if separator else "".join(following or ["VALUE"])
        return f"\n  {name!r} is a recipe parameter: --set {shlex.quote(f'{name}={value}')}"
    return ""


def _recipe_defaults(word: str) -> dict[str, Any]:
    """Return the parameters of the recipe file, or of the recipe of the run folder, of this name; none for others."""
    path = Path(word, "recipe.py") if os.path.isdir(word) else Path(word)
    try:
        return RecipeFile.read(path).defaults if path.suffix == ".py" else {}
    except CommitteeError:
        return {}


def _print_error(error: BaseException, message: str, exit_code: int, settings: dict[str, Any]) -> int:
    if settings["debug"]:
        traceback.print_exception(error)
    print_text(f"error: {message}", err=True)
    return exit_code
