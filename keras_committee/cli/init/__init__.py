"""`keras-committee init`: write a recipe for a folder of images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keras_committee.cli.options import HomePath, json_option, split_folders_option, standard_options
from keras_committee.cli.output import command_line, print_json, print_message
from keras_committee.errors import DataError, RecipeError
from keras_committee.files import write_file
from keras_committee.folder_kinds import FolderKind, folder_kind

if TYPE_CHECKING:
    from keras_committee.cli.init.image_stats import ImageStats

_SOURCE_TYPE = (click.Choice(["image-folder", "tfrecords"]), HomePath(path_type=Path))


@click.command()
@click.argument("file", type=HomePath(path_type=Path, dir_okay=False))
@click.option(
    "--from",
    "source",
    nargs=2,
    type=_SOURCE_TYPE,
    required=True,
    metavar="image-folder|tfrecords PATH",
    help="Format and folder of the images.",
)
@split_folders_option
@json_option
@standard_options
def init(file: Path, source: tuple[str, Path], split_folders: dict[str, str] | None, as_json: bool) -> None:
    """Write a recipe for a folder of images.

    FILE is the recipe to write, such as recipes/mine.py. PATH holds one folder per class, optionally below `train`,
    `val` and `test` folders, or the TFRecord files that `keras-committee make-tfrecords` writes. Image size, network,
    batch size and number of epochs are chosen from the images; comments in the recipe explain each choice.
    """
    _check_target(file)
    from keras_committee.cli.init.template import choose_defaults, render_recipe
    from keras_committee.system_limits import free_memory

    stats = _collect_stats(*source, split_folders)
    defaults = choose_defaults(stats, free_memory())
    recipe = render_recipe(stats, defaults, source[1], command_line("train", str(file)))
    write_file(file, recipe.encode(errors="backslashreplace"))
    for warning in filter(None, [*stats.notes, defaults.imbalance_warning, defaults.rare_warning]):
        click.echo(f"warning: {warning}", err=True)
    next_command = command_line("train", str(file), "--smoke")
    if as_json:
        print_json(
            {
                "recipe": str(file),
                "classes": stats.class_counts,
                "size": defaults.size,
                "network": defaults.network,
                "batch_size": defaults.batch_size,
                "epochs": defaults.epochs,
                "imbalance_warning": defaults.imbalance_warning,
                "rare_warning": defaults.rare_warning,
                "split_folders": stats.split_folders,
                "next": next_command,
            }
        )
        return
    print_message(
        f"Found {stats.num_images:,} images of {len(stats.class_counts)} classes; their shorter side has"
        f" {stats.median_side} pixels (median).\n"
        f"Chose {defaults.network} at {defaults.size}x{defaults.size}, {defaults.epochs} epochs, batch size"
        f" {defaults.batch_size}. Wrote {file}; its comments explain the choices.\nNext: {next_command}"
    )


def _collect_stats(source_format: str, path: Path, split_folders: dict[str, str] | None) -> "ImageStats":
    if source_format == "image-folder":  # without TensorFlow, which only TFRecords need
        from keras_committee.cli.init.image_stats import collect_image_stats

        return collect_image_stats(path, split_folders)
    if split_folders is not None:
        raise click.BadParameter("is for --from image-folder only", param_hint="'--split-folders'")
    if folder_kind(path) in (FolderKind.IMAGES, FolderKind.CLASS):
        raise DataError(f"{path} is not a folder of TFRecord files: it contains images. Use --from image-folder PATH.")
    from keras_committee.cli.init.tfrecord_stats import collect_tfrecord_stats

    return collect_tfrecord_stats(path)


def _check_target(file: Path) -> None:
    if file.suffix != ".py":
        raise RecipeError(f"the name of a recipe must end in .py. Received: {file}. No file was written.")
    if os.path.lexists(file):
        raise RecipeError(f"{file} already exists. No file was written.\n  Choose another name, or move the file away.")
