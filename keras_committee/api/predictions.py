"""Predictions for images with a run, an exported model or a server."""

import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_committee import tables
from keras_committee.api.results import frame
from keras_committee.errors import DataError, ExportError, RecipeError, RunError
from keras_committee.files import expand_home
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder, folder_kind
from keras_committee.folder_kinds import find_images as images_in_folder
from keras_committee.image_header import check_image_header, read_image_bytes
from keras_committee.keras_config import loading_backend
from keras_committee.progress import step, track
from keras_committee.run import Run as RunFolder
from keras_committee.selection import Selection
from keras_committee.step_display import displayed

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd  # pyright: ignore[reportMissingImports]

CONNECT_SECONDS, RESPONSE_SECONDS = 5.0, 30.0
_MAX_IMAGES_READ = 512  # kept in memory at the same time
_TOP = 3  # classes in a printed row
_PROMISED = ("prediction_set", "accepted")  # outputs that a promise adds


@dataclasses.dataclass(frozen=True)
class Images:
    """Images to classify.

    Attributes:
        names: Path of each file, or the index of each array, as text.
        read: Function of an index that returns the contents of a JPEG or PNG file; raises DataError.
        check: Function of an index that raises DataError if the file is no image, from its first bytes.
    """

    names: tuple[str, ...]
    read: Callable[[int], bytes]
    check: Callable[[int], None]


class Predictions(Sequence[dict[str, Any]]):
    """Predictions for images, in their order. It prints as a table.

    An item is the prediction of one image, as with `predict --json`: `image`, `top` (the three most probable classes),
    `confidence`, `members_used`, `agreement`, `mutual_information`; with a promise `prediction_set` and `accepted`.

    Attributes:
        images: Path of each image, or its index in the array, as text.
        classes: Names of the classes, in label order.
        outputs: Arrays with one row per image: `probabilities` `(images, classes)`, and `(images,)`: `confidence`,
            `members_used`, `mutual_information` and, for members of a run, `agreement`. With a promise also
            `prediction_set` `(images, classes)`, `set_size` and `accepted`.
        unreadable: Problem of each image that could not be read, by its name; these are not in `images`.
        source: Run folder, model folder or URL.
    """

    def __init__(
        self,
        images: Sequence[str],
        classes: Sequence[str],
        outputs: Mapping[str, "np.ndarray"],
        unreadable: Mapping[str, str],
        source: str,
    ):
        self.images, self.classes, self.outputs = tuple(images), tuple(classes), dict(outputs)
        self.unreadable, self.source = dict(unreadable), source

    @property
    def probabilities(self) -> "np.ndarray":
        """Probabilities of the committee, `(images, classes)`."""
        return self.outputs["probabilities"]

    @property
    def confidence(self) -> "np.ndarray":
        """Confidence of the committee in [0, 1], `(images,)`."""
        return self.outputs["confidence"]

    @property
    def labels(self) -> "np.ndarray":
        """Index of the most probable class of each image, `(images,)`."""
        return self.probabilities.argmax(axis=1)

    @property
    def class_names(self) -> list[str]:
        """Name of the most probable class of each image."""
        return [self.classes[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.rows()[index]
        return self._row(range(len(self))[index], _TOP)

    def rows(self, top: int = _TOP) -> list[dict[str, Any]]:
        """Return the prediction of each image.

        Args:
            top: Number of classes of each, the most probable ones.
        """
        return [self._row(index, top) for index in range(len(self))]

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas data frame: one row per image with its class, the probabilities and the other outputs.

        Raises:
            RecipeError: If pandas is not installed.
        """
        probabilities = self.probabilities.tolist() if len(self) else []
        others = [name for name, values in self.outputs.items() if values.ndim == 1]
        rows = [
            {
                "image": image,
                "class": self.classes[max(range(len(row)), key=row.__getitem__)],
                **{name: self.outputs[name][index].item() for name in others},
                **{f"probability of {name}": value for name, value in zip(self.classes, row, strict=True)},
            }
            for index, (image, row) in enumerate(zip(self.images, probabilities, strict=True))
        ]
        return frame("image" if rows else None, rows)

    def table(self, top: int = _TOP) -> tables.Table:
        """Return the table of `predict`."""
        rows = self.rows(top)
        promised = [name for name in _PROMISED if rows and name in rows[0]]
        title = "class" if top == 1 else "classes"
        columns = ["image", title, "confidence", "members used", "agreement"]
        columns += [name.replace("_", " ") for name in promised]
        return tables.Table(columns, [_cells(row, promised) for row in rows])

    def __repr__(self) -> str:
        return tables.format_blocks(self._blocks())

    def _repr_html_(self) -> str:
        return tables.blocks_to_html(self._blocks())

    def _blocks(self) -> Iterator[tables.Block]:
        if len(self):
            yield self.table()
        yield from self.unreadable.values()

    def _row(self, index: int, top: int) -> dict[str, Any]:
        outputs = {name: values[index] for name, values in self.outputs.items()}
        ranked = (-outputs["probabilities"]).argsort(kind="stable").tolist()
        return {
            "image": self.images[index],
            "top": [
                {"class": self.classes[label], "class_id": label, "probability": float(outputs["probabilities"][label])}
                for label in ranked[:top]
            ],
            "confidence": float(outputs["confidence"]),
            "members_used": int(outputs["members_used"]),
            "agreement": float(outputs["agreement"]) if "agreement" in outputs else None,
            "mutual_information": float(outputs["mutual_information"]),
            **self._promised(outputs, ranked),
        }

    def _promised(self, outputs: Mapping[str, Any], ranked: Sequence[int]) -> dict[str, Any]:
        """Return the prediction set, by descending probability, and whether the answer is accepted, where promised."""
        promised: dict[str, Any] = {}
        if "prediction_set" in outputs:
            promised["prediction_set"] = [self.classes[label] for label in ranked if outputs["prediction_set"][label]]
        if "accepted" in outputs:
            promised["accepted"] = bool(outputs["accepted"])
        return promised


class ExportedModel:
    """An exported committee or cascade: its folder, loaded in this process, or a model behind a server.

    Attributes:
        source: Its folder or URL.
    """

    def __init__(self, source: str, predict_encoded: "PredictEncoded"):
        self.source, self._predict_encoded = source, predict_encoded

    @displayed
    def predict(self, images: Any, *, skip_unreadable: bool = False) -> Predictions:
        """Classify images. Arguments and errors as in `Run.predict`.

        Raises:
            ExportError: If keras-committee did not export the model.
            RequestError: If the server reports an error.
        """
        found = find_images(images)
        return predict_images(lambda: self._predict_encoded, found, self.source, skip_unreadable=skip_unreadable)

    def __repr__(self) -> str:
        return f"ExportedModel({self.source!r})"


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a predictor returns for the contents of files: of the others than `unreadable`, by row."""

    classes: Sequence[str]
    outputs: Mapping[str, Any]
    unreadable: Mapping[int, str]


PredictEncoded = Callable[[Sequence[bytes]], Outputs]


@displayed
def load_export(source: str | Path, *, timeout: float | None = None) -> ExportedModel:
    """Load an exported model, or connect to one behind a server.

    Args:
        source: A model folder, whose newest version is loaded, or one version; or the URL of a model,
            `grpc://HOST:PORT/NAME` or `http://HOST:PORT/NAME`.
        timeout: Seconds to wait for a server; None is 5 to reach it and 30 for a response.

    Raises:
        RunError: If the folder is no exported model.
        ExportError: If there is no version, or it is damaged or cannot be loaded.
        RecipeError: If the folder cannot be read, or the URL is invalid.
    """
    if "://" in str(source):
        from keras_committee.export.predict import ExportedCommittee

        connect, response = (timeout, timeout) if timeout else (CONNECT_SECONDS, RESPONSE_SECONDS)
        committee = ExportedCommittee.from_url(str(source), timeout=response, connect_timeout=connect)
        return ExportedModel(str(source), partial(_predict_exported, committee))
    if timeout is not None:
        raise RecipeError("--timeout requires --url.")
    folder = expand_home(source)
    is_converted = folder_kind(folder) is FolderKind.CONVERTED
    if not (is_converted or is_saved_model(folder)):
        if explanation := explain_wrong_folder(folder, FolderKind.MODEL):
            raise RunError(f"{folder} is not an exported model: {explanation}")
        raise ExportError(
            f"{folder} is not an exported model. Create one with `keras-committee export RUN --out {folder}`."
        )
    with step(f"loading {folder}"), loading_backend():
        from keras_committee.export.predict import ConvertedCommittee, ExportedCommittee

        if is_converted:
            return ExportedModel(str(source), partial(_predict_with_members, ConvertedCommittee(folder)))
        return ExportedModel(str(source), partial(_predict_exported, ExportedCommittee.from_folder(folder)))


def is_export(folder: Path) -> bool:
    """Return whether a folder is an exported model or one version of it, in any format."""
    return is_saved_model(folder) or folder_kind(folder) is FolderKind.CONVERTED


def is_saved_model(folder: Path) -> bool:
    """Return whether a folder is an exported model for TF Serving, or one version of it."""
    return (folder / "saved_model.pb").is_file() or any(folder.glob("*/saved_model.pb"))


def find_images(images: Any) -> Images:
    """Return the images that a caller named, each file once.

    Args:
        images: As in `Run.predict`.

    Raises:
        DataError: If a folder has no images, or pixels have another shape or type.
    """
    if isinstance(images, str | os.PathLike):
        images = [images]
    if hasattr(images, "shape") and hasattr(images, "dtype"):
        return _encoded_arrays(images)
    files: dict[Path, None] = {}
    for path in map(expand_home, images):
        found = images_in_folder(path) if path.is_dir() else [path]
        if not found:
            raise DataError(f"{path} contains no images. No image was classified.")
        files |= dict.fromkeys(found)
    paths = list(files)
    if not paths:
        raise DataError("expected at least one image. No image was classified.")
    return Images(
        tuple(map(str, paths)),
        lambda index: read_image_bytes(paths[index]),
        lambda index: check_image_header(paths[index]),
    )


def find_run_source(run: RunFolder, selection: Path | None, min_members: int | None) -> Callable[[], PredictEncoded]:
    """Check a run and a selection without TensorFlow, and return the function that loads the members.

    Raises:
        IncompleteError: If too few members are trained.
        RecipeError: If the selection has no member of the run.
        RunError: If the selection is damaged.
    """
    if selection is None:
        run.require_members(min_members)
    else:
        _check_selection_uses_run(selection, run)
    return partial(_load_run, run, selection, min_members)


def predict_images(
    load: Callable[[], PredictEncoded], images: Images, source: str, *, skip_unreadable: bool
) -> Predictions:
    """Classify any number of images.

    Args:
        load: Function that loads what predicts, once an image was found readable.
        images: The images.
        source: Where the predictions come from.
        skip_unreadable: Whether images that cannot be read are listed instead of an error.

    Raises:
        DataError: If no image can be read, or one cannot and `skip_unreadable` is False.
    """
    import numpy as np

    require_an_image(images)
    predict = load()
    classes: Sequence[str] = ()
    names: list[str] = []
    parts: list[Mapping[str, Any]] = []
    unreadable: dict[str, str] = {}
    count = len(images.names)
    blocks = [range(start, min(start + _MAX_IMAGES_READ, count)) for start in range(0, count, _MAX_IMAGES_READ)]
    text = f"classifying {count:,} image{'' if count == 1 else 's'}"
    for block in track(blocks, text, count, size=len):
        contents = _read_block(images, block, unreadable)
        if not contents:
            continue
        result = predict(list(contents.values()))
        read = list(contents)
        for row, problem in result.unreadable.items():
            unreadable[images.names[read[row]]] = f"{images.names[read[row]]}: {problem}"
        names += [images.names[index] for row, index in enumerate(read) if row not in result.unreadable]
        classes = classes or result.classes
        parts.append(result.outputs)
    if unreadable and not skip_unreadable:
        raise unreadable_error(unreadable, count, "to classify the others: skip_unreadable=True")
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    return Predictions(names, classes, outputs, unreadable, source)


def unreadable_error(unreadable: Mapping[str, str], count: int, consequence: str) -> DataError:
    """Return the error for images that cannot be read."""
    problems = "\n  ".join(unreadable.values())
    return DataError(f"{len(unreadable)} of {count} images cannot be read; {consequence}:\n  {problems}")


def _read_block(images: Images, block: Iterable[int], unreadable: dict[str, str]) -> dict[int, bytes]:
    """Return the contents of the readable images by index, and record the problems of the others."""
    contents = {}
    for index in block:
        try:
            contents[index] = images.read(index)
        except DataError as error:
            unreadable[images.names[index]] = str(error)
    return contents


def require_an_image(images: Images) -> None:
    """Raise DataError if no file is readable as an image, before TensorFlow is imported."""
    problems = []
    for index in range(len(images.names)):
        try:
            images.check(index)
            return
        except DataError as error:
            problems.append(str(error))
    listing = "\n  ".join(problems)
    raise DataError(f"{len(problems)} of {len(images.names)} images cannot be read; none is classified:\n  {listing}")


def _encoded_arrays(pixels: Any) -> Images:
    """Return images given as pixels, encoded without loss."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(pixels)
    is_gray = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 1)
    if pixels.dtype != np.uint8 or not (is_gray or (pixels.ndim == 4 and pixels.shape[3] == 3)) or not pixels.size:
        raise DataError(
            "pixels must be uint8 `(images, height, width, 3)`, or `(images, height, width)` in gray, from 0 to 255. "
            f"Received: {pixels.dtype} {pixels.shape}"
        )
    pixels = pixels[..., 0] if is_gray and pixels.ndim == 4 else pixels

    def read(index: int) -> bytes:
        with io.BytesIO() as file:
            Image.fromarray(pixels[index]).save(file, "PNG", compress_level=0)
            return file.getvalue()

    return Images(tuple(map(str, range(len(pixels)))), read, lambda index: None)


def _predict_exported(committee: Any, contents: Sequence[bytes]) -> Outputs:
    """Return the predictions of an `ExportedCommittee`."""
    outputs = dict(committee.predict(contents))
    valid = outputs.pop("valid")
    unreadable = dict.fromkeys((~valid).nonzero()[0].tolist(), "damaged or cut off, it cannot be decoded")
    first = next((row for row in range(len(contents)) if row not in unreadable), None)
    count = outputs["probabilities"].shape[1]
    classes = () if first is None else committee.class_names(contents[first], count)
    return Outputs(classes, {name: values[valid] for name, values in outputs.items()}, unreadable)


def _load_run(run: RunFolder, selection: Path | None, min_members: int | None) -> PredictEncoded:
    with loading_backend():
        from keras_committee.evaluation.predict import CommitteePredictor

    if selection is not None:
        return partial(_predict_with_members, CommitteePredictor.from_selection(selection))
    return partial(_predict_with_members, CommitteePredictor.from_run(run, run.recipe(), min_members))


def _predict_with_members(predictor: Any, contents: Sequence[bytes]) -> Outputs:
    """Return the predictions of a `CommitteePredictor`, or of a `ConvertedCommittee`, for decoded images."""
    import numpy as np

    from keras_committee.data.image_files import decode_with_transforms

    pixels, unreadable = [], {}
    for row, content in enumerate(contents):
        try:
            pixels.append(decode_with_transforms(content, predictor.transforms))
        except DataError as error:
            unreadable[row] = str(error)
    if not pixels:
        return Outputs(predictor.classes, {}, unreadable)
    batches = zip(*pixels, strict=True)
    outputs = predictor.predict(
        {transform: np.stack(rows) for transform, rows in zip(predictor.transforms, batches, strict=True)}
    )
    return Outputs(predictor.classes, outputs, unreadable)


def _check_selection_uses_run(file: Path, run: RunFolder) -> None:
    """Raise RecipeError if the selection in `file` has no member of `run`."""
    runs = {(file.parent / member.run).resolve() for member in Selection.read(file).members}
    if run.path.resolve() not in runs:
        raise RecipeError(f"{file} selects no member of {run.path}. Its runs: {', '.join(sorted(map(str, runs)))}.")


def _cells(row: Mapping[str, Any], promised: Iterable[str]) -> list[str]:
    classes = ", ".join(f"{best['class']} {best['probability']:.1%}" for best in row["top"])
    agreement = "-" if row["agreement"] is None else f"{row['agreement']:.0%}"
    cells = [row["image"], classes, f"{row['confidence']:.3f}", str(row["members_used"]), agreement]
    return [*cells, *(_show_promised(row[name]) for name in promised)]


def _show_promised(value: list[str] | bool) -> str:
    """Format a prediction set, or whether the answer is accepted."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) or "none"
