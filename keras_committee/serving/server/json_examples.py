"""Which tf.Examples does the JSON of a classify or regress request hold?"""

from typing import Any

import numpy as np

from keras_committee.serving.server.examples import merged
from keras_committee.serving.server.json_tensors import read_signature
from keras_committee.serving.server.json_text import parse, shown
from keras_committee.serving.server.json_values import decoded, is_base64, type_name
from keras_committee.serving.server.limits import Limits, check_shape
from keras_committee.tfserving.tf_protocol import StatusError

_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
_FLOAT_MAX = float(np.finfo(np.float32).max)


def read_examples(body: bytes, limits: Limits) -> tuple[str, np.ndarray]:
    """The signature's name and the serialized examples (examples,) in `body`, a context merged into each.

    Raises:
        StatusError: INVALID_ARGUMENT in TF Serving's words.
    """
    document = parse(body, limits)
    signature = read_signature(document)
    context = _example(document["context"]) if "context" in document else None
    if "examples" not in document:
        raise _format(document, "When method is classify, key 'examples' is expected and was not found")
    rows = document["examples"]
    if not isinstance(rows, list):
        raise _format(document, "Expecting 'examples' value to be an list/array")
    if not rows:
        raise _format(document, "'examples' value is an empty array")
    check_shape("examples", [len(rows)], limits)
    return signature, merged([_example(row) for row in rows], context, limits)


def _example(value: Any) -> Any:
    from tensorflow.core.example import example_pb2

    if not isinstance(value, dict):
        raise _invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        _fill(example.features.feature[name], name, content if isinstance(content, list) else [content])
    return example


def _fill(feature: Any, name: str, values: list[Any]) -> None:
    for value in values:
        kind, element = _element(value, name)
        if feature.WhichOneof("kind") not in (None, kind):
            wanted = _KINDS[feature.WhichOneof("kind")]
            raise _invalid(f"Unexpected element type in feature: {name} expecting type: {wanted}")
        getattr(feature, kind).value.append(element)


def _element(value: Any, name: str) -> tuple[str, Any]:
    """The field of a Feature that takes `value`, and how it takes it."""
    if isinstance(value, str) or is_base64(value):
        return "bytes_list", decoded(value)
    if value is None or isinstance(value, list | dict):
        raise _invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
    if isinstance(value, float) or not -(2**63) <= value < 2**64:
        return "float_list", _float(value)
    if value >= 2**63:
        raise _invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    return "int64_list", int(value)


def _float(value: float) -> float:
    if _FLOAT_MAX < abs(value) < float("inf"):
        raise _invalid(f"Cannot convert JSON value: {shown(value)} to float without loss of precision.")
    return float(value)


def _format(document: dict[str, Any], words: str) -> StatusError:
    return _invalid(f"JSON Value: {shown(document)} {words}")


def _invalid(message: str) -> StatusError:
    return StatusError("INVALID_ARGUMENT", message)
