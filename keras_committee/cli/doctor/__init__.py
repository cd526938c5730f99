"""`keras-committee doctor`: would `train` work here, and what mends what is missing?"""

import dataclasses
import importlib.util
from collections.abc import Iterator

import click

from keras_committee.cli.doctor.checks import Finding
from keras_committee.cli.options import json_option, standard_options
from keras_committee.cli.output import command, print_json, say, say_next
from keras_committee.errors import ResourceError


@click.command()
@json_option
@standard_options
def doctor(as_json: bool) -> None:
    """Check Python, packages, machine and devices for training.

    One line is said of each, with the command that mends what is amiss. The exit code is 0 where `train` would work,
    and 7 otherwise. TensorFlow is started last, in a process of its own.
    """
    findings = []
    for finding in _findings():
        findings.append(finding)
        if not as_json:
            click.echo(str(finding))
    broken = [each.part for each in findings if each.needed and each.state != "ok"]
    if as_json:
        print_json({"works": not broken, "findings": [dataclasses.asdict(each) for each in findings]})
    if broken:
        raise ResourceError(
            f"`train` would not work here: {', '.join(broken)}. Nothing was changed.\n"
            f"  Run the commands above, then: {command('doctor')}"
        )
    if not as_json:
        say("\n`train` works here.")
        say_next("new", "recipes/mine.py", "--from", "image-folder", "PATH")


def _findings() -> Iterator[Finding]:
    from keras_committee.cli.doctor.checks import machine_findings, tensorflow_findings

    if importlib.util.find_spec("packaging"):  # TensorFlow and Keras bring it
        from keras_committee.cli.doctor.checks import package_findings

        yield from package_findings()
    else:
        yield Finding("packaging", "missing", "not installed", "pip install packaging keras-committee", needed=True)
    yield from machine_findings()
    yield from tensorflow_findings()
