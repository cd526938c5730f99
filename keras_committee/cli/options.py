"""What do all commands share: options, the one JSON document, the last word?"""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import click

import keras_committee
from keras_committee.cli.candidates import knobs


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


@contextlib.contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """Keeps stdout for the one document where `as_json`: whatever else is printed inside goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(document: dict[str, Any]) -> None:
    say(json.dumps(document, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A last word on stdout. The work is done: nobody need be there to read it, as after `| head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python fails to flush as it ends


def say_next(*words: str) -> None:
    """The very last line: the command that comes next, to be copied."""
    say(f"Next: {command(*words)}")


def carried(min_members: int | None = None, allow_twins: bool = False) -> list[str]:
    """The options of this command that the next one needs too."""
    return [*(["--min-members", str(min_members)] if min_members else []), *(["--allow-twins"] if allow_twins else [])]


def command(*words: str) -> str:
    return shlex.join(["keras-committee", *words])
