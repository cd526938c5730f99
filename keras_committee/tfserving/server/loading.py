"""Loading of a model version: checks, and its warm-up requests."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from keras_committee.tfserving.python_session import load_session
from keras_committee.tfserving.server import examples
from keras_committee.tfserving.server.limits import Limits, proto_to_checked_array
from keras_committee.tfserving.tf_protocol import WARMUP_FILE, StatusError

_MAX_WARMUP_RECORDS = 1000  # as in TF Serving


def load_version(folder: Path) -> Any:
    """Load the SavedModel in `folder` and replay its warm-up requests.

    Returns:
        A session.

    Raises:
        StatusError: If the version cannot be served, with the reason.
    """
    session = load_session(folder)
    try:
        check_no_xla(session.meta_graph)
        check_variables(session.meta_graph, folder)
        replay(session, folder)
    except BaseException:
        session.close()
        raise
    return session


def check_no_xla(meta_graph: Any) -> None:
    """Raise INTERNAL if a function must be compiled with XLA: TF Serving disables it, and each request would fail."""
    for attributes in _graph_attributes(meta_graph.graph_def):
        if "_XlaMustCompile" in attributes and attributes["_XlaMustCompile"].b:
            raise StatusError(
                "INTERNAL",
                "XLA compilation disabled: a function of this model was traced with jit_compile=True",
            )


def check_variables(meta_graph: Any, folder: Path) -> None:
    """Raise NOT_FOUND if the graph has variables and `folder` has no values for them.

    TensorFlow loads such a folder, a copy that has just begun, and TF Serving would serve it: each request would fail.
    """
    graph = meta_graph.graph_def
    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    index = folder / "variables" / "variables.index"
    if not index.is_file() and any(node.op == "VarHandleOp" for node in nodes):
        raise StatusError("NOT_FOUND", f"the model has variables, but there is no file {index}: the copy is incomplete")


def replay(session: Any, folder: Path) -> int:
    """Send each recorded warm-up request of the SavedModel in `folder` to `session`.

    Returns:
        The number of requests; 0 if the version has no warm-up file.

    Raises:
        StatusError: The error of the first request that fails; DATA_LOSS if the file is no TFRecord file.
    """
    count, limits = 0, Limits()
    for count, record in enumerate(_read_records(folder / WARMUP_FILE), start=1):
        if count > _MAX_WARMUP_RECORDS:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Number of warmup records exceeds the maximum ({_MAX_WARMUP_RECORDS}) at {folder / WARMUP_FILE}",
            )
        _replay_record(session, record, limits)
    return count


def _graph_attributes(graph: Any) -> Iterator[Any]:
    yield from _node_attributes(graph.node)
    for function in graph.library.function:
        yield function.attr
        yield from _node_attributes(function.node_def)


def _node_attributes(nodes: Iterable[Any]) -> Iterator[Any]:
    return (node.attr for node in nodes)


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
    kind = record.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in ("predict_log", "classify_log", "regress_log", "multi_inference_log"):
        raise StatusError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")
    request = getattr(record, kind).request
    if kind == "predict_log":
        inputs = {name: proto_to_checked_array(proto, name, limits) for name, proto in request.inputs.items()}
        session.run(request.model_spec.signature_name, inputs, list(request.output_filter))
        return
    rows = examples.serialize_input(request.input, limits)
    if kind == "multi_inference_log":
        for task in request.tasks:
            run = examples.regress if task.method_name.endswith("regress") else examples.classify
            run(session, task.model_spec.signature_name, rows)
    else:
        run = examples.classify if kind == "classify_log" else examples.regress
        run(session, request.model_spec.signature_name, rows)
