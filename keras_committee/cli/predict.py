"""`keras-committee predict`: what does a committee say of these pictures?"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, min_members_option, standard_options
from keras_committee.cli.output import only_json, print_json
from keras_committee.errors import DataError, RecipeError
from keras_committee.run import Run
from keras_committee.selection import Selection
from keras_committee.tables import print_table


@click.command()
@click.argument(
    "what",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="[RUN_OR_MODEL_DIR] IMAGE...",
    shell_complete=options.runs_or_models,
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
    what: tuple[Path, ...],
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
    images = what if url else what[1:]
    if not images:
        raise click.UsageError("name a run folder or a model folder, and one or more images.")
    if selection is not None and (url or min_members):
        raise click.UsageError("--selection says who is asked: it goes with neither --url nor --min-members.")
    with only_json(as_json):
        ask = _server(url) if url else _whom(what[0], selection, min_members)
        names, answers, refused = ask(images)
    result = {
        "source": url or str(what[0]),
        "answers": [_answer(image, names, each, top) for image, each in answers],
        "refused": [{"image": str(image), "problem": problem} for image, problem in refused],
    }
    if as_json:
        print_json(result)
    else:
        _print(result["answers"], top)
    if refused:
        count = "1 picture" if len(refused) == 1 else f"{len(refused)} pictures"
        listing = "\n  ".join(problem for _, problem in refused)
        raise DataError(f"{count} of {len(images)} cannot be read; the others are answered:\n  {listing}")


def _whom(what: Path, selection: Path | None, min_members: int | None) -> Callable:
    """Who answers: a function of the paths to the names of the classes, the answers, and the pictures refused."""
    if _is_export(what):
        if selection is not None or min_members:
            raise RecipeError(f"{what} is an exported committee: --selection and --min-members are those of a run.")
        from keras_committee.export.predict import Export

        return functools.partial(_ask_export, Export.of_folder(what))
    run = Run.open(what)
    from keras_committee.evaluation.predict import Panel

    if selection is not None:
        _require_member(selection, run)
        return functools.partial(_ask_panel, Panel.of_selection(selection))
    recipe = run.recipe()
    return functools.partial(_ask_panel, Panel.of_run(run, recipe, min_members))


def _server(url: str) -> Callable:
    """The same of the model behind `url`."""
    from keras_committee.export.predict import Export

    return functools.partial(_ask_export, Export.of_url(url))


def _require_member(file: Path, run: Run) -> None:
    """Raises RecipeError where the selection in `file` chose none of the members of `run`."""
    runs = {(file.parent / member.run).resolve() for member in Selection.read(file).members}
    if run.path.resolve() not in runs:
        raise RecipeError(f"{file} chose no member of {run.path}, but of {', '.join(sorted(map(str, runs)))}.")


def _is_export(folder: Path) -> bool:
    return (folder / "saved_model.pb").is_file() or any(folder.glob("*/saved_model.pb"))


def _ask_panel(panel: Any, images: tuple[Path, ...]) -> tuple[tuple[str, ...], list, list]:
    import numpy as np

    from keras_committee.data.image_files import frame_picture

    pixels, refused = _each(images, lambda image: frame_picture(image, panel.framings))
    if not pixels:
        return panel.classes, [], refused
    seen = zip(*pixels.values(), strict=True)
    answers = panel.answer({each: np.stack(rows) for each, rows in zip(panel.framings, seen, strict=True)})
    return panel.classes, _rows(pixels, answers), refused


def _ask_export(export: Any, images: tuple[Path, ...]) -> tuple[tuple[str, ...], list, list]:
    from keras_committee.data.image_files import read_content

    contents, refused = _each(images, read_content)
    if not contents:
        return (), [], refused
    answers = export.answer(list(contents.values()))
    rows = _rows(contents, answers)
    problem = "damaged or cut off, it cannot be decoded"
    refused += [(image, f"{image}: {problem}") for image, row in rows if not row["valid"]]
    rows = [(image, row) for image, row in rows if row["valid"]]
    names = export.classes(contents[rows[0][0]], answers["probabilities"].shape[1]) if rows else ()
    return names, rows, refused


def _each(images: tuple[Path, ...], read: Callable[[Path], Any]) -> tuple[dict[Path, Any], list[tuple[Path, str]]]:
    """What could be read of the pictures, and what is wrong with the others."""
    contents, refused = {}, []
    for image in dict.fromkeys(images):
        try:
            contents[image] = read(image)
        except DataError as error:
            refused.append((image, str(error)))
    return contents, refused


def _rows(images: dict[Path, Any], answers: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    return [(image, {name: values[row] for name, values in answers.items()}) for row, image in enumerate(images)]


def _answer(image: Path, names: tuple[str, ...], answer: dict[str, Any], top: int) -> dict[str, Any]:
    probabilities = answer["probabilities"]
    best = (-probabilities).argsort(kind="stable")[:top].tolist()
    return {
        "image": str(image),
        "top": [{"class": names[k], "class_id": k, "probability": float(probabilities[k])} for k in best],
        "confidence": float(answer["confidence"]),
        "members_used": int(answer["members_used"]),
        "agreement": float(answer["agreement"]) if "agreement" in answer else None,
        "mutual_information": float(answer["mutual_information"]),
    }


def _print(answers: list[dict[str, Any]], top: int) -> None:
    rows = []
    for each in answers:
        classes = ", ".join(f"{best['class']} {best['probability']:.1%}" for best in each["top"])
        agreement = "-" if each["agreement"] is None else f"{each['agreement']:.0%}"
        rows.append([each["image"], classes, f"{each['confidence']:.3f}", str(each["members_used"]), agreement])
    if rows:
        columns = ["image", "class" if top == 1 else "classes", "confidence", "members asked", "agree"]
        print_table(columns, rows)
