"""The interface of `Session` over `tf.saved_model.load`, for a TensorFlow without the C API."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.tfserving.session import Session
from keras_committee.tfserving.tf_protocol import (
    CODES,
    DEFAULT_SIGNATURE,
    Signature,
    StatusError,
    check_inputs,
    check_rank,
    choose_outputs,
    datatype_enum,
    find_signature,
    read_signatures,
)

_EAGER_ERROR_PREFIX = re.compile(r"^Graph execution error:\s+(?:Detected at node .*\n<stack traces unavailable>\n)?")


class PythonSession:
    """`Session` in Python, with the same results. Some error messages of TensorFlow differ from those of TF Serving.

    Attributes:
        signatures: `Signature` by name.
        meta_graph: The MetaGraphDef of the file.
    """

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "PythonSession":
        """Load the SavedModel in `folder`. Raises StatusError if TensorFlow cannot load it."""
        import tensorflow as tf

        try:
            return cls(tf.saved_model.load(str(folder)), _read_meta_graph(Path(folder)))
        except tf.errors.OpError as error:
            raise _to_status_error(error) from error
        except (OSError, ValueError, LookupError) as error:
            raise StatusError("NOT_FOUND", str(error)) from error

    def __init__(self, model: Any, meta_graph: Any):
        self._model = model
        self.meta_graph = meta_graph
        self.signatures: dict[str, Signature] = read_signatures(meta_graph)

    def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Session.run`. `timeout` has no effect: eager TensorFlow cannot be interrupted."""
        spec = find_signature(self.signatures, signature)
        check_inputs(spec, inputs)
        names = choose_outputs(spec.outputs, outputs)
        _check_dtypes(spec, inputs)
        results = self._run(signature or DEFAULT_SIGNATURE, inputs)
        for name in names:
            check_rank(results[name].shape.rank)
        return {name: np.asarray(results[name].numpy()) for name in names}

    def close(self) -> None:
        """Release the model; its memory is freed after the last running call."""
        self._model = None

    def __enter__(self) -> "PythonSession":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        import tensorflow as tf

        model = self._model
        if model is None:
            raise StatusError("UNAVAILABLE", "the session is closed")
        try:
            return model.signatures[signature](**{name: tf.constant(array) for name, array in inputs.items()})
        except tf.errors.OpError as error:
            raise _to_status_error(error) from error
        except (TypeError, ValueError) as error:
            raise StatusError("INVALID_ARGUMENT", str(error)) from error


def load_session(folder: str | os.PathLike[str]) -> Session | PythonSession:
    """Load a `Session`, or a `PythonSession` if this TensorFlow has no C API. Raises StatusError."""
    try:
        return Session.load(folder)
    except ImportError:
        return PythonSession.load(folder)


def _read_meta_graph(folder: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    graphs = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
    return next(graph for graph in graphs if list(graph.meta_info_def.tags) == ["serve"])


def _check_dtypes(spec: Signature, inputs: Mapping[str, np.ndarray]) -> None:
    import tensorflow as tf

    for index, (name, info) in enumerate(spec.inputs.items()):
        if (actual_enum := datatype_enum(np.asarray(inputs[name]))) != info.datatype_enum:
            expected, actual = _c_type_name(tf.as_dtype(info.datatype_enum)), _c_type_name(tf.as_dtype(actual_enum))
            raise StatusError("INVALID_ARGUMENT", f"Expects arg[{index}] to be {expected} but {actual} is provided")


def _c_type_name(dtype: Any) -> str:
    names = {"float32": "float", "float64": "double", "float16": "half"}
    return names.get(dtype.name) or dtype.name


def _to_status_error(error: Any) -> StatusError:
    return StatusError(CODES[error.error_code], _EAGER_ERROR_PREFIX.sub("", error.message))
