"""`keras-committee doctor`: would `train` work here, and what mends what is missing?"""

import dataclasses
import importlib.util
from collections.abc import Iterator

import click

from keras_committee.cli.doctor.checks import CheckResult
from keras_committee.cli.options import json_option, standard_options
from keras_committee.cli.output import command_line, print_json, print_message, print_next_steps
from keras_committee.errors import ResourceError


@click.command()
@json_option
@standard_options
def doctor(as_json: bool) -> None:
    """Check Python, packages, machine and devices for training.

    One line is said of each, with the command that mends what is amiss. The exit code is 0 where `train` would work,
    and 7 otherwise. TensorFlow is started last, in a process of its own.
    """
    results = []
    for result in _run_checks():
        results.append(result)
        if not as_json:
            click.echo(str(result))
    failed = [result.part for result in results if result.needed and result.state != "ok"]
    if as_json:
        print_json({"works": not failed, "findings": [dataclasses.asdict(each) for each in results]})
    if failed:
        raise ResourceError(
            f"`train` would not work here: {', '.join(failed)}. Nothing was changed.\n"
            f"  Run the commands above, then: {command_line('doctor')}"
        )
    if not as_json:
        print_message("\n`train` works here.")
        print_next_steps("init", "recipes/mine.py", "--from", "image-folder", "PATH")


def _run_checks() -> Iterator[CheckResult]:
    from keras_committee.cli.doctor.checks import check_machine, check_tensorflow

    if importlib.util.find_spec("packaging"):  # TensorFlow and Keras bring it
        from keras_committee.cli.doctor.checks import check_packages

        yield from check_packages()
    else:
        yield CheckResult("packaging", "missing", "not installed", "pip install packaging keras-committee", needed=True)
    yield from check_machine()
    yield from check_tensorflow()
