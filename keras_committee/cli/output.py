"""What does a command print: one JSON document, or words and the command that comes next?"""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def reserve_stdout_for_json(as_json: bool) -> Iterator[None]:
    """Keeps stdout for the one document where `as_json`: whatever else is printed inside goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(document: dict[str, Any]) -> None:
    print_message(json.dumps(document, ensure_ascii=False, allow_nan=False))


def print_message(text: str) -> None:
    """A last word on stdout. The work is done: nobody need be there to read it, as after `| head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python fails to flush as it ends


def print_next_steps(*arguments: str) -> None:
    """The very last line: the command that comes next, to be copied."""
    print_message(f"Next: {command_line(*arguments)}")


def forwarded_options(min_members: int | None = None, allow_duplicate_weights: bool = False) -> list[str]:
    """The options of this command that the next one needs too."""
    return [
        *(["--allow-incomplete", str(min_members)] if min_members else []),
        *(["--allow-duplicate-weights"] if allow_duplicate_weights else []),
    ]


def command_line(*arguments: str) -> str:
    return shlex.join(["keras-committee", *arguments])
