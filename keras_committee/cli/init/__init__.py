"""`keras-committee init`: how do images of one's own get a readable recipe?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keras_committee.cli.options import json_option, standard_options
from keras_committee.cli.output import command_line, print_json, print_message
from keras_committee.errors import RecipeError
from keras_committee.files import write_file

if TYPE_CHECKING:
    from keras_committee.cli.init.image_stats import ImageStats

_SOURCE_TYPE = (click.Choice(["image-folder", "tfrecords"]), click.Path(path_type=Path))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--from", "source", nargs=2, type=_SOURCE_TYPE, required=True, metavar="image-folder|tfrecords PATH")
@json_option
@standard_options
def init(file: Path, source: tuple[str, Path], as_json: bool) -> None:
    """Write the recipe FILE for a folder of images.

    FILE is such as recipes/mine.py. PATH holds one folder for each class, or such folders in train and test; or
    TFRecords, as `keras-committee make-tfrecords` writes them, which are read once from end to end. Size, network, batch and
    epochs are chosen by what lies there, and comments say why.
    """
    _check_target(file)
    from keras_committee.cli.init.template import choose_defaults, render_recipe
    from keras_committee.system_limits import free_memory

    stats = _collect_stats(*source)
    defaults = choose_defaults(stats, free_memory())
    write_file(
        file,
        render_recipe(stats, defaults, source[1], command_line("train", str(file))).encode(errors="backslashreplace"),
    )
    _print_warning(defaults.imbalance_warning)
    next_command = command_line("train", str(file), "--smoke")
    if as_json:
        print_json(
            {"recipe": str(file), "classes": stats.class_counts, "size": defaults.size, "network": defaults.network}
            | {
                "batch_size": defaults.batch_size,
                "epochs": defaults.epochs,
                "uneven": defaults.imbalance_warning,
                "next": next_command,
            }
        )
        return
    summary = f"{defaults.network} at {defaults.size}x{defaults.size}, {defaults.epochs} epochs in batches of {defaults.batch_size}"
    print_message(
        f"{stats.num_images:,} images of {len(stats.class_counts)} classes, {stats.median_side} pixels on the shorter side (median):\n"
        f"{summary}. Wrote {file}; its comments say why.\nNext: {next_command}"
    )


def _collect_stats(kind: str, path: Path) -> "ImageStats":
    """What lies in `path`; TensorFlow, which reads shards, is not imported for folders."""
    if kind == "image-folder":
        from keras_committee.cli.init.image_stats import collect_image_stats

        return collect_image_stats(path)
    from keras_committee.cli.init.tfrecord_stats import collect_tfrecord_stats

    return collect_tfrecord_stats(path)


def _check_target(file: Path) -> None:
    if file.suffix != ".py":
        raise RecipeError(f"a recipe is a Python file: its name ends in .py. Received: {file}. Nothing was written.")
    if os.path.lexists(file):
        raise RecipeError(f"{file} is there already. Nothing was written.\n  Name another file, or move it away.")


def _print_warning(warning: str) -> None:
    if warning:
        click.echo(f"warning: {warning}", err=True)
