"""May this version be served: is it what it seems, does it load, and does it answer its warm-up requests?"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.tfserving.python_session import load_session
from keras_committee.tfserving.server import examples
from keras_committee.tfserving.server.limits import Limits, check_image_sizes, check_shape
from keras_committee.tfserving.tf_protocol import WARMUP_FILE, StatusError, proto_to_array


def load_version(folder: Path) -> Any:
    """A session of the SavedModel in `folder`, which has answered its warm-up requests.

    Raises:
        StatusError: What is wrong with it.
    """
    check_no_symlinks(folder)
    session = load_session(folder)
    try:
        check_no_xla(session.meta_graph)
        replay(session, folder)
    except BaseException:
        session.close()
        raise
    return session


def check_no_symlinks(folder: Path) -> None:
    """Raises FAILED_PRECONDITION where `folder` or anything in it is a symbolic link: it may lead anywhere."""
    inside = (Path(directory, name) for directory, folders, files in os.walk(folder) for name in folders + files)
    for path in [folder, *inside]:
        if path.is_symlink():
            raise StatusError("FAILED_PRECONDITION", f"{path} is a symbolic link; a version must hold its own files")


def check_no_xla(meta_graph: Any) -> None:
    """Raises INTERNAL where a function must be compiled: TF Serving has XLA switched off, and each request fails."""
    for attributes in _graph_attributes(meta_graph.graph_def):
        if "_XlaMustCompile" in attributes and attributes["_XlaMustCompile"].b:
            raise StatusError(
                "INTERNAL",
                "XLA compilation disabled: a function of this model was traced with jit_compile=True",
            )


def _graph_attributes(graph: Any) -> Iterator[Any]:
    yield from _node_attributes(graph.node)
    for function in graph.library.function:
        yield function.attr
        yield from _node_attributes(function.node_def)


def _node_attributes(nodes: Iterable[Any]) -> Iterator[Any]:
    return (node.attr for node in nodes)


MAX_RECORDS = 1000  # records; TF Serving refuses more


def replay(session: Any, folder: Path) -> int:
    """Sends each recorded request of the SavedModel in `folder` to `session`; returns their number.

    Raises:
        StatusError: Of the first that fails; DATA_LOSS where the file is no TFRecord of PredictionLogs.
    """
    count = 0
    for count, record in enumerate(_read_records(folder / WARMUP_FILE), start=1):
        if count > MAX_RECORDS:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {folder / WARMUP_FILE}",
            )
        _replay_record(session, record, Limits())
    return count


def _read_records(path: Path) -> Iterator[Any]:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    if not path.is_file():
        return
    try:
        for content in tf.compat.v1.io.tf_record_iterator(str(path)):
            yield _parse_record(prediction_log_pb2.PredictionLog, content)
    except tf.errors.OpError as error:
        raise StatusError(
            "DATA_LOSS", f"{error.message}. Please verify your warmup data is in TFRecord format."
        ) from error


def _parse_record(message_class: Any, content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return message_class.FromString(content)
    except DecodeError as error:
        raise StatusError("INVALID_ARGUMENT", f"Failed to parse warmup record: {content[:64]!r}") from error


def _replay_record(session: Any, record: Any, limits: Limits) -> None:
    match record.WhichOneof("log_type"):
        case "predict_log":
            request = record.predict_log.request
            inputs = {name: _input_array(proto, name, limits) for name, proto in request.inputs.items()}
            session.run(request.model_spec.signature_name, inputs, list(request.output_filter))
        case "classify_log":
            request = record.classify_log.request
            examples.classify(
                session, request.model_spec.signature_name, examples.serialize_examples(request.input, limits)
            )
        case "regress_log":
            request = record.regress_log.request
            examples.regress(
                session, request.model_spec.signature_name, examples.serialize_examples(request.input, limits)
            )
        case "multi_inference_log":
            _replay_tasks(session, record.multi_inference_log.request, limits)
        case None:
            pass
        case other:
            raise StatusError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {other}")


def _input_array(proto: Any, name: str, limits: Limits) -> np.ndarray:
    array = proto_to_array(proto, limits.max_elements)
    check_shape(name, array.shape, limits)
    if array.dtype.kind == "O":
        check_image_sizes(array, limits, name)
    return array


def _replay_tasks(session: Any, request: Any, limits: Limits) -> None:
    inputs = examples.serialize_examples(request.input, limits)
    for task in request.tasks:
        inference_fn = examples.regress if task.method_name.endswith("regress") else examples.classify
        inference_fn(session, task.model_spec.signature_name, inputs)
