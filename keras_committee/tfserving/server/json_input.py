"""JSON requests of TF Serving's REST API, parsed by its rules and rejected with its messages (util/json_tensor.cc)."""

import base64
import binascii
import dataclasses
import decimal
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_committee.tfserving.server.examples import format_shape, serialize_examples
from keras_committee.tfserving.server.json_output import format_string
from keras_committee.tfserving.server.json_reader import (
    PLACEHOLDER,
    NumberArray,
    ObjectWithDuplicates,
    read_json,
    split_numbers,
    without_garbage_collection,
)
from keras_committee.tfserving.server.limits import Limits, check_image_sizes, check_shape
from keras_committee.tfserving.tf_protocol import StatusError, TensorInfo

_MAX_VALUE_BYTES = 256  # of a value in a message; the last token may exceed it
_MAX_TOKEN_CHARS = 1000
_MAX_PLAIN_DIGITS = 21  # before the point of a number in a message; longer numbers have an exponent
_ASCII_WHITESPACE = dict.fromkeys(map(ord, " \t\n\v\f\r"))  # ignored in base64
_C_TYPE_NAMES = {"float32": "float", "float64": "double", "float16": "half"}
_INT32_RANGE = (-(2**31), 2**31 - 1)
# Integers accepted for a dtype. TF Serving reads the smaller dtypes as int32 and drops their upper bits; for uint16 it
# has no JSON form.
_INTEGER_RANGES = {
    **dict.fromkeys(("int8", "int16", "int32", "uint8"), _INT32_RANGE),
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
_FEATURE_TYPES = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}

TensorInfos = Mapping[str, TensorInfo]


@dataclasses.dataclass(frozen=True)
class PredictRequest:
    """A parsed predict request.

    Attributes:
        signature: Name of the signature; "" if the request has none.
        inputs: Arrays by input name.
        is_row_format: Whether the request has "instances", so that the response has "predictions".
    """

    signature: str
    inputs: dict[str, np.ndarray]
    is_row_format: bool


def read_predict(body: bytes, find_inputs: Callable[[str], TensorInfos], limits: Limits) -> PredictRequest:
    """Parse the body of a predict request.

    Args:
        body: UTF-8 text, decompressed.
        find_inputs: Maps the name of a signature to its inputs, or raises StatusError.
        limits: Checked before arrays are allocated.

    Raises:
        StatusError: INVALID_ARGUMENT with TF Serving's message.
    """
    find_inputs = functools.cache(find_inputs)
    with without_garbage_collection():
        return _read_predict_of_numbers(body, find_inputs, limits) or _read_predict(body, find_inputs, limits)


def read_examples(body: bytes, limits: Limits) -> tuple[str, np.ndarray]:
    """Parse the body of a classify or regress request.

    Args:
        body: UTF-8 text, decompressed.
        limits: Checked before arrays are allocated.

    Returns:
        The signature's name and the serialized examples, (examples,), each with the context.

    Raises:
        StatusError: INVALID_ARGUMENT with TF Serving's message.
    """
    with without_garbage_collection():
        return _read_examples(body, limits)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object at the start of `body`.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    value = read_json(body)
    if not isinstance(value, dict):
        raise _invalid_argument(f"JSON Value: {_format_value(value)} Is not object")
    return value


def _read_predict_of_numbers(
    body: bytes, find_inputs: Callable[[str], TensorInfos], limits: Limits
) -> PredictRequest | None:
    """Parse a valid request whose only input is one long list of numbers. Returns None for any other request."""
    document, array = split_numbers(body) or ({}, NumberArray([], []))
    if not isinstance(document, dict):
        return None
    signature, is_row_format = document.get("signature_name", ""), "instances" in document
    if not isinstance(signature, str) or is_row_format == ("inputs" in document):
        return None
    infos = find_inputs(signature)
    value = document["instances" if is_row_format else "inputs"]
    if not is_row_format and isinstance(value, dict) and list(value) == list(infos):
        (value,) = list(value.values())[:1]
    name, info = next(iter(infos.items()))
    if value != PLACEHOLDER or len(infos) > 1 or info.dtype not in ("float32", "float64"):
        return None
    if len(array.shape) >= limits.max_json_depth:
        return None
    check_shape(name, array.shape, limits)
    return PredictRequest(signature, {name: _to_numeric_array(array.numbers, info).reshape(array.shape)}, is_row_format)


def _read_predict(body: bytes, find_inputs: Callable[[str], TensorInfos], limits: Limits) -> PredictRequest:
    document = parse_object(body)
    signature = _read_signature(document)
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


def _read_examples(body: bytes, limits: Limits) -> tuple[str, np.ndarray]:
    document = parse_object(body)
    signature = _read_signature(document)
    context = _parse_example(document["context"]) if "context" in document else None
    if "examples" not in document:
        raise _document_error(document, "When method is classify, key 'examples' is expected and was not found")
    rows = document["examples"]
    if not isinstance(rows, list):
        raise _document_error(document, "Expecting 'examples' value to be an list/array")
    if not rows:
        raise _document_error(document, "'examples' value is an empty array")
    check_shape("examples", [len(rows)], limits)
    return signature, serialize_examples([_parse_example(row) for row in rows], context, limits)


def _read_signature(document: Mapping[str, Any]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _document_error(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


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
        return _read_or_explain(
            lambda: _read_columns(columns, infos, limits), lambda: _check_objects(rows, infos, limits)
        )
    _check_objects(rows, infos, limits)
    raise _invalid_argument("'instances' cannot be read as tensors")


def _read_values(rows: list[Any], infos: TensorInfos, limits: Limits) -> dict[str, np.ndarray]:
    ((name, info),) = list(infos.items())[:1]
    return _read_or_explain(
        lambda: {name: _read_tensor(rows, name, info, limits)}, lambda: _check_values(rows, info, limits)
    )


def _read_or_explain(read: Callable[[], dict[str, np.ndarray]], explain: Callable[[], None]) -> dict[str, np.ndarray]:
    """Return `read()`. If it fails, `explain()` first raises TF Serving's error, which names the row."""
    try:
        return read()
    except StatusError:
        explain()
        raise


def _check_objects(rows: list[Any], infos: TensorInfos, limits: Limits) -> None:
    first_shapes: dict[str, tuple[int, list[int]]] = {}
    for i, row in enumerate(rows):
        if not _is_object(row):
            raise _invalid_argument(f"Expecting object but got list at item {i} of input list")
        for key, value in row.items():
            try:
                _check_item(value, key, infos, limits, first_shapes)
            except StatusError as error:
                raise _invalid_argument(
                    f"Failed to process element: {i} key: {key} of 'instances' list. Error: {error}"
                ) from error
        if row.keys() != infos.keys():
            raise _invalid_argument(
                f"Failed to process element: {i} of 'instances' list. JSON object: {_format_value(row)} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )


def _check_values(rows: list[Any], info: TensorInfo, limits: Limits) -> None:
    first_shapes: dict[str, tuple[int, list[int]]] = {}
    for i, row in enumerate(rows):
        if _is_object(row):
            raise _invalid_argument(f"Expecting value/list but got object at item {i} of input list")
        try:
            _check_item(row, "", {"": info}, limits, first_shapes)
        except StatusError as error:
            raise _invalid_argument(f"Failed to process element: {i} of 'instances' list. Error: {error}") from error


def _check_item(
    value: Any, name: str, infos: TensorInfos, limits: Limits, first_shapes: dict[str, tuple[int, list[int]]]
) -> None:
    if name not in infos:
        raise _invalid_argument(f"JSON object: does not have named input: {name}")
    shape = _infer_shape(value, limits)
    size = _check_nested(value, shape, 0, infos[name].dtype)
    first_size, first_shape = first_shapes.setdefault(name, (size, shape))
    if size != first_size:
        raise _invalid_argument(f"Expecting tensor size: {first_size} but got: {size}")
    if shape != first_shape:
        raise _invalid_argument(f"Expecting shape {format_shape(first_shape)} but got: {format_shape(shape)}")


def _read_columns(value: Any, infos: TensorInfos, limits: Limits) -> dict[str, np.ndarray]:
    if _is_object(value):
        for name in infos:
            if name not in value:
                raise _invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        return {name: _read_tensor(value[name], name, info, limits) for name, info in infos.items()}
    if len(infos) > 1:
        raise _invalid_argument(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required "
            "as per tensorinfo_map"
        )
    return {name: _read_tensor(value, name, info, limits) for name, info in infos.items()}


def _read_tensor(value: Any, name: str, info: TensorInfo, limits: Limits) -> np.ndarray:
    """Return the array of a JSON value: a scalar, or nested lists. Strings become an object array of bytes."""
    shape = _infer_shape(value, limits)
    check_shape(name, shape, limits)
    flat = _flatten(value, shape)
    if flat is None or not _matches_dtype(flat, info.dtype):
        _check_nested(value, shape, 0, info.dtype)
        raise _invalid_argument(f"{name} cannot be read as a tensor")
    if info.dtype == "string":
        array = np.empty(len(flat), object)
        array[:] = [_decode_string(element) for element in flat]
        check_image_sizes(array, limits)
        return array.reshape(shape)
    return _to_numeric_array(flat, info).reshape(shape)


def _infer_shape(value: Any, limits: Limits) -> list[int]:
    """Return the shape by the first element of each list. Raises INVALID_ARGUMENT if it has too many dimensions."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    if len(shape) >= limits.max_json_depth:  # the request's object is a level, too
        raise _invalid_argument(f"a tensor is nested too deeply; at most {limits.max_json_depth - 1} lists")
    return shape


def _flatten(value: Any, shape: list[int]) -> list[Any] | None:
    """Return all elements in one list, or None if the nested lists do not have this shape."""
    flat = [value]
    for size in shape:
        if not ({list}.issuperset(map(type, flat)) and {size}.issuperset(map(len, flat))):
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


def _check_nested(value: Any, shape: list[int], level: int, dtype: str) -> int:
    """Return the number of elements of a value; raise TF Serving's error for the first invalid one."""
    if not isinstance(value, list):
        if level != len(shape):
            raise _invalid_argument(
                f"JSON Value: {_format_value(value)} found at incorrect level: {level + 1} in the JSON DOM. "
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
    type_name = _C_TYPE_NAMES.get(dtype, dtype)
    if dtype not in _PYTHON_TYPES and not isinstance(value, dict):
        raise StatusError("UNIMPLEMENTED", f"Conversion of JSON Value: {_format_value(value)} to type: {type_name}")
    if dtype == "string" and isinstance(value, dict):
        _decode_string(value)
    elif not _matches_dtype([value], dtype):
        raise _invalid_argument(
            f"JSON Value: {_format_value(value)} Type: {_json_type_name(value)} is not of expected type: {type_name}"
        )


def _to_numeric_array(flat: list[Any], info: TensorInfo) -> np.ndarray:
    if info.dtype == "float32":
        return _to_float32(flat)
    wide = np.int64 if info.dtype in ("int8", "int16", "uint8") else info.numpy_dtype
    return np.array(flat, wide).astype(info.numpy_dtype)


def _to_float32(values: list[Any]) -> np.ndarray:
    """Return the values as float32; beyond its range they are infinite."""
    with np.errstate(over="ignore"):
        return np.fromiter(values, np.float64, len(values)).astype(np.float32)


def _decode_string(value: Any) -> bytes:
    """Return the bytes of a JSON string, or of {"b64": "..."}."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")  # may be any bytes
    if not _is_base64(value):
        raise _invalid_argument(f"JSON Value: {_format_value(value)} not formatted correctly for base64 data")
    encoded = value["b64"].translate(_ASCII_WHITESPACE)
    text = encoded.rstrip("=.")
    missing = -len(text) % 4
    try:
        if len(encoded) - len(text) not in (0, missing):
            raise ValueError("too much or too little padding")
        return base64.b64decode(text + "=" * missing, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid_argument("Unable to base64 decode") from error


def _parse_example(value: Any) -> Any:
    from tensorflow.core.example import example_pb2

    if not isinstance(value, dict):
        raise _invalid_argument(f"Example must be JSON object but got JSON {_json_type_name(value)}")
    example = example_pb2.Example()
    # Of equal features the last counts, as in the map field of TF Serving's Example.
    features = dict(value.pairs) if isinstance(value, ObjectWithDuplicates) else value
    for name, content in features.items():
        try:
            feature = example.features.feature[name]
        except UnicodeEncodeError as error:
            raise _invalid_argument(f"the name of a feature is not UTF-8: {name}") from error
        _fill_feature(feature, name, content if isinstance(content, list) else [content])
    return example


def _fill_feature(feature: Any, name: str, values: list[Any]) -> None:
    for value in values:
        kind, element = _parse_element(value, name)
        if feature.WhichOneof("kind") not in (None, kind):
            expected_type = _FEATURE_TYPES[feature.WhichOneof("kind")]
            raise _invalid_argument(f"Unexpected element type in feature: {name} expecting type: {expected_type}")
        getattr(feature, kind).value.append(element)


def _parse_element(value: Any, name: str) -> tuple[str, Any]:
    """Return the field of a Feature for `value`, and the value to store in it."""
    if isinstance(value, str) or _is_base64(value):
        return "bytes_list", _decode_string(value)
    if value is None or isinstance(value, list | dict):
        raise _invalid_argument(f"Feature: {name} has element with unexpected JSON type: {_json_type_name(value)}")
    if isinstance(value, float) or not -(2**63) <= value < 2**64:
        return "float_list", float(_to_float32([value])[0])
    if value >= 2**63:
        raise _invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    return "int64_list", int(value)


def _is_object(value: Any) -> bool:
    """Whether a value is an object of named values, not {"b64": "..."}."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return type(value) is dict and list(value) == ["b64"] and isinstance(value["b64"], str)


def _format_value(value: Any) -> str:
    """Return the value as JSON text. As in TF Serving, nothing is added once it has `_MAX_VALUE_BYTES` bytes."""
    text, size = "", 0
    for token in _json_tokens(value):
        if size >= _MAX_VALUE_BYTES:
            break
        text += token[:_MAX_TOKEN_CHARS]
        size += len(token.encode("utf-8", "surrogateescape"))
    return text


def _json_tokens(value: Any) -> Iterator[str]:
    """Yield the text of a value as rapidjson writes it: lists on one line, objects with one key per line.

    It ends at a number that is not finite, which rapidjson does not write.
    """
    open_containers: list[tuple[Iterator[tuple[str, Any]], str]] = []  # the items that follow, and the end
    items, end = iter([("", value)]), ""
    while True:
        if (item := next(items, None)) is None:
            yield end
            if not open_containers:
                return
            items, end = open_containers.pop()
            continue
        prefix, value = item
        if isinstance(value, list | dict):
            yield prefix + ("[" if isinstance(value, list) else "{")
            open_containers.append((items, end))
            items, end = _container_items(value, len(open_containers))
        else:
            yield prefix + _format_scalar(value)
            if isinstance(value, float) and not math.isfinite(value):
                return


def _container_items(value: list[Any] | dict[str, Any], level: int) -> tuple[Iterator[tuple[str, Any]], str]:
    """Return the items of a container with the text before each of them, and its end."""
    indent = "\n" + "    " * level
    if isinstance(value, list):
        return _list_items(value), "]"
    return _object_items(value, indent), f"{indent[:-4]}}}" if value else "}"


def _list_items(values: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((", " if i else "", value) for i, value in enumerate(values))


def _object_items(values: dict[str, Any], indent: str) -> Iterator[tuple[str, Any]]:
    pairs = values.pairs if isinstance(values, ObjectWithDuplicates) else values.items()
    for i, (key, value) in enumerate(pairs):
        yield f",{indent}" if i else indent, key
        yield ": ", value


def _format_scalar(value: Any) -> str:
    if isinstance(value, str):
        return format_string(value)
    return _format_float(value) if isinstance(value, float) else json.dumps(value)


def _format_float(value: float) -> str:
    """Return the shortest text of a number, with an exponent where rapidjson writes one; "" if it is not finite."""
    if not math.isfinite(value):
        return ""
    sign, all_digits, exponent = decimal.Decimal(repr(value)).as_tuple()
    digits = "".join(map(str, all_digits)).rstrip("0") or "0"
    point = len(all_digits) + int(exponent) if value else 1  # its position relative to the first digit
    if 0 < point <= _MAX_PLAIN_DIGITS:
        text = f"{digits[:point]:0<{point}}.{digits[point:] or 0}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{digits}"
    else:
        text = f"{digits[0]}{'.' * (len(digits) > 1)}{digits[1:]}e{point - 1}"
    return "-" * sign + text


def _json_type_name(value: Any) -> str:
    """Return rapidjson's name of a value's type."""
    if isinstance(value, bool):
        return str(value)
    names = {type(None): "Null", dict: "Object", list: "Array", str: "String"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "Number")


def _invalid_argument(message: str) -> StatusError:
    return StatusError("INVALID_ARGUMENT", message)


def _document_error(document: Mapping[str, Any], message: str) -> StatusError:
    return _invalid_argument(f"JSON Value: {_format_value(document)} {message}")
