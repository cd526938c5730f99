"""What does the text of a request say, read by the rules of TF Serving's parser and refused in its words?"""

import base64
import binascii
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_committee.tfserving.server.examples import merge_context
from keras_committee.tfserving.server.limits import Limits, check_image_sizes, check_shape
from keras_committee.tfserving.tf_protocol import StatusError, TensorInfo

_STRING_LITERAL = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.S)
_HUGE_NUMBER = re.compile(rb"[eE]\+?\d{3}|\d{300}")  # may be beyond a double
_MAX_VALUE_CHARS = 1000  # characters of a value in a message
_CHUNK_BYTES = 2**20  # bytes looked at together
_WHITESPACE = " \t\r\n"
# Python's words and those of the parser behind TF Serving (rapidjson/error/en.h).
_RAPIDJSON_MESSAGES = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}


def parse_object(body: bytes, limits: Limits) -> dict[str, Any]:
    """The object that `body` begins with. Of equal keys the first counts, NaN and Infinity are numbers, and what
    follows the object is ignored.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    text = _decode_utf8(body)
    if not text:
        raise StatusError("INVALID_ARGUMENT", "JSON Parse error: The document is empty")
    skeleton = _STRING_LITERAL.sub(b"", body.lstrip(b"\xef\xbb\xbf \t\r\n"))
    _check_depth(skeleton, limits.max_json_depth)
    value = _decode_json(
        text,
        {"parse_float": _parse_finite_float, "parse_int": _parse_bounded_int} if _HUGE_NUMBER.search(skeleton) else {},
    )
    if not isinstance(value, dict):
        raise StatusError("INVALID_ARGUMENT", f"JSON Value: {format_value(value)} Is not object")
    return value


def format_value(value: Any) -> str:
    """The value as JSON for a message; a long one is cut."""
    chunks = json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value)
    text = "".join(itertools.islice((chunk[:_MAX_VALUE_CHARS] for chunk in chunks), _MAX_VALUE_CHARS))
    return text if len(text) <= _MAX_VALUE_CHARS else text[:_MAX_VALUE_CHARS] + "..."


def _decode_utf8(body: bytes) -> str:
    try:
        return body.removeprefix(b"\xef\xbb\xbf").decode().lstrip(_WHITESPACE)
    except UnicodeDecodeError as error:
        raise _parse_error("Invalid encoding in string.", error.start) from error


def _decode_json(text: str, options: dict[str, Any]) -> Any:
    try:
        return json.JSONDecoder(object_pairs_hook=_keep_first_duplicate, **options).raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise _parse_error(
            _rapidjson_message(error, text), len(text[: error.pos].encode("utf-8", "replace"))
        ) from error
    except RecursionError as error:
        raise StatusError("INVALID_ARGUMENT", "JSON Parse error: nested too deeply") from error
    except (ValueError, OverflowError) as error:  # an integer of thousands of digits, or 1e400
        raise StatusError("INVALID_ARGUMENT", "JSON Parse error: Number too big to be stored in double.") from error


def _keep_first_duplicate(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    last_values = dict(pairs)
    return last_values if len(last_values) == len(pairs) else dict(pairs[::-1])


def _parse_finite_float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise OverflowError
    return value


def _parse_bounded_int(text: str) -> int:
    float(value := int(text))  # OverflowError beyond a double
    return value


def _rapidjson_message(error: json.JSONDecodeError, text: str) -> str:
    if error.msg == "Expecting ',' delimiter":
        brackets = _STRING_LITERAL.sub(b"", text[: error.pos][-_CHUNK_BYTES:].encode("utf-8", "replace"))
        if _innermost_open_bracket(brackets) == b"{":
            return "Missing a comma or } after an object member."
        return "Missing a comma or ] after an array element."
    return _RAPIDJSON_MESSAGES.get(error.msg, "Invalid value.")


def _innermost_open_bracket(brackets: bytes) -> bytes:
    """The bracket that is still open at the end."""
    open_brackets = []
    for bracket in re.findall(rb"[\[\]{}]", brackets):
        if bracket in b"[{":
            open_brackets.append(bracket)
        elif open_brackets:
            open_brackets.pop()
    return open_brackets[-1] if open_brackets else b""


def _parse_error(message: str, offset: int) -> StatusError:
    return StatusError("INVALID_ARGUMENT", f"JSON Parse error: {message} at offset: {offset}")


def _check_depth(skeleton: bytes, max_depth: int) -> None:
    """Raises INVALID_ARGUMENT where the first value is nested deeper. `skeleton` is the text without its strings."""
    level = 0
    for start in range(0, len(skeleton), _CHUNK_BYTES):
        chunk = np.frombuffer(skeleton[start : start + _CHUNK_BYTES], np.uint8)
        steps = ((chunk == ord("[")) | (chunk == ord("{"))).astype(np.int32)
        steps -= (chunk == ord("]")) | (chunk == ord("}"))
        levels = level + np.cumsum(steps, dtype=np.int32)
        ended = np.flatnonzero(levels <= 0)
        if levels[: ended[0] if ended.size else None].max(initial=0) > max_depth:
            raise StatusError("INVALID_ARGUMENT", f"JSON Parse error: nested too deeply; at most {max_depth} levels")
        if ended.size:
            return
        level = int(levels[-1])


_C_TYPE_NAMES = {"float32": "float", "float64": "double", "float16": "half"}
_INT32_RANGE = (-(2**31), 2**31 - 1)
# What an integer of JSON must be for a dtype. Smaller ones travel as int32 and lose their upper bits, as there.
_INTEGER_RANGES = {
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), _INT32_RANGE),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_PYTHON_TYPES = {
    **dict.fromkeys(("float32", "float64"), (int, float)),
    **dict.fromkeys(_INTEGER_RANGES, (int,)),
    "bool": (bool,),
    "string": (str, dict),
}
_FLOAT_MAX = float(np.finfo(np.float32).max)


def is_base64(value: Any) -> bool:
    """Whether it is {"b64": "..."}: one value, not an object of named ones."""
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def json_to_array(value: Any, name: str, info: TensorInfo, limits: Limits) -> np.ndarray:
    """The array in a JSON value: scalars, or lists of lists of them. Strings become an object array of bytes.

    Raises:
        StatusError: INVALID_ARGUMENT in TF Serving's words (json_tensor.cc), or for one of the limits.
    """
    shape = infer_shape(value)
    check_shape(name, shape, limits)
    flat = _flatten(value, shape)
    if flat is None or not _matches_dtype(flat, info.dtype):
        check_value(value, info.dtype)
        raise StatusError("INVALID_ARGUMENT", f"{name} cannot be read as a tensor")
    if info.dtype == "string":
        array = np.empty(len(flat), object)
        array[:] = [decode_string(element) for element in flat]
        check_image_sizes(array, limits, name)
        return array.reshape(shape)
    return _to_numeric_array(flat, info).reshape(shape)


def infer_shape(value: Any) -> list[int]:
    """The shape by the first element of each list."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def check_value(value: Any, dtype: str) -> int:
    """The number of elements of a value; raises what TF Serving says of the first that is wrong."""
    return _check_nested(value, infer_shape(value), 0, dtype)


def decode_string(value: Any) -> bytes:
    """The bytes of a JSON string, or of {"b64": "..."}."""
    if isinstance(value, str):
        return _encode_utf8(value)
    if not is_base64(value):
        raise _invalid_argument(f"JSON Value: {format_value(value)} not formatted correctly for base64 data")
    try:
        text = "".join(value["b64"].split()).rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid_argument("Unable to base64 decode") from error


def type_error(value: Any, dtype: str) -> StatusError:
    return _invalid_argument(
        f"JSON Value: {format_value(value)} Type: {json_type_name(value)} is not of expected type: {_C_TYPE_NAMES.get(dtype, dtype)}"
    )


def json_type_name(value: Any) -> str:
    """What the parser calls a value."""
    names = {type(None): "Null", dict: "Object", list: "Array", str: "String"}
    return str(value) if isinstance(value, bool) else names.get(type(value), "Number")


def _flatten(value: Any, shape: list[int]) -> list[Any] | None:
    """All elements in a row; None where a list has another length than the shape says, or is missing."""
    flat = [value]
    for size in shape:
        if any(type(element) is not list for element in flat) or any(size != length for length in map(len, flat)):
            return None
        flat = list(itertools.chain.from_iterable(flat))
    return flat


def _matches_dtype(flat: list[Any], dtype: str) -> bool:
    types = set(map(type, flat))
    if not types.issubset(_PYTHON_TYPES.get(dtype, ())):
        return False
    if dtype in _INTEGER_RANGES and flat:
        minimum, maximum = _INTEGER_RANGES[dtype]
        return minimum <= min(flat) and max(flat) <= maximum
    return True


def _to_numeric_array(flat: list[Any], info: TensorInfo) -> np.ndarray:
    if info.dtype == "float32":
        wide = np.array(flat, np.float64) if flat else np.empty(0)
        overflow = np.isfinite(wide) & (np.abs(wide) > _FLOAT_MAX)
        if overflow.any():
            number = format_value(flat[int(np.argmax(overflow))])
            raise _invalid_argument(f"Cannot convert JSON value: {number} to float without loss of precision.")
        return wide.astype(np.float32)
    wide = np.int64 if info.dtype in ("int8", "int16", "uint8", "uint16") else info.numpy_dtype
    return np.array(flat, wide).astype(info.numpy_dtype)


def _check_nested(value: Any, shape: list[int], level: int, dtype: str) -> int:
    if not isinstance(value, list):
        if level != len(shape):
            raise _invalid_argument(
                f"JSON Value: {format_value(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        _check_element(value, dtype)
        return 1
    if level >= len(shape):
        raise _invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise _invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    return sum(_check_nested(item, shape, level + 1, dtype) for item in value)


def _check_element(value: Any, dtype: str) -> None:
    if dtype not in _PYTHON_TYPES:
        raise StatusError(
            "UNIMPLEMENTED",
            f"Conversion of JSON Value: {format_value(value)} to type: {_C_TYPE_NAMES.get(dtype, dtype)}",
        )
    if not _matches_dtype([value], dtype):
        raise type_error(value, dtype)
    if dtype == "string":
        decode_string(value)


def _encode_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _invalid_argument("JSON Parse error: The surrogate pair in string is invalid.") from error


def _invalid_argument(message: str) -> StatusError:
    return StatusError("INVALID_ARGUMENT", message)


TensorInfos = Mapping[str, TensorInfo]


@dataclasses.dataclass(frozen=True)
class PredictRequest:
    """`signature` is "" where none was named; `is_row_format` says in which format to answer."""

    signature: str
    inputs: dict[str, np.ndarray]
    is_row_format: bool


def read_predict(body: bytes, find_inputs: Callable[[str], TensorInfos], limits: Limits) -> PredictRequest:
    """The request in `body`.

    Args:
        body: UTF-8 text, decompressed.
        find_inputs: Maps the name of a signature to its inputs, or raises StatusError.
        limits: Checked before arrays are allocated.

    Raises:
        StatusError: INVALID_ARGUMENT in TF Serving's words.
    """
    document = parse_object(body, limits)
    signature = read_signature(document)
    infos = find_inputs(signature)
    if "instances" in document and "inputs" in document:
        raise _document_error(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        return PredictRequest(signature, _read_rows(document, infos, limits), is_row_format=True)
    if "inputs" in document:
        return PredictRequest(signature, _read_columns(document["inputs"], infos, limits), is_row_format=False)
    raise _invalid_argument("Missing 'inputs' or 'instances' key")


def read_signature(document: Mapping[str, Any]) -> str:
    """The name of the signature in a document, "" where it names none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _document_error(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def _read_columns(value: Any, infos: TensorInfos, limits: Limits) -> dict[str, np.ndarray]:
    if isinstance(value, dict) and not is_base64(value):
        for name in infos:
            if name not in value:
                raise _invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        return {name: json_to_array(value[name], name, info, limits) for name, info in infos.items()}
    if len(infos) > 1:
        raise _invalid_argument(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required "
            "as per tensorinfo_map"
        )
    return {name: json_to_array(value, name, info, limits) for name, info in infos.items()}


def _read_rows(document: dict[str, Any], infos: TensorInfos, limits: Limits) -> dict[str, np.ndarray]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise _document_error(document, "Expecting 'instances' to be an list/array")
    if not rows:
        raise _document_error(document, "No values in 'instances' array")
    check_shape("instances", [len(rows)], limits)
    if not isinstance(rows[0], dict) and len(infos) > 1:
        raise _invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    if _is_object(rows[0]):
        return _read_objects(rows, infos, limits)
    return _read_values(rows, infos, limits)


def _read_objects(rows: list[Any], infos: TensorInfos, limits: Limits) -> dict[str, np.ndarray]:
    if all(_is_object(row) and row.keys() == infos.keys() for row in rows):
        columns = {name: [row[name] for row in rows] for name in infos}
        return _read_or_explain(lambda: _read_columns(columns, infos, limits), lambda: _check_objects(rows, infos))
    _check_objects(rows, infos)
    raise _invalid_argument("'instances' cannot be read as tensors")


def _read_values(rows: list[Any], infos: TensorInfos, limits: Limits) -> dict[str, np.ndarray]:
    ((name, info),) = list(infos.items())[:1]
    return _read_or_explain(lambda: {name: json_to_array(rows, name, info, limits)}, lambda: _check_values(rows, info))


def _read_or_explain(read: Callable[[], dict[str, np.ndarray]], explain: Callable[[], None]) -> dict[str, np.ndarray]:
    """What `read` gives; where it refuses, TF Serving's words, which are about one row, come before ours."""
    try:
        return read()
    except StatusError:
        explain()
        raise


def _check_objects(rows: list[Any], infos: TensorInfos) -> None:
    first_seen: dict[str, tuple[int, list[int]]] = {}
    for i, row in enumerate(rows):
        if not _is_object(row):
            raise _invalid_argument(f"Expecting object but got list at item {i} of input list")
        for key, value in row.items():
            try:
                _check_item(value, key, infos, first_seen)
            except StatusError as error:
                raise _invalid_argument(
                    f"Failed to process element: {i} key: {key} of 'instances' list. Error: {error}"
                ) from error
        if row.keys() != infos.keys():
            raise _invalid_argument(
                f"Failed to process element: {i} of 'instances' list. JSON object: {format_value(row)} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )


def _check_values(rows: list[Any], info: TensorInfo) -> None:
    first_seen: dict[str, tuple[int, list[int]]] = {}
    for i, row in enumerate(rows):
        if _is_object(row):
            raise _invalid_argument(f"Expecting value/list but got object at item {i} of input list")
        try:
            _check_item(row, "", {"": info}, first_seen)
        except StatusError as error:
            raise _invalid_argument(f"Failed to process element: {i} of 'instances' list. Error: {error}") from error


def _check_item(value: Any, name: str, infos: TensorInfos, first_seen: dict[str, tuple[int, list[int]]]) -> None:
    if name not in infos:
        raise _invalid_argument(f"JSON object: does not have named input: {name}")
    size, shape = check_value(value, infos[name].dtype), infer_shape(value)
    first_size, first_shape = first_seen.setdefault(name, (size, shape))
    if size != first_size:
        raise _invalid_argument(f"Expecting tensor size: {first_size} but got: {size}")
    if shape != first_shape:
        raise _invalid_argument(f"Expecting shape {_format_shape(first_shape)} but got: {_format_shape(shape)}")


def _format_shape(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _document_error(document: Mapping[str, Any], message: str) -> StatusError:
    return _invalid_argument(f"JSON Value: {format_value(document)} {message}")


_FEATURE_TYPES = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def read_examples(body: bytes, limits: Limits) -> tuple[str, np.ndarray]:
    """The signature's name and the serialized examples (examples,) in `body`, a context merged into each.

    Raises:
        StatusError: INVALID_ARGUMENT in TF Serving's words.
    """
    document = parse_object(body, limits)
    signature = read_signature(document)
    context = _parse_example(document["context"]) if "context" in document else None
    if "examples" not in document:
        raise _document_error(document, "When method is classify, key 'examples' is expected and was not found")
    rows = document["examples"]
    if not isinstance(rows, list):
        raise _document_error(document, "Expecting 'examples' value to be an list/array")
    if not rows:
        raise _document_error(document, "'examples' value is an empty array")
    check_shape("examples", [len(rows)], limits)
    return signature, merge_context([_parse_example(row) for row in rows], context, limits)


def _parse_example(value: Any) -> Any:
    from tensorflow.core.example import example_pb2

    if not isinstance(value, dict):
        raise _invalid_argument(f"Example must be JSON object but got JSON {json_type_name(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        _fill_feature(example.features.feature[name], name, content if isinstance(content, list) else [content])
    return example


def _fill_feature(feature: Any, name: str, values: list[Any]) -> None:
    for value in values:
        kind, element = _parse_element(value, name)
        if feature.WhichOneof("kind") not in (None, kind):
            expected_type = _FEATURE_TYPES[feature.WhichOneof("kind")]
            raise _invalid_argument(f"Unexpected element type in feature: {name} expecting type: {expected_type}")
        getattr(feature, kind).value.append(element)


def _parse_element(value: Any, name: str) -> tuple[str, Any]:
    """The field of a Feature that takes `value`, and how it takes it."""
    if isinstance(value, str) or is_base64(value):
        return "bytes_list", decode_string(value)
    if value is None or isinstance(value, list | dict):
        raise _invalid_argument(f"Feature: {name} has element with unexpected JSON type: {json_type_name(value)}")
    if isinstance(value, float) or not -(2**63) <= value < 2**64:
        return "float_list", _checked_float(value)
    if value >= 2**63:
        raise _invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    return "int64_list", int(value)


def _checked_float(value: float) -> float:
    if _FLOAT_MAX < abs(value) < float("inf"):
        raise _invalid_argument(f"Cannot convert JSON value: {format_value(value)} to float without loss of precision.")
    return float(value)


def _document_error(document: dict[str, Any], message: str) -> StatusError:
    return _invalid_argument(f"JSON Value: {format_value(document)} {message}")
