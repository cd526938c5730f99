"""`keras-committee doctor`: check that this machine can train."""

import dataclasses

import click

from keras_committee.cli.doctor import checks
from keras_committee.cli.options import json_option, standard_options
from keras_committee.cli.output import command_line, print_json, print_message, print_next_steps
from keras_committee.errors import ResourceError
from keras_committee.tables import print_text


@click.command()
@json_option
@standard_options
def doctor(as_json: bool) -> None:
    """Check that this machine can train.

    Checks Python, packages, memory, disk and devices, and prints a command that fixes each problem. Nothing is changed.
    The exit code is 0 if `train` can run, and 7 otherwise.
    """
    results = []
    for result in checks.run_checks():
        results.append(result)
        if not as_json:
            print_text(str(result))
    failed = [result.part for result in results if result.needed and result.state != "ok"]
    if as_json:
        print_json({"works": not failed, "checks": [dataclasses.asdict(result) for result in results]})
    if failed:
        raise ResourceError(
            f"`train` cannot run on this machine: {', '.join(failed)}. Nothing was changed.\n"
            f"  Run the commands above, then: {command_line('doctor')}"
        )
    if not as_json:
        print_message("\n`train` can run on this machine.")
        print_next_steps("init", "recipes/mine.py", "--from", "image-folder", "PATH")
