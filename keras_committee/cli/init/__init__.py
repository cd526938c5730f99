"""`keras-committee init`: write a recipe for the images of a user."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keras_committee.cli.options import HomePath, json_option, split_folders_option, standard_options
from keras_committee.cli.output import command_line, print_json, print_message, reserve_stdout_for_json
from keras_committee.errors import DataError, RecipeError
from keras_committee.files import write_file
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder, folder_kind
from keras_committee.keras_config import loading_backend
from keras_committee.shard_files import split_shards
from keras_committee.tables import format_duration, print_text

if TYPE_CHECKING:
    from keras_committee.cli.init.image_stats import ImageStats
    from keras_committee.training.num_workers import Estimate

_SOURCE_TYPE = (click.Choice(["image-folder", "table", "tfrecords", "hf", "arrays"]), HomePath(path_type=Path))


def _refuse_folder(context: click.Context, parameter: click.Parameter, file: Path) -> Path:
    """Return FILE; the folder of the images in its place is an error before others, such as a missing --from."""
    if file.is_dir():
        error = explain_wrong_folder(file) or "it is a folder."
        raise RecipeError(f"{file} is not the name of a recipe, such as recipes/mine.py: {error}")
    return file


@click.command()
@click.argument("file", type=HomePath(path_type=Path), callback=_refuse_folder)
@click.option(
    "--from",
    "source",
    nargs=2,
    type=_SOURCE_TYPE,
    required=True,
    metavar="FORMAT PATH",
    help="Format of the images (image-folder, table, tfrecords, hf or arrays), and their folder or file.",
)
@split_folders_option
@click.option(
    "--weights",
    type=HomePath(path_type=Path, dir_okay=False),
    metavar="FILE|imagenet",
    show_default="those in Keras' cache",
    help="Pretrained weights: the .h5 file that Keras publishes for an EfficientNet, or imagenet, which Keras "
    "downloads.",
)
@click.option("--measure", is_flag=True, help="Train a few steps to estimate the training time on this machine.")
@json_option
@standard_options
def init(
    file: Path,
    source: tuple[str, Path],
    split_folders: dict[str, str] | None,
    weights: Path | None,
    measure: bool,
    as_json: bool,
) -> None:
    """Write a recipe for your images.

    FILE is the recipe to write, such as recipes/mine.py. The images are at PATH: for image-folder in one folder per
    class, optionally below `train`, `val` and `test` folders; for table in the files that a CSV or Parquet file lists
    with their labels; for tfrecords in the files that `keras-committee make-tfrecords` writes; for hf in a Hugging Face
    data set that `save_to_disk` wrote; for arrays in an .npz file with x_train and y_train. Image size, network,
    batch size and number of epochs are chosen from the images, the machine and the pretrained weights at hand; comments
    in the recipe explain each choice.
    """
    _check_target(file)
    from keras_committee.cli.init.defaults import Machine, choose_defaults
    from keras_committee.cli.init.pretrained_weights import find_weights
    from keras_committee.cli.init.template import render_recipe
    from keras_committee.system_limits import free_memory, has_nvidia_driver

    machine = Machine(free_memory=free_memory(), has_gpu=has_nvidia_driver(), weights=find_weights(weights))
    stats = _collect_stats(*source, split_folders)
    defaults = choose_defaults(stats, machine)
    recipe = render_recipe(stats, defaults, machine.weights, source[1], command_line("train", str(file)))
    write_file(file, recipe.encode(errors="backslashreplace"))
    notes = [] if measure else stats.notes  # the measurement reads the images, which logs them
    for warning in filter(None, [*notes, defaults.imbalance_warning, defaults.rare_warning]):
        print_text(f"warning: {warning}", err=True)
    if defaults.weights_note:
        print_text(f"note: {defaults.weights_note}", err=True)
    with reserve_stdout_for_json(as_json):
        estimate = _measure_training(file) if measure else None
    next_command = command_line("train", str(file), "--smoke")
    if as_json:
        print_json(
            {
                "recipe": str(file),
                "classes": stats.class_counts,
                "size": defaults.size,
                "network": defaults.network,
                "members": defaults.members,
                "batch_size": defaults.batch_size,
                "steps_per_epoch": defaults.steps_per_epoch,
                "epochs": defaults.epochs,
                "training_images": defaults.splits.num_training,
                "validation_images": defaults.splits.num_validation,
                "test_images": defaults.splits.num_test,
                "minutes": estimate and estimate.minutes,
                "imbalance_warning": defaults.imbalance_warning,
                "rare_warning": defaults.rare_warning,
                "weights_note": defaults.weights_note,
                "split_folders": stats.split_folders,
                "next": next_command,
            }
        )
        return
    print_message(
        f"Found {stats.num_images:,} images of {len(stats.class_counts)} classes, {defaults.splits.num_training:,} of"
        f" them for training; their shorter side has {stats.median_side} pixels (median).\n"
        f"Chose {defaults.network} at {defaults.size}x{defaults.size}, {defaults.members} members, {defaults.epochs}"
        f" epochs, batch size {defaults.batch_size}. Wrote {file}; its comments explain the choices."
        f"{_describe_time(estimate)}\nNext: {next_command}"
    )


def _measure_training(file: Path) -> "Estimate":
    """Return how long the training of a recipe takes on this machine; starts TensorFlow."""
    from keras_committee.recipe_file import RecipeFile

    with loading_backend():
        from keras_committee.training.num_workers import estimate_recipe

    recipe_file = RecipeFile.read(str(file))
    parameters = recipe_file.resolve([])
    return estimate_recipe(recipe_file, parameters, recipe_file.build(parameters))


def _describe_time(estimate: "Estimate | None") -> str:
    if estimate is None:
        return ""
    return f"\nTraining takes about {format_duration(60 * estimate.minutes)} on this machine."


def _collect_stats(source_format: str, path: Path, split_folders: dict[str, str] | None) -> "ImageStats":
    if source_format == "image-folder":  # without TensorFlow, which only TFRecords need
        from keras_committee.cli.init.image_stats import collect_image_stats

        return collect_image_stats(path, split_folders)
    if split_folders is not None:
        raise click.BadParameter("is for --from image-folder only", param_hint="'--split-folders'")
    if source_format == "table":
        from keras_committee.cli.init.image_stats import collect_table_stats

        return collect_table_stats(path)
    if source_format != "tfrecords":
        with loading_backend():
            from keras_committee.cli.init import split_stats

        return split_stats.collect_hf_stats(path) if source_format == "hf" else split_stats.collect_array_stats(path)
    if folder_kind(path) in (FolderKind.IMAGES, FolderKind.CLASS):
        raise DataError(f"{path} is not a folder of TFRecord files: it contains images. Use --from image-folder PATH.")
    split_shards(path)  # raises before TensorFlow is loaded
    with loading_backend():
        from keras_committee.cli.init.split_stats import collect_tfrecord_stats

    return collect_tfrecord_stats(path)


def _check_target(file: Path) -> None:
    if file.suffix != ".py":
        raise RecipeError(f"the name of a recipe must end in .py. Received: {file}. No file was written.")
    if os.path.lexists(file):
        raise RecipeError(f"{file} already exists. No file was written.\n  Choose another name, or move the file away.")
