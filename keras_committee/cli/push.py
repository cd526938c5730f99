"""`keras-committee push`: write an export to a folder in the layout of the Hugging Face hub."""

import shlex

import click

from keras_committee import api
from keras_committee.cli.options import HomePath, complete_runs_or_exports, json_option, standard_options
from keras_committee.cli.output import print_json
from keras_committee.tables import print_blocks, print_text


@click.command()
@click.argument("source", metavar="RUN|EXPORT", type=HomePath(), shell_complete=complete_runs_or_exports)
@click.argument("folder", type=HomePath())
@json_option
@standard_options
def push(source: str, folder: str, as_json: bool) -> None:
    """Write a folder for the Hugging Face hub.

    EXPORT is a model folder, of which the newest version is taken, or one version; of a RUN, its newest export. FOLDER
    gets the model in the layout of the hub, README.md (the model card) and .gitattributes. The card is that of
    `report --model-card`, or one from the export. Pushing again replaces the folder, and keeps a card that was edited.
    """
    result = api.push(source, folder)
    if as_json:
        print_json(result.document)
        return
    print_blocks(result.blocks())
    print_text("Next, after completing the model card:")
    print_text(f"  hf upload USER/NAME {shlex.quote(str(result.path))}")
