"""Predictions of an exported committee for images, from its folder or through a server."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_committee.errors import ExportError, RecipeError
from keras_committee.export import formats
from keras_committee.files import file_hash, read_problem, read_record
from keras_committee.folder_kinds import version_format
from keras_committee.tfserving.client import MISSING_SIGNATURE_CODES, Client
from keras_committee.tfserving.messages import Example
from keras_committee.tfserving.python_session import load_session
from keras_committee.tfserving.tf_protocol import StatusError
from keras_committee.tfserving.versions import MANIFEST_FILE, find_versions, list_versions

BATCH_SIZE = 64
PredictFn = Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]]

_PROMISED_OUTPUTS = ("prediction_set", "set_size", "accepted")
_OUTPUTS = ("probabilities", "confidence", "mutual_information", "members_used", "valid")


class ExportedCommittee:
    """An exported committee, called by signature.

    Args:
        predict_fn: Function of a signature's name and its inputs that returns its outputs.
        name: Name of the committee in error messages.
    """

    def __init__(self, predict_fn: PredictFn, name: str):
        self._predict_fn, self._name = predict_fn, name

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load the SavedModel in `folder`, or the newest version in it.

        Raises:
            RecipeError: If the folder cannot be read, or has two folders of one version.
            ExportError: If there is no version, or it is damaged or cannot be loaded.
        """
        if not (folder / "saved_model.pb").is_file():
            versions = list_versions(folder)
            if not versions:
                raise ExportError(
                    f"{folder} contains no version, a folder with a number as its name. "
                    "Create one with `keras-committee export RUN`."
                )
            folder = find_versions(folder)[versions[-1]]
        _verify_graph(folder)
        return cls(load_session(folder).run, str(folder))

    @classmethod
    def from_url(cls, url: str, *, timeout: float = 30.0, connect_timeout: float | None = None) -> Self:
        """Connect to the model at `grpc://host:port/NAME` or `http://host:port/NAME`; see `Client`."""
        client = Client(url, timeout=timeout, connect_timeout=connect_timeout)
        return cls(lambda signature, inputs: client.predict(inputs, signature=signature), url)

    def predict(self, contents: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Return the outputs of `predict_bytes`, one row per image.

        Args:
            contents: Contents of JPEG or PNG files.

        Returns:
            `probabilities` `(images, classes)`, and arrays `(images,)`: `confidence`, `mutual_information`,
            `members_used` and `valid`. Rows that are not `valid` could not be decoded. A model with a promise also has
            `prediction_set` `(images, classes)` and `set_size`, or `accepted`.

        Raises:
            ExportError: If the model has no such signature, or it has other outputs.
            RequestError: If the server reports an error.
        """
        batches = [
            self._predict_fn("predict_bytes", {"image_bytes": _bytes_array(contents[start : start + BATCH_SIZE])})
            for start in range(0, len(contents), BATCH_SIZE)
        ]
        if missing := [name for name in _OUTPUTS if name not in batches[0]]:
            raise ExportError(
                f"{self._name} was not exported by keras-committee: predict_bytes does not return {', '.join(missing)}."
            )
        names = [name for name in (*_OUTPUTS, *_PROMISED_OUTPUTS) if name in batches[0]]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in names}

    def class_names(self, content: bytes, count: int) -> tuple[str, ...]:
        """Return the names of the classes from `classify`, or "class 0", "class 1", ... if the model lacks it.

        Args:
            content: Contents of a JPEG or PNG file.
            count: Number of classes.
        """
        try:
            names = self._predict_fn("classify", {"inputs": _bytes_array([serialize_example(content)])})["classes"][0]
        except StatusError as error:
            if error.code not in MISSING_SIGNATURE_CODES:
                raise
            return tuple(f"class {number}" for number in range(count))
        return tuple(name.decode() for name in names.tolist())


class ConvertedCommittee:
    """An export in another format than the SavedModel, in its runtime.

    Args:
        folder: Folder of the model or of one version; of a model the newest version is loaded.

    Attributes:
        classes: Names of the classes.
        transforms: The image transform by which an image becomes the input, alone in a tuple.

    Raises:
        RecipeError: If a package is missing, or the members see image files in several ways or with other than three
            channels; the message names the call of the runtime.
        ExportError: If the version is damaged or cannot be loaded.
    """

    def __init__(self, folder: Path):
        from keras_committee.data.preprocessing import ImageTransform

        if version_format(folder) is None:
            folder = find_versions(folder)[list_versions(folder)[-1]]
        name = version_format(folder)
        if name not in formats.CONVERTED_FORMATS:
            raise ExportError(f"{folder} has no version in another format than the SavedModel.")
        formats.check_packages(name)
        _verify_graph(folder)
        try:
            manifest = read_record(folder / MANIFEST_FILE, may_be_edited=True)
            transforms = [ImageTransform.from_dict(config) for config in manifest["transforms"]]
            self.classes, channels = tuple(manifest["labels"]), manifest["image"]["channels"]
        except (OSError, ValueError, KeyError) as error:
            raise ExportError(
                f"{folder / 'committee.json'} is missing or damaged: {read_problem(error)}.\n"
                "  Export again: keras-committee export RUN"
            ) from error
        self.transforms = tuple(dict.fromkeys(transforms))
        if len(self.transforms) > 1 or channels != 3:
            call = "\n  ".join(formats.python_call(name, folder))
            raise RecipeError(
                f"the members of {folder} see image files in several ways or with {channels} channels; its input is "
                f"pixels of one size. Prepare the pixels, and call:\n  {call}"
            )
        try:
            self._run = formats.load(folder)
        except Exception as error:  # runtimes raise errors of many kinds
            raise ExportError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error

    def predict(self, images: Mapping[Any, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs for raw pixels `(images, height, width, 3)`, one row per image; see `Format`.

        Args:
            images: uint8 or float32 raw pixels by image transform, for each of `transforms`.
        """
        pixels = images[self.transforms[0]]
        batches = [self._run(pixels[start : start + BATCH_SIZE]) for start in range(0, len(pixels), BATCH_SIZE)]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _verify_graph(folder: Path) -> None:
    """Raise ExportError if the graph of a version is not the one that was exported. Its variables have checksums."""
    manifest = folder / MANIFEST_FILE
    if not manifest.exists():  # of another program
        return
    try:
        files = read_record(manifest, may_be_edited=True).get("files", {})
        damaged = [str(folder / name) for name, digest in files.items() if file_hash(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{manifest} is damaged: {read_problem(error)}.\n  Export again: keras-committee export RUN"
        ) from error
    if damaged:
        raise ExportError(
            f"{', '.join(damaged)} is damaged: its SHA-256 is not that in committee.json.\n"
            "  Export again: keras-committee export RUN"
        )


def serialize_example(content: bytes) -> bytes:
    """Return the serialized `tf.train.Example` of an encoded image, as the signature `classify` takes it."""
    return Example(features={"feature": {"image/encoded": {"bytes_list": {"value": [content]}}}}).SerializeToString()


def _bytes_array(contents: Sequence[bytes]) -> np.ndarray:
    return np.array(list(contents), object)  # a fixed-width dtype would drop trailing zero bytes
