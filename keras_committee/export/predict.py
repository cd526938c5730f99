"""Predictions of an exported committee for encoded images, from its folder or through a server."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from keras_committee.errors import ExportError
from keras_committee.files import file_hash, read_problem, read_record
from keras_committee.tfserving.client import Client
from keras_committee.tfserving.messages import Example
from keras_committee.tfserving.python_session import load_session
from keras_committee.tfserving.tf_protocol import StatusError
from keras_committee.tfserving.versions import find_versions, list_versions

BATCH_SIZE = 64
PredictFn = Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]]

_PROMISED_OUTPUTS = ("prediction_set", "set_size", "accepted")
_OUTPUTS = ("probabilities", "confidence", "mutual_information", "members_used", "valid")
_MISSING_SIGNATURE_CODES = ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION")  # differs between servers


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
            if error.code not in _MISSING_SIGNATURE_CODES:
                raise
            return tuple(f"class {number}" for number in range(count))
        return tuple(name.decode() for name in names.tolist())


def _verify_graph(folder: Path) -> None:
    """Raise ExportError if the graph of a version is not the one that was exported. Its variables have checksums."""
    manifest = folder / "committee.json"
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
