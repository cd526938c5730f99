"""`keras-committee new`: how do images of one's own get a readable recipe?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keras_committee.cli.options import json_option, standard_options
from keras_committee.cli.output import command, print_json, say
from keras_committee.errors import RecipeError
from keras_committee.files import write_file

if TYPE_CHECKING:
    from keras_committee.cli.init.image_stats import Survey

_SOURCE = (click.Choice(["image-folder", "tfrecords"]), click.Path(path_type=Path))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--from", "source", nargs=2, type=_SOURCE, required=True, metavar="image-folder|tfrecords PATH")
@json_option
@standard_options
def new(file: Path, source: tuple[str, Path], as_json: bool) -> None:
    """Write the recipe FILE for a folder of images.

    FILE is such as recipes/mine.py. PATH holds one folder for each class, or such folders in train and test; or
    TFRecords, as `keras-committee records` writes them, which are read once from end to end. Size, network, batch and
    epochs are chosen by what lies there, and comments say why.
    """
    _refuse(file)
    from keras_committee.cli.init.template import choose, draft
    from keras_committee.system_limits import free_memory

    found = _survey(*source)
    chosen = choose(found, free_memory())
    write_file(file, draft(found, chosen, source[1], command("train", str(file))).encode(errors="backslashreplace"))
    _warn(chosen.uneven)
    following = command("train", str(file), "--smoke")
    if as_json:
        print_json(
            {"recipe": str(file), "classes": found.counts, "size": chosen.size, "network": chosen.network}
            | {"batch_size": chosen.batch_size, "epochs": chosen.epochs, "uneven": chosen.uneven, "next": following}
        )
        return
    how = f"{chosen.network} at {chosen.size}x{chosen.size}, {chosen.epochs} epochs in batches of {chosen.batch_size}"
    say(
        f"{found.images:,} images of {len(found.counts)} classes, {found.side} pixels on the shorter side (median):\n"
        f"{how}. Wrote {file}; its comments say why.\nNext: {following}"
    )


def _survey(kind: str, place: Path) -> "Survey":
    """What lies in `place`; TensorFlow, which reads shards, is not imported for folders."""
    if kind == "image-folder":
        from keras_committee.cli.init.image_stats import survey

        return survey(place)
    from keras_committee.cli.init.tfrecord_stats import survey_shards

    return survey_shards(place)


def _refuse(file: Path) -> None:
    if file.suffix != ".py":
        raise RecipeError(f"a recipe is a Python file: its name ends in .py. Received: {file}. Nothing was written.")
    if os.path.lexists(file):
        raise RecipeError(f"{file} is there already. Nothing was written.\n  Name another file, or move it away.")


def _warn(uneven: str) -> None:
    if uneven:
        click.echo(f"warning: {uneven}", err=True)
