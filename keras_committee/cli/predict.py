"""`keras-committee predict`: classify images with a run, an exported model or a server."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from keras_committee.cli.options import (
    HomePath,
    complete_runs_or_exports,
    json_option,
    min_members_option,
    standard_options,
)
from keras_committee.cli.output import print_json, print_message, reserve_stdout_for_json
from keras_committee.errors import DataError, RecipeError, RunError
from keras_committee.files import write_file
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder, find_images, folder_kind
from keras_committee.image_header import check_image_header
from keras_committee.keras_config import loading_backend
from keras_committee.progress import step, track
from keras_committee.run import Run
from keras_committee.selection import Selection
from keras_committee.tables import print_table

_CONNECT_SECONDS, _RESPONSE_SECONDS = 5.0, 30.0
_PROMISED = ("prediction_set", "accepted")  # outputs that a promise adds
_MAX_IMAGES_READ = 512  # kept in memory at the same time


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
    show_default=f"{_CONNECT_SECONDS:g} to reach it, {_RESPONSE_SECONDS:g} for a response",
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
    images = _find_images(paths)
    with reserve_stdout_for_json(as_json):
        if url:
            predict_images = _load_server(url, timeout)
            _require_an_image(images)
        else:
            load = _find_source(source_and_images[0], selection, min_members)
            _require_an_image(images)
            predict_images = load()
        class_names, predictions, unreadable = _predict_in_parts(predict_images, images)
    result = {
        "source": url or str(source_and_images[0]),
        "predictions": [_format_prediction(image, class_names, prediction, top) for image, prediction in predictions],
        "unreadable": [{"image": str(image), "problem": problem} for image, problem in unreadable],
    }
    if csv_file is not None:
        _write_csv(csv_file, result["predictions"], result["unreadable"])
    if as_json:
        print_json(result)
    elif csv_file is not None:
        print_message(f"Classified {len(predictions):,} of {len(images):,} images. Wrote {csv_file}.")
    else:
        _print_predictions(result["predictions"], top)
    if unreadable:
        problems = "\n  ".join(problem for _, problem in unreadable)
        raise DataError(
            f"{len(unreadable)} of {len(images)} images cannot be read; the others are classified:\n  {problems}"
        )


def _find_images(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return the given files, and the images of the given folders, each once."""
    images: dict[Path, None] = {}
    for path in paths:
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            raise DataError(f"{path} contains no images. No image was classified.")
        images |= dict.fromkeys(found)
    return tuple(images)


def _require_an_image(images: tuple[Path, ...]) -> None:
    """Raise DataError if no file is readable as an image, before TensorFlow is imported."""
    problems = []
    for image in images:
        try:
            check_image_header(image)
            return
        except DataError as error:
            problems.append(str(error))
    listing = "\n  ".join(problems)
    raise DataError(f"{len(problems)} of {len(images)} images cannot be read; none is classified:\n  {listing}")


def _predict_in_parts(predict_images: Callable, images: tuple[Path, ...]) -> tuple[tuple[str, ...], list, list]:
    """Return the class names, the predictions and the unreadable images, for any number of images."""
    class_names, predictions, unreadable = (), [], []
    parts = [images[start : start + _MAX_IMAGES_READ] for start in range(0, len(images), _MAX_IMAGES_READ)]
    text = f"classifying {len(images):,} image{'' if len(images) == 1 else 's'}"
    for part in track(parts, text, len(images), size=len):
        names, rows, problems = predict_images(part)
        class_names = class_names or names
        predictions += rows
        unreadable += problems
    return class_names, predictions, unreadable


def _find_source(source: Path, selection: Path | None, min_members: int | None) -> Callable[[], Callable]:
    """Check a run or an exported model without TensorFlow, and return the function that loads it.

    That function returns one from image paths to the class names, the predictions and the unreadable images.
    """
    if _is_export(source):
        _refuse_run_options(source, selection, min_members)
        return partial(_load_export, source)
    if folder_kind(source) is FolderKind.CONVERTED:
        _refuse_run_options(source, selection, min_members)
        return partial(_load_converted, source)
    if explanation := explain_wrong_folder(source, FolderKind.RUN, FolderKind.MODEL):
        raise RunError(f"{source} is not a run folder or an exported model: {explanation}")
    run = Run.open(source)
    if selection is None:
        run.require_members(min_members)
    else:
        _check_selection_uses_run(selection, run)
    return partial(_load_run, run, selection, min_members)


def _refuse_run_options(source: Path, selection: Path | None, min_members: int | None) -> None:
    if selection is not None or min_members:
        raise RecipeError(f"{source} is an exported committee; --selection and --allow-incomplete apply to runs only.")


def _load_converted(folder: Path) -> Callable:
    with step(f"loading {folder}"), loading_backend():
        from keras_committee.export.predict import ConvertedCommittee

        return partial(_predict_with_run, ConvertedCommittee(folder))


def _load_export(folder: Path) -> Callable:
    with step(f"loading {folder}"), loading_backend():
        from keras_committee.export.predict import ExportedCommittee

        return partial(_predict_with_export, ExportedCommittee.from_folder(folder))


def _load_run(run: Run, selection: Path | None, min_members: int | None) -> Callable:
    with loading_backend():
        from keras_committee.evaluation.predict import CommitteePredictor

    if selection is not None:
        return partial(_predict_with_run, CommitteePredictor.from_selection(selection))
    recipe = run.recipe()
    return partial(_predict_with_run, CommitteePredictor.from_run(run, recipe, min_members))


def _load_server(url: str, timeout: float | None) -> Callable:
    """Return the same function as `_load_run` for the model behind `url`."""
    from keras_committee.export.predict import ExportedCommittee

    connect, response = (timeout, timeout) if timeout else (_CONNECT_SECONDS, _RESPONSE_SECONDS)
    return partial(_predict_with_export, ExportedCommittee.from_url(url, timeout=response, connect_timeout=connect))


def _check_selection_uses_run(file: Path, run: Run) -> None:
    """Raise RecipeError if the selection in `file` has no member of `run`."""
    runs = {(file.parent / member.run).resolve() for member in Selection.read(file).members}
    if run.path.resolve() not in runs:
        raise RecipeError(f"{file} selects no member of {run.path}. Its runs: {', '.join(sorted(map(str, runs)))}.")


def _is_export(folder: Path) -> bool:
    return (folder / "saved_model.pb").is_file() or any(folder.glob("*/saved_model.pb"))


def _predict_with_run(predictor: Any, images: tuple[Path, ...]) -> tuple[tuple[str, ...], list, list]:
    import numpy as np

    from keras_committee.data.image_files import read_image_with_transforms

    pixels_by_image, unreadable = _read_images(
        images, lambda image: read_image_with_transforms(image, predictor.transforms)
    )
    if not pixels_by_image:
        return predictor.classes, [], unreadable
    batches = zip(*pixels_by_image.values(), strict=True)
    predictions = predictor.predict(
        {transform: np.stack(rows) for transform, rows in zip(predictor.transforms, batches, strict=True)}
    )
    return predictor.classes, _rows_per_image(pixels_by_image, predictions), unreadable


def _predict_with_export(export: Any, images: tuple[Path, ...]) -> tuple[tuple[str, ...], list, list]:
    from keras_committee.image_header import read_image_bytes

    contents, unreadable = _read_images(images, read_image_bytes)
    if not contents:
        return (), [], unreadable
    predictions = export.predict(list(contents.values()))
    rows = _rows_per_image(contents, predictions)
    unreadable += [
        (image, f"{image}: damaged or cut off, it cannot be decoded") for image, row in rows if not row["valid"]
    ]
    rows = [(image, row) for image, row in rows if row["valid"]]
    class_names = export.class_names(contents[rows[0][0]], predictions["probabilities"].shape[1]) if rows else ()
    return class_names, rows, unreadable


def _read_images(
    images: tuple[Path, ...], read: Callable[[Path], Any]
) -> tuple[dict[Path, Any], list[tuple[Path, str]]]:
    """Return the contents of the readable images, and a problem for each of the others."""
    contents, unreadable = {}, []
    for image in dict.fromkeys(images):
        try:
            contents[image] = read(image)
        except DataError as error:
            unreadable.append((image, str(error)))
    return contents, unreadable


def _rows_per_image(images: dict[Path, Any], predictions: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    return [(image, {name: values[row] for name, values in predictions.items()}) for row, image in enumerate(images)]


def _format_prediction(
    image: Path, class_names: tuple[str, ...], prediction: dict[str, Any], top: int
) -> dict[str, Any]:
    probabilities = prediction["probabilities"]
    top_ids = (-probabilities).argsort(kind="stable")[:top].tolist()
    return {
        "image": str(image),
        "top": [
            {"class": class_names[class_id], "class_id": class_id, "probability": float(probabilities[class_id])}
            for class_id in top_ids
        ],
        "confidence": float(prediction["confidence"]),
        "members_used": int(prediction["members_used"]),
        "agreement": float(prediction["agreement"]) if "agreement" in prediction else None,
        "mutual_information": float(prediction["mutual_information"]),
        **_format_promise(class_names, prediction),
    }


def _format_promise(class_names: tuple[str, ...], prediction: dict[str, Any]) -> dict[str, Any]:
    """Return the prediction set, by descending probability, and whether the answer is accepted, where promised."""
    promised = {}
    if "prediction_set" in prediction:
        ranked = (-prediction["probabilities"]).argsort(kind="stable").tolist()
        promised["prediction_set"] = [class_names[index] for index in ranked if prediction["prediction_set"][index]]
    if "accepted" in prediction:
        promised["accepted"] = bool(prediction["accepted"])
    return promised


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


def _print_predictions(predictions: list[dict[str, Any]], top: int) -> None:
    rows = []
    for prediction in predictions:
        classes = ", ".join(f"{best['class']} {best['probability']:.1%}" for best in prediction["top"])
        agreement = "-" if prediction["agreement"] is None else f"{prediction['agreement']:.0%}"
        members_used = str(prediction["members_used"])
        promised = [_show_promised(prediction[name]) for name in _PROMISED if name in prediction]
        cells = [prediction["image"], classes, f"{prediction['confidence']:.3f}", members_used, agreement]
        rows.append([*cells, *promised])
    if rows:
        columns = [name.replace("_", " ") for name in _PROMISED if name in predictions[0]]
        title = "class" if top == 1 else "classes"
        print_table(["image", title, "confidence", "members used", "agreement", *columns], rows)


def _show_promised(value: list[str] | bool) -> str:
    """Format a prediction set, or whether the answer is accepted."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) or "none"
