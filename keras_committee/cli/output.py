"""Output of commands: one JSON document, or text that ends with the next command to run."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def reserve_stdout_for_json(as_json: bool) -> Iterator[None]:
    """Redirect stdout to stderr inside the block if `as_json`, so that stdout holds the JSON document only."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(document: dict[str, Any]) -> None:
    """Print the document on one line."""
    print_message(json.dumps(document, ensure_ascii=False, allow_nan=False))


def print_message(text: str) -> None:
    """Print to stdout; a closed pipe, as after `| head`, is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise the flush at interpreter exit fails


def print_next_steps(*arguments: str) -> None:
    """Print the command to run next, ready to copy."""
    print_message(f"Next: {command_line(*arguments)}")


def forwarded_options(min_members: int | None = None, allow_duplicate_weights: bool = False) -> list[str]:
    """Return the options of this command that the next one needs, too."""
    return [
        *(["--allow-incomplete", str(min_members)] if min_members else []),
        *(["--allow-duplicate-weights"] if allow_duplicate_weights else []),
    ]


def command_line(*arguments: str) -> str:
    """Return a `keras-committee` command line, quoted for a shell."""
    return shlex.join(["keras-committee", *arguments])
