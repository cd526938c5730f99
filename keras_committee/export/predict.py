"""What does an exported committee, here or behind a server, say of encoded pictures?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow as tf

from keras_committee.errors import ExportError
from keras_committee.tfserving.client import Client
from keras_committee.tfserving.config import list_versions
from keras_committee.tfserving.python_session import load_session
from keras_committee.tfserving.tf_protocol import StatusError

BATCH_SIZE = 64
_MISSING_SIGNATURE_CODES = (
    "NOT_FOUND",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
)  # what servers say where there is no `classify`

PredictFn = Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class ExportedCommittee:
    """A committee that is asked by signature.

    Args:
        predict_fn: Function of a signature's name and its inputs to its outputs.
        name: What messages call it.
    """

    def __init__(self, predict_fn: PredictFn, name: str):
        self._predict_fn, self._name = predict_fn, name

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The SavedModel in `folder`, or the newest version in it. Raises ExportError or RecipeError."""
        if not (folder / "saved_model.pb").is_file():
            versions = list_versions(folder)
            if not versions:
                raise ExportError(f"{folder} has no version: a folder whose name is a number. `export` makes one.")
            folder = next(
                child for child in folder.iterdir() if child.name.isdecimal() and int(child.name) == versions[-1]
            )
        return cls(load_session(folder).run, str(folder))

    @classmethod
    def from_url(cls, url: str) -> Self:
        """The model behind `grpc://host:port/NAME` or `http://host:port/NAME`. Raises RecipeError."""
        client = Client(url)
        return cls(lambda signature, inputs: client.predict(inputs, signature=signature), url)

    def predict(self, contents: Sequence[bytes]) -> dict[str, np.ndarray]:
        """The outputs of `predict_bytes` for each content: see `endpoints`; `valid` says which could be decoded.

        Raises:
            ExportError: If there is no such signature, or it has other outputs.
            RequestError: What the server said.
        """
        batches = [
            self._predict_fn("predict_bytes", {"image_bytes": _bytes_array(contents[start : start + BATCH_SIZE])})
            for start in range(0, len(contents), BATCH_SIZE)
        ]
        required = ("probabilities", "confidence", "mutual_information", "members_used", "valid")
        if missing := [name for name in required if name not in batches[0]]:
            raise ExportError(f"{self._name} is no committee of ours: predict_bytes has no {', '.join(missing)}.")
        return {name: np.concatenate([batch[name] for batch in batches]) for name in required}

    def class_names(self, content: bytes, count: int) -> tuple[str, ...]:
        """The names of the classes, by asking `classify` of one picture; their numbers where there is no such."""
        feature: Any = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
        example = tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature}))
        try:
            names = self._predict_fn("classify", {"inputs": _bytes_array([example.SerializeToString()])})["classes"][0]
        except StatusError as error:
            if error.code not in _MISSING_SIGNATURE_CODES:
                raise
            return tuple(f"class {number}" for number in range(count))
        return tuple(name.decode() for name in names.tolist())


def _bytes_array(contents: Sequence[bytes]) -> np.ndarray:
    return np.array(list(contents), object)  # or numpy cuts zeros off the end
