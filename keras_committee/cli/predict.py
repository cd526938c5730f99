"""`keras-committee predict`: classify images with a run, an exported model or a server."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from keras_committee import api
from keras_committee.api.predictions import (
    CONNECT_SECONDS,
    RESPONSE_SECONDS,
    find_images,
    is_export,
    require_an_image,
    unreadable_error,
)
from keras_committee.cli.options import (
    HomePath,
    complete_runs_or_exports,
    json_option,
    min_members_option,
    standard_options,
)
from keras_committee.cli.output import print_json, print_message, reserve_stdout_for_json
from keras_committee.errors import RecipeError, RunError
from keras_committee.files import write_file
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder
from keras_committee.tables import print_blocks

_PROMISED = ("prediction_set", "accepted")  # outputs that a promise adds


@click.command()
@click.argument(
    "source_and_images",
    nargs=-1,
    required=True,
    type=HomePath(path_type=Path),
    metavar="[RUN_OR_MODEL_DIR] IMAGE...",
    shell_complete=complete_runs_or_exports,
)
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Number of classes per image."
)
@click.option(
    "--selection",
    type=HomePath(path_type=Path),
    metavar="FILE",
    help="Selection file written by `select`.",
    show_default="all members",
)
@click.option(
    "--url",
    metavar="URL",
    help="Send the images to a server, grpc://HOST:PORT/MODEL or http://HOST:PORT/MODEL, instead of RUN_OR_MODEL_DIR.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Time to wait for the server of --url.",
    show_default=f"{CONNECT_SECONDS:g} to reach it, {RESPONSE_SECONDS:g} for a response",
)
@click.option(
    "--csv",
    "csv_file",
    type=HomePath(path_type=Path),
    metavar="FILE",
    help="Write one row per image to a new CSV file.",
)
@min_members_option
@json_option
@standard_options
def predict(
    source_and_images: tuple[Path, ...],
    top: int,
    selection: Path | None,
    url: str | None,
    timeout: float | None,
    csv_file: Path | None,
    min_members: int | None,
    as_json: bool,
) -> None:
    """Classify images with a run, an exported model or a server.

    Each IMAGE is an image file of any size (JPEG, PNG, WebP, BMP, GIF or AVIF), or a folder that contains such files,
    also in its subfolders. RUN_OR_MODEL_DIR is a run folder or an exported model, such as saved_models/NAME. Prints the
    top classes, the confidence of the committee, the number of members that ran, and the share of them that agree. If
    an image is unreadable, the others are still classified and the exit code is 3.
    """
    paths = source_and_images if url else source_and_images[1:]
    if not paths:
        raise click.UsageError("expected a run or model folder, then at least one image.")
    if selection is not None and (url or min_members):
        raise click.UsageError("--selection cannot be combined with --url or --allow-incomplete.")
    if timeout and not url:
        raise click.UsageError("--timeout requires --url.")
    if csv_file is not None and os.path.lexists(csv_file):
        raise RecipeError(
            f"{csv_file} already exists. No image was classified.\n  Choose another name, or move the file away."
        )
    source = url or str(source_and_images[0])
    with reserve_stdout_for_json(as_json):
        predictions = _predict(source, paths, selection, url, timeout, min_members)
    unreadable = [{"image": image, "problem": problem} for image, problem in predictions.unreadable.items()]
    result = {"source": source, "predictions": predictions.rows(top), "unreadable": unreadable}
    count = len(predictions) + len(unreadable)
    if csv_file is not None:
        _write_csv(csv_file, result["predictions"], unreadable)
    if as_json:
        print_json(result)
    elif csv_file is not None:
        print_message(f"Classified {len(predictions):,} of {count:,} images. Wrote {csv_file}.")
    elif len(predictions):
        print_blocks([predictions.table(top)])
    if unreadable:
        raise unreadable_error(predictions.unreadable, count, "the others are classified")


def _predict(
    source: str, images: Sequence[Path], selection: Path | None, url: str | None, timeout: float | None,
    min_members: int | None,
) -> api.Predictions:  # fmt: skip
    """Classify images with a run, an exported model or a server."""
    if url:
        return api.load_export(url, timeout=timeout).predict(images, skip_unreadable=True)
    if is_export(Path(source)):
        if selection is not None or min_members:
            raise RecipeError(
                f"{source} is an exported committee; --selection and --allow-incomplete apply to runs only."
            )
        require_an_image(find_images(images))  # before TensorFlow is loaded
        return api.load_export(source).predict(images, skip_unreadable=True)
    if explanation := explain_wrong_folder(Path(source), FolderKind.RUN, FolderKind.MODEL):
        raise RunError(f"{source} is not a run folder or an exported model: {explanation}")
    run = api.Run(source)
    return run.predict(images, selection=selection, allow_incomplete=min_members, skip_unreadable=True)


def _write_csv(file: Path, predictions: list[dict[str, Any]], unreadable: list[dict[str, str]]) -> None:
    """Write one row per image: the top classes with their probabilities, the other outputs, or why it is unreadable."""
    ranks = ["", *(f"_{rank + 1}" for rank in range(1, max((len(row["top"]) for row in predictions), default=1)))]
    top_columns = [f"{name}{rank}" for rank in ranks for name in ("class", "probability")]
    outputs = ["confidence", "members_used", "agreement", "mutual_information"]
    outputs += [name for name in _PROMISED if predictions and name in predictions[0]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *top_columns, *outputs, "problem"])
    for row in predictions:
        top = [value for best in row["top"] for value in (best["class"], best["probability"])]
        values = (" ".join(row[name]) if name == "prediction_set" else row[name] for name in outputs)
        writer.writerow([row["image"], *top, *values, ""])
    for row in unreadable:
        writer.writerow([row["image"], *[""] * (len(top_columns) + len(outputs)), row["problem"]])
    write_file(file, text.getvalue().encode(errors="backslashreplace"))
