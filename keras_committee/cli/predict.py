"""`keras-committee predict`: what does a committee say of these pictures?"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, min_members_option, standard_options
from keras_committee.cli.output import print_json, reserve_stdout_for_json
from keras_committee.errors import DataError, RecipeError
from keras_committee.run import Run
from keras_committee.selection import Selection
from keras_committee.tables import print_table


@click.command()
@click.argument(
    "source_and_images",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="[RUN_OR_MODEL_DIR] IMAGE...",
    shell_complete=options.complete_runs_or_exports,
)
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="So many classes of each picture."
)
@click.option("--selection", type=click.Path(path_type=Path), metavar="FILE", help="The committee or cascade chosen.")
@click.option(
    "--url", metavar="URL", help="Ask a server: grpc://HOST:PORT/MODEL or http://...; without RUN_OR_MODEL_DIR."
)
@min_members_option
@json_option
@standard_options
def predict(
    source_and_images: tuple[Path, ...],
    top: int,
    selection: Path | None,
    url: str | None,
    min_members: int | None,
    as_json: bool,
) -> None:
    """Say what is on each IMAGE, a JPEG or PNG file of any size.

    Told are the most probable classes, how sure the committee is, how many members were asked, and the share of them
    that agree. RUN_OR_MODEL_DIR is a run folder or an exported model, such as saved_models/NAME. A picture that cannot
    be read is named, the others are answered, and the exit code is 3.
    """
    images = source_and_images if url else source_and_images[1:]
    if not images:
        raise click.UsageError("name a run folder or a model folder, and one or more images.")
    if selection is not None and (url or min_members):
        raise click.UsageError("--selection says who is asked: it goes with neither --url nor --allow-incomplete.")
    with reserve_stdout_for_json(as_json):
        predict_images = _resolve_server(url) if url else _resolve_source(source_and_images[0], selection, min_members)
        class_names, predictions, unreadable = predict_images(images)
    result = {
        "source": url or str(source_and_images[0]),
        "answers": [_format_prediction(image, class_names, prediction, top) for image, prediction in predictions],
        "refused": [{"image": str(image), "problem": problem} for image, problem in unreadable],
    }
    if as_json:
        print_json(result)
    else:
        _print_predictions(result["answers"], top)
    if unreadable:
        count = "1 picture" if len(unreadable) == 1 else f"{len(unreadable)} pictures"
        listing = "\n  ".join(problem for _, problem in unreadable)
        raise DataError(f"{count} of {len(images)} cannot be read; the others are answered:\n  {listing}")


def _resolve_source(source: Path, selection: Path | None, min_members: int | None) -> Callable:
    """Who answers: a function of the paths to the names of the classes, the answers, and the pictures refused."""
    if _is_export(source):
        if selection is not None or min_members:
            raise RecipeError(
                f"{source} is an exported committee: --selection and --allow-incomplete are those of a run."
            )
        from keras_committee.export.predict import ExportedCommittee

        return functools.partial(_predict_with_export, ExportedCommittee.from_folder(source))
    run = Run.open(source)
    from keras_committee.evaluation.predict import CommitteePredictor

    if selection is not None:
        _check_selection_uses_run(selection, run)
        return functools.partial(_predict_with_run, CommitteePredictor.from_selection(selection))
    recipe = run.recipe()
    return functools.partial(_predict_with_run, CommitteePredictor.from_run(run, recipe, min_members))


def _resolve_server(url: str) -> Callable:
    """The same of the model behind `url`."""
    from keras_committee.export.predict import ExportedCommittee

    return functools.partial(_predict_with_export, ExportedCommittee.from_url(url))


def _check_selection_uses_run(file: Path, run: Run) -> None:
    """Raises RecipeError where the selection in `file` chose none of the members of `run`."""
    runs = {(file.parent / member.run).resolve() for member in Selection.read(file).members}
    if run.path.resolve() not in runs:
        raise RecipeError(f"{file} chose no member of {run.path}, but of {', '.join(sorted(map(str, runs)))}.")


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
    from keras_committee.data.image_files import read_image_bytes

    contents, unreadable = _read_images(images, read_image_bytes)
    if not contents:
        return (), [], unreadable
    predictions = export.predict(list(contents.values()))
    rows = _rows_per_image(contents, predictions)
    problem = "damaged or cut off, it cannot be decoded"
    unreadable += [(image, f"{image}: {problem}") for image, row in rows if not row["valid"]]
    rows = [(image, row) for image, row in rows if row["valid"]]
    class_names = export.class_names(contents[rows[0][0]], predictions["probabilities"].shape[1]) if rows else ()
    return class_names, rows, unreadable


def _read_images(
    images: tuple[Path, ...], read: Callable[[Path], Any]
) -> tuple[dict[Path, Any], list[tuple[Path, str]]]:
    """What could be read of the pictures, and what is wrong with the others."""
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
    best = (-probabilities).argsort(kind="stable")[:top].tolist()
    return {
        "image": str(image),
        "top": [
            {"class": class_names[class_id], "class_id": class_id, "probability": float(probabilities[class_id])}
            for class_id in best
        ],
        "confidence": float(prediction["confidence"]),
        "members_used": int(prediction["members_used"]),
        "agreement": float(prediction["agreement"]) if "agreement" in prediction else None,
        "mutual_information": float(prediction["mutual_information"]),
    }


def _print_predictions(predictions: list[dict[str, Any]], top: int) -> None:
    rows = []
    for prediction in predictions:
        classes = ", ".join(f"{best['class']} {best['probability']:.1%}" for best in prediction["top"])
        agreement = "-" if prediction["agreement"] is None else f"{prediction['agreement']:.0%}"
        rows.append(
            [
                prediction["image"],
                classes,
                f"{prediction['confidence']:.3f}",
                str(prediction["members_used"]),
                agreement,
            ]
        )
    if rows:
        columns = ["image", "class" if top == 1 else "classes", "confidence", "members asked", "agree"]
        print_table(columns, rows)
