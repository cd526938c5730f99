"""Classify and Regress on tf.Examples, with TF Serving's checks and messages."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_committee.tfserving.server.limits import Limits, check_image_sizes, check_shape
from keras_committee.tfserving.tf_protocol import DEFAULT_SIGNATURE, Signature, StatusError, datatype_enum


def serialize_input(request_input: Any, limits: Limits) -> np.ndarray:
    """Return the examples of an `Input` message as an object array of bytes, (examples,), each with the context.

    Raises:
        StatusError: INVALID_ARGUMENT if there are no examples, or too many.
    """
    if request_input.WhichOneof("kind") == "example_list_with_context":
        examples_with_context = request_input.example_list_with_context
        return serialize_examples(examples_with_context.examples, examples_with_context.context, limits)
    return serialize_examples(request_input.example_list.examples, None, limits)


def serialize_examples(examples: Sequence[Any], context: Any, limits: Limits) -> np.ndarray:
    """Return Example messages as an object array of bytes, (examples,).

    Args:
        examples: Example messages.
        context: Example message with the features that all examples share, or None.
        limits: Checked on the number of examples and on the images in them.

    Raises:
        StatusError: INVALID_ARGUMENT if there are no examples, or too many.
    """
    # Concatenated messages parse as one, in which the later value of a feature wins.
    context_bytes = b"" if context is None else context.SerializeToString()
    if not examples:
        raise StatusError("INVALID_ARGUMENT", "Input is empty.")
    check_shape("examples", [len(examples)], limits)
    array = np.empty(len(examples), object)
    array[:] = [context_bytes + example.SerializeToString() for example in examples]
    check_image_sizes(array, limits)
    return array


def find_signature(session: Any, name: str) -> Signature:
    """Return a signature for classify or regress; "" is "serving_default". Raises INVALID_ARGUMENT if it is missing."""
    name = name or DEFAULT_SIGNATURE
    if name not in session.signatures:
        raise StatusError("INVALID_ARGUMENT", f"No signature was found with the name: {name}")
    return session.signatures[name]


def check_classification(spec: Signature) -> None:
    """Raise INVALID_ARGUMENT, in the words of TF Serving (classifier.cc), unless a signature classifies examples."""
    if len(spec.inputs) != 1:
        raise StatusError("INVALID_ARGUMENT", "Expected one input Tensor.")
    if len(spec.outputs) not in (1, 2):
        raise StatusError("INVALID_ARGUMENT", f"Expected one or two output Tensors, found {len(spec.outputs)}")
    if "inputs" not in spec.inputs:
        raise StatusError("INVALID_ARGUMENT", f"No classification inputs found in SignatureDef: {spec.proto}")
    if not {"classes", "scores"} & spec.outputs.keys():
        raise StatusError(
            "INVALID_ARGUMENT",
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {spec.proto}",
        )


def check_regression(spec: Signature) -> None:
    """Raise INVALID_ARGUMENT, in the words of TF Serving (regressor.cc), unless a signature is a regression."""
    if len(spec.inputs) != 1:
        raise StatusError("INVALID_ARGUMENT", "Expected one input Tensor.")
    if len(spec.outputs) != 1:
        raise StatusError("INVALID_ARGUMENT", "Expected one output Tensor.")
    if "inputs" not in spec.inputs:
        raise StatusError("INVALID_ARGUMENT", f"No regression inputs found in SignatureDef: {spec.proto}")
    if "outputs" not in spec.outputs:
        raise StatusError("INVALID_ARGUMENT", f"No regression outputs found in SignatureDef: {spec.proto}")


def classify(
    session: Any, signature: str, examples: np.ndarray, timeout: float | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Run a classification signature.

    Args:
        session: A loaded model.
        signature: Name of the signature; "" is "serving_default".
        examples: Serialized examples, (examples,).
        timeout: Seconds.

    Returns:
        Labels (examples, classes), bytes, and scores (examples, classes), float32; one of them may be None.

    Raises:
        StatusError: With the messages of TF Serving's classifier.cc.
    """
    spec = find_signature(session, signature)
    check_classification(spec)
    names = [name for name in ("classes", "scores") if name in spec.outputs]
    outputs = session.run(signature, {"inputs": examples}, names, timeout=timeout)
    for name, kind in (("classes", "string"), ("scores", "float")):
        _check_matrix(name, kind, outputs.get(name), len(examples))
    classes, scores = outputs.get("classes"), outputs.get("scores")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}",
        )
    return classes, scores


def regress(session: Any, signature: str, examples: np.ndarray, timeout: float | None = None) -> np.ndarray:
    """Run a regression signature.

    Args:
        session: A loaded model.
        signature: Name of the signature; "" is "serving_default".
        examples: Serialized examples, (examples,).
        timeout: Seconds.

    Returns:
        Values (examples,), float32.

    Raises:
        StatusError: With the messages of TF Serving's regressor.cc.
    """
    check_regression(find_signature(session, signature))
    values = session.run(signature, {"inputs": examples}, ["outputs"], timeout=timeout)["outputs"]
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise StatusError(
            "INVALID_ARGUMENT",
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{format_shape(values.shape)}",
        )
    if len(values) != len(examples):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Input batch size did not match output batch size: {len(examples)} vs. {len(values)}",
        )
    if values.dtype != np.float32:
        raise StatusError("INVALID_ARGUMENT", f"Expected output Tensor of DT_FLOAT.  Got: {_datatype_name(values)}")
    return values.ravel()


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape as TF Serving prints it: "[2,3]"."""
    return f"[{','.join(map(str, shape))}]"


def _datatype_name(array: np.ndarray) -> str:
    from tensorflow.core.framework import types_pb2

    return types_pb2.DataType.Name(datatype_enum(array))


def _check_matrix(name: str, kind: str, array: np.ndarray | None, rows: int) -> None:
    if array is None:
        return
    if array.ndim != 2:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Expected Tensor shape: [batch_size num_classes] but got {format_shape(array.shape)}",
        )
    if (array.dtype.kind == "O") != (kind == "string") or (kind == "float" and array.dtype != np.float32):
        raise StatusError(
            "INVALID_ARGUMENT", f"Expected {name} Tensor of DT_{kind.upper()}. Got: {_datatype_name(array)}"
        )
    if len(array) != rows:
        raise StatusError("INVALID_ARGUMENT", f"Expected {name} output batch size of {rows}. Got: {len(array)}")
