"""What do Classify and Regress answer to a list of tf.Examples?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_committee.tfserving.server.limits import Limits, check_shape, check_strings
from keras_committee.tfserving.tf_protocol import DEFAULT, Signature, StatusError


def serialized(request_input: Any, limits: Limits) -> np.ndarray:
    """The examples of an `Input` message as an object array of bytes, (examples,); a context is merged into each."""
    if request_input.WhichOneof("kind") == "example_list_with_context":
        listed = request_input.example_list_with_context
        return merged(listed.examples, listed.context, limits)
    return merged(request_input.example_list.examples, None, limits)


def merged(examples: Sequence[Any], context: Any, limits: Limits) -> np.ndarray:
    """The Example messages as an object array of bytes, (examples,). Raises INVALID_ARGUMENT where there are none."""
    # Two serialized messages in a row are one in which what comes last wins.
    before = b"" if context is None else context.SerializeToString()
    if not examples:
        raise StatusError("INVALID_ARGUMENT", "Input is empty.")
    check_shape("examples", [len(examples)], limits)
    array = np.empty(len(examples), object)
    array[:] = [before + each.SerializeToString() for each in examples]
    check_strings(array, limits)
    return array


def classify(
    session: Any, signature: str, examples: np.ndarray, timeout: float | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Labels (examples, classes) of bytes and scores (examples, classes) of float32; one of them may be None.

    Raises:
        StatusError: In the words of TF Serving's classifier.cc.
    """
    called = _find(session, signature)
    _check_one_input(called, "classification")
    if len(called.outputs) not in (1, 2):
        raise StatusError("INVALID_ARGUMENT", f"Expected one or two output Tensors, found {len(called.outputs)}")
    names = [name for name in ("classes", "scores") if name in called.outputs]
    if not names:
        raise StatusError(
            "FAILED_PRECONDITION",
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {called.proto}",
        )
    answers = session.run(signature, {"inputs": examples}, names, timeout=timeout)
    for name, kind in (("classes", "string"), ("scores", "float")):
        _check_matrix(name, kind, answers.get(name), len(examples))
    classes, scores = answers.get("classes"), answers.get("scores")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}",
        )
    return classes, scores


def regress(session: Any, signature: str, examples: np.ndarray, timeout: float | None = None) -> np.ndarray:
    """Values (examples,) of float32. Raises StatusError in the words of TF Serving's regressor.cc."""
    called = _find(session, signature)
    _check_one_input(called, "regression")
    if len(called.outputs) != 1:
        raise StatusError("INVALID_ARGUMENT", "Expected one output Tensor.")
    if "outputs" not in called.outputs:
        raise StatusError("FAILED_PRECONDITION", f"No regression outputs found in SignatureDef: {called.proto}")
    values = session.run(signature, {"inputs": examples}, ["outputs"], timeout=timeout)["outputs"]
    if values.shape not in ((len(examples),), (len(examples), 1)):
        raise StatusError(
            "INVALID_ARGUMENT",
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"[{','.join(map(str, values.shape))}]",
        )
    if values.dtype != np.float32:
        raise StatusError("INVALID_ARGUMENT", f"Expected output Tensor of DT_FLOAT. Got: {values.dtype}")
    return values.ravel()


def _find(session: Any, signature: str) -> Signature:
    if (signature or DEFAULT) not in session.signatures:
        raise StatusError("INVALID_ARGUMENT", f"No signature was found with the name: {signature or DEFAULT}")
    return session.signatures[signature or DEFAULT]


def _check_one_input(called: Signature, what: str) -> None:
    if len(called.inputs) != 1:
        raise StatusError("INVALID_ARGUMENT", "Expected one input Tensor.")
    if "inputs" not in called.inputs:
        raise StatusError("FAILED_PRECONDITION", f"No {what} inputs found in SignatureDef: {called.proto}")


def _check_matrix(name: str, kind: str, array: np.ndarray | None, rows: int) -> None:
    if array is None:
        return
    if array.ndim != 2:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Expected Tensor shape: [batch_size num_classes] but got [{','.join(map(str, array.shape))}]",
        )
    if (array.dtype.kind == "O") != (kind == "string") or (kind == "float" and array.dtype != np.float32):
        raise StatusError("INVALID_ARGUMENT", f"Expected {name} Tensor of DT_{kind.upper()}. Got: {array.dtype}")
    if len(array) != rows:
        raise StatusError("INVALID_ARGUMENT", f"Expected {name} output batch size of {rows}. Got: {len(array)}")
