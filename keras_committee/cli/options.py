"""Which options do several commands have?"""

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
