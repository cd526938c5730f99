"""How does a JSON value become a tensor, and what is said of one that cannot?"""

import base64
import binascii
import itertools
from typing import Any

import numpy as np

from keras_committee.serving.server.images import check_strings
from keras_committee.serving.server.json_text import shown
from keras_committee.serving.server.limits import Limits, check_shape
from keras_committee.tfserving.tf_protocol import StatusError, TensorInfo

_C_NAMES = {"float32": "float", "float64": "double", "float16": "half"}
_INT32 = (-(2**31), 2**31 - 1)
# What an integer of JSON must be for a dtype. Smaller ones travel as int32 and lose their upper bits, as there.
_RANGES = {
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), _INT32),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_TYPES = {
    **dict.fromkeys(("float32", "float64"), (int, float)),
    **dict.fromkeys(_RANGES, (int,)),
    "bool": (bool,),
    "string": (str, dict),
}
_FLOAT_MAX = float(np.finfo(np.float32).max)


def is_base64(value: Any) -> bool:
    """Whether it is {"b64": "..."}: one value, not an object of named ones."""
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def to_array(value: Any, name: str, info: TensorInfo, limits: Limits) -> np.ndarray:
    """The array in a JSON value: scalars, or lists of lists of them. Strings become an object array of bytes.

    Raises:
        StatusError: INVALID_ARGUMENT in TF Serving's words (json_tensor.cc), or for one of the limits.
    """
    shape = shape_of(value)
    check_shape(name, shape, limits)
    flat = _flat(value, shape)
    if flat is None or not _fit(flat, info.dtype):
        check(value, info.dtype)
        raise StatusError("INVALID_ARGUMENT", f"{name} cannot be read as a tensor")
    if info.dtype == "string":
        array = np.empty(len(flat), object)
        array[:] = [decoded(each) for each in flat]
        check_strings(array, limits, name)
        return array.reshape(shape)
    return _numbers(flat, info).reshape(shape)


def shape_of(value: Any) -> list[int]:
    """The shape by the first element of each list."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def check(value: Any, dtype: str) -> int:
    """The number of elements of a value; raises what TF Serving says of the first that is wrong."""
    return _check(value, shape_of(value), 0, dtype)


def decoded(value: Any) -> bytes:
    """The bytes of a JSON string, or of {"b64": "..."}."""
    if isinstance(value, str):
        return _utf8(value)
    if not is_base64(value):
        raise _invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    try:
        text = "".join(value["b64"].split()).rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("Unable to base64 decode") from error


def type_error(value: Any, dtype: str) -> StatusError:
    return _invalid(
        f"JSON Value: {shown(value)} Type: {type_name(value)} is not of expected type: {_C_NAMES.get(dtype, dtype)}"
    )


def type_name(value: Any) -> str:
    """What the parser calls a value."""
    names = {type(None): "Null", dict: "Object", list: "Array", str: "String"}
    return str(value) if isinstance(value, bool) else names.get(type(value), "Number")


def _flat(value: Any, shape: list[int]) -> list[Any] | None:
    """All elements in a row; None where a list has another length than the shape says, or is missing."""
    flat = [value]
    for size in shape:
        if any(type(each) is not list for each in flat) or any(size != length for length in map(len, flat)):
            return None
        flat = list(itertools.chain.from_iterable(flat))
    return flat


def _fit(flat: list[Any], dtype: str) -> bool:
    types = set(map(type, flat))
    if not types.issubset(_TYPES.get(dtype, ())):
        return False
    if dtype in _RANGES and flat:
        least, most = _RANGES[dtype]
        return least <= min(flat) and max(flat) <= most
    return True


def _numbers(flat: list[Any], info: TensorInfo) -> np.ndarray:
    if info.dtype == "float32":
        wide = np.array(flat, np.float64) if flat else np.empty(0)
        beyond = np.isfinite(wide) & (np.abs(wide) > _FLOAT_MAX)
        if beyond.any():
            number = shown(flat[int(np.argmax(beyond))])
            raise _invalid(f"Cannot convert JSON value: {number} to float without loss of precision.")
        return wide.astype(np.float32)
    wide = np.int64 if info.dtype in ("int8", "int16", "uint8", "uint16") else info.numpy_dtype
    return np.array(flat, wide).astype(info.numpy_dtype)


def _check(value: Any, shape: list[int], level: int, dtype: str) -> int:
    if not isinstance(value, list):
        if level != len(shape):
            raise _invalid(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        _check_element(value, dtype)
        return 1
    if level >= len(shape):
        raise _invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise _invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    return sum(_check(each, shape, level + 1, dtype) for each in value)


def _check_element(value: Any, dtype: str) -> None:
    if dtype not in _TYPES:
        raise StatusError(
            "UNIMPLEMENTED", f"Conversion of JSON Value: {shown(value)} to type: {_C_NAMES.get(dtype, dtype)}"
        )
    if not _fit([value], dtype):
        raise type_error(value, dtype)
    if dtype == "string":
        decoded(value)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _invalid("JSON Parse error: The surrogate pair in string is invalid.") from error


def _invalid(message: str) -> StatusError:
    return StatusError("INVALID_ARGUMENT", message)
