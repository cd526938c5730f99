"""May this version be served: is it what it seems, does it load, and does it answer its warm-up requests?"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.tfserving.python_session import load_session
from keras_committee.tfserving.server import examples
from keras_committee.tfserving.server.limits import Limits, check_shape, check_strings
from keras_committee.tfserving.tf_protocol import StatusError, to_array


def load_version(folder: Path) -> Any:
    """A session of the SavedModel in `folder`, which has answered its warm-up requests.

    Raises:
        StatusError: What is wrong with it.
    """
    refuse_links(folder)
    session = load_session(folder)
    try:
        refuse_xla(session.meta_graph)
        replay(session, folder)
    except BaseException:
        session.close()
        raise
    return session


def refuse_links(folder: Path) -> None:
    """Raises FAILED_PRECONDITION where `folder` or anything in it is a symbolic link: it may lead anywhere."""
    inside = (Path(place, name) for place, folders, files in os.walk(folder) for name in folders + files)
    for path in [folder, *inside]:
        if path.is_symlink():
            raise StatusError("FAILED_PRECONDITION", f"{path} is a symbolic link; a version must hold its own files")


def refuse_xla(meta_graph: Any) -> None:
    """Raises INTERNAL where a function must be compiled: TF Serving has XLA switched off, and each request fails."""
    for attributes in _attributes(meta_graph.graph_def):
        if "_XlaMustCompile" in attributes and attributes["_XlaMustCompile"].b:
            raise StatusError(
                "INTERNAL",
                "XLA compilation disabled: a function of this model was traced with jit_compile=True",
            )


def _attributes(graph: Any) -> Iterator[Any]:
    yield from _of_nodes(graph.node)
    for function in graph.library.function:
        yield function.attr
        yield from _of_nodes(function.node_def)


def _of_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    return (node.attr for node in nodes)


FILE = Path("assets.extra", "tf_serving_warmup_requests")
MOST = 1000  # records; TF Serving refuses more


def replay(session: Any, folder: Path) -> int:
    """Sends each recorded request of the SavedModel in `folder` to `session`; returns their number.

    Raises:
        StatusError: Of the first that fails; DATA_LOSS where the file is no TFRecord of PredictionLogs.
    """
    count = 0
    for count, record in enumerate(_records(folder / FILE), start=1):
        if count > MOST:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Number of warmup records exceeds the maximum ({MOST}) at {folder / FILE}",
            )
        _run(session, record, Limits())
    return count


def _records(path: Path) -> Iterator[Any]:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    if not path.is_file():
        return
    try:
        for content in tf.compat.v1.io.tf_record_iterator(str(path)):
            yield _parsed(prediction_log_pb2.PredictionLog, content)
    except tf.errors.OpError as error:
        raise StatusError(
            "DATA_LOSS", f"{error.message}. Please verify your warmup data is in TFRecord format."
        ) from error


def _parsed(kind: Any, content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise StatusError("INVALID_ARGUMENT", f"Failed to parse warmup record: {content[:64]!r}") from error


def _run(session: Any, record: Any, limits: Limits) -> None:
    match record.WhichOneof("log_type"):
        case "predict_log":
            request = record.predict_log.request
            inputs = {name: _to_array(proto, name, limits) for name, proto in request.inputs.items()}
            session.run(request.model_spec.signature_name, inputs, list(request.output_filter))
        case "classify_log":
            request = record.classify_log.request
            examples.classify(session, request.model_spec.signature_name, examples.serialized(request.input, limits))
        case "regress_log":
            request = record.regress_log.request
            examples.regress(session, request.model_spec.signature_name, examples.serialized(request.input, limits))
        case "multi_inference_log":
            _run_tasks(session, record.multi_inference_log.request, limits)
        case None:
            pass
        case other:
            raise StatusError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {other}")


def _to_array(proto: Any, name: str, limits: Limits) -> np.ndarray:
    array = to_array(proto, limits.elements)
    check_shape(name, array.shape, limits)
    if array.dtype.kind == "O":
        check_strings(array, limits, name)
    return array


def _run_tasks(session: Any, request: Any, limits: Limits) -> None:
    inputs = examples.serialized(request.input, limits)
    for task in request.tasks:
        called = examples.regress if task.method_name.endswith("regress") else examples.classify
        called(session, task.model_spec.signature_name, inputs)
