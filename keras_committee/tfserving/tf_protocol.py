"""How does an array become a TensorProto, and a TensorProto that a stranger sent an array?"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_committee.errors import ExportError

# The field that carries the values of a dtype, and as what. Half floats travel as the bits of an integer.
_VALUE_FIELDS = {
    "float16": ("half_val", np.uint16),
    "bfloat16": ("half_val", np.uint16),
    "float32": ("float_val", np.float32),
    "float64": ("double_val", np.float64),
    "int8": ("int_val", np.int32),
    "int16": ("int_val", np.int32),
    "int32": ("int_val", np.int32),
    "int64": ("int64_val", np.int64),
    "uint8": ("int_val", np.int32),
    "uint16": ("int_val", np.int32),
    "uint32": ("uint32_val", np.uint32),
    "uint64": ("uint64_val", np.uint64),
    "bool": ("bool_val", np.bool_),
    "string": ("string_val", np.object_),
}

_MAX_DIMENSIONS = 32  # of an array; TensorFlow itself takes 254
_MAX_REPEATED_ELEMENTS = 2**20  # elements: twenty bytes may claim that their one value fills a tensor


def typed_proto(array: np.ndarray) -> Any:
    """The TensorProto of `array` with its values in a typed field such as `float_val`, as TF Serving answers."""
    proto, dtype = _empty_proto(array)
    field, wire_dtype = _VALUE_FIELDS[dtype.name]
    values = np.ascontiguousarray(array).reshape(-1)
    if dtype.name == "string":
        proto.string_val.extend(_as_bytes(value) for value in values)
    else:
        getattr(proto, field).extend(_pack(values, dtype.name, wire_dtype).tolist())
    return proto


def packed_proto(array: np.ndarray) -> Any:
    """The TensorProto of `array` with its values as raw bytes: the shortest for numbers. Strings have a typed field."""
    if array.dtype.kind in "OSU":
        return typed_proto(array)
    proto, _ = _empty_proto(array)
    proto.tensor_content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return proto


def proto_shape(proto: Any, max_elements: int) -> tuple[int, ...]:
    """The shape that `proto` claims, of at most `max_elements` elements. Nothing is allocated. Raises StatusError."""
    shape = proto.tensor_shape
    dims = tuple(dim.size for dim in shape.dim)
    if shape.unknown_rank or any(size < 0 for size in dims) or len(dims) > _MAX_DIMENSIONS:
        raise StatusError("INVALID_ARGUMENT", f"the tensor's shape is not known: {list(dims)[:9]}")
    if math.prod(max(size, 1) for size in dims) > max_elements:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"a tensor may have {max_elements} elements. The shape {list(dims)[:9]} has {_format_element_count(dims)}",
        )
    return dims


def proto_to_array(proto: Any, max_elements: int = 2**26) -> np.ndarray:
    """The array in `proto`, as TensorFlow reads it: values that are missing repeat the last one, or are zero.

    Strings are an object array of bytes. The size is checked before anything is allocated.

    Raises:
        StatusError: INVALID_ARGUMENT for a shape that is unknown or has more than `max_elements` elements, a dtype that no
            array has, content of another length, and more than a million elements to be filled up.
    """
    shape = proto_shape(proto, max_elements)
    dtype = _dtype_from_number(proto.dtype)
    if proto.tensor_content and dtype.name != "string":
        return _array_from_content(proto.tensor_content, dtype, shape)
    return _array_from_values(proto, dtype, shape)


def _array_from_content(content: bytes, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    numpy_dtype = np.dtype(dtype.as_numpy_dtype)
    if len(content) != numpy_dtype.itemsize * math.prod(shape):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"tensor_content has {len(content)} bytes; {dtype.name}{list(shape)[:9]} has "
            f"{numpy_dtype.itemsize * math.prod(shape)}",
        )
    return np.frombuffer(content, np.uint8 if dtype.name == "bool" else numpy_dtype).astype(numpy_dtype).reshape(shape)


def _array_from_values(proto: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    if proto.tensor_content:
        raise StatusError("INVALID_ARGUMENT", "strings are taken from string_val, not from tensor_content")
    field, wire_dtype = _VALUE_FIELDS[dtype.name]
    sent, count = getattr(proto, field), math.prod(shape)
    num_sent = min(len(sent), count)
    if num_sent < count > _MAX_REPEATED_ELEMENTS:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"{num_sent} values are sent for {count} elements; at most {_MAX_REPEATED_ELEMENTS} are filled up",
        )
    values = np.full(count, b"" if dtype.name == "string" else 0, wire_dtype)
    values[:num_sent] = sent[:num_sent]
    values[num_sent:] = sent[num_sent - 1] if num_sent else values[num_sent:]
    return _unpack(values, dtype).reshape(shape)


def _pack(values: np.ndarray, name: str, wire_dtype: Any) -> np.ndarray:
    return values.view(wire_dtype) if name in ("float16", "bfloat16") else values.astype(wire_dtype)


def _unpack(values: np.ndarray, dtype: Any) -> np.ndarray:
    numpy_dtype = np.dtype(dtype.as_numpy_dtype)
    return values.view(numpy_dtype) if dtype.name in ("float16", "bfloat16") else values.astype(numpy_dtype)


def _empty_proto(array: np.ndarray) -> tuple[Any, Any]:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    dtype = tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
    if dtype.name not in _VALUE_FIELDS:
        raise StatusError("UNIMPLEMENTED", f"tensors of {dtype.name} are not sent")
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return proto, dtype


def _dtype_from_number(number: int) -> Any:
    import tensorflow as tf

    try:
        dtype = tf.as_dtype(number)
    except TypeError as error:
        raise StatusError("INVALID_ARGUMENT", f"there is no tensor of DataType {number}") from error
    if dtype.name not in _VALUE_FIELDS:
        raise StatusError("INVALID_ARGUMENT", f"tensors of {dtype.name} are not taken")
    return dtype


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _format_element_count(dims: tuple[int, ...]) -> str:
    """The number of elements in few letters: 32 dimensions of 2**63 have a number of 600 digits."""
    return f"about 2**{sum(math.log2(max(size, 1)) for size in dims):.0f}"


DEFAULT_SIGNATURE = "serving_default"  # the signature of a request that names none
_INIT_OP = "__saved_model_init_op"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A named input or output: `dtype` as in "float32" or "string"; `shape` None where its rank is unknown."""

    dtype: str
    shape: tuple[int | None, ...] | None
    tensor_name: str
    datatype_enum: int  # the DataType of types.proto
    numpy_dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Signature:
    """One way to call a model. `proto` is the SignatureDef that it was read from."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    method_name: str
    proto: Any


def read_signatures(meta_graph: Any) -> dict[str, Signature]:
    """The signatures of a MetaGraphDef, without the one that initialises tables."""
    return {
        name: Signature(_read_infos(proto.inputs), _read_infos(proto.outputs), proto.method_name, proto)
        for name, proto in sorted(meta_graph.signature_def.items())
        if name != _INIT_OP
    }


def find_signature(signatures: Mapping[str, Signature], name: str) -> Signature:
    """The signature that is meant; FAILED_PRECONDITION where there is none."""
    if (name or DEFAULT_SIGNATURE) not in signatures:
        raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.')
    return signatures[name or DEFAULT_SIGNATURE]


def check_inputs(signature: Signature, names: Iterable[str]) -> None:
    """Raises INVALID_ARGUMENT in TF Serving's words (predict_util.cc) where inputs are missing or unknown."""
    sent, expected = set(names), set(signature.inputs)
    if len(sent) != len(expected):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(sent)}!={len(expected)} len({_format_set(expected)}). "
            f"Sent extra: {_format_set(sent - expected)}. Missing but required: {_format_set(expected - sent)}.",
        )
    for name in sorted(sent - expected):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"input tensor alias not found in signature: {name}. Inputs expected to be in the set {_format_set(expected)}.",
        )


def choose_outputs(signature: Signature, names: Sequence[str] | None) -> list[str]:
    """The outputs that are asked for; all of them where `names` is empty."""
    names = list(names or signature.outputs)
    for i, name in enumerate(names):
        if name not in signature.outputs:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {name}"
                f" Outputs expected to be in the set {_format_set(signature.outputs)}.",
            )
        if name in names[:i]:
            raise StatusError("INVALID_ARGUMENT", f"duplicate output tensor alias: {name}")
    return names


def datatype_enum(array: np.ndarray) -> int:
    """The DataType of `array`: strings are object arrays of bytes."""
    import tensorflow as tf

    if array.dtype.kind in "OSU":
        return tf.string.as_datatype_enum
    try:
        return tf.as_dtype(array.dtype).as_datatype_enum
    except TypeError as error:
        raise StatusError("INVALID_ARGUMENT", f"TensorFlow has no tensors of dtype {array.dtype}") from error


def _read_infos(infos: Any) -> dict[str, TensorInfo]:
    return {name: _read_info(info) for name, info in sorted(infos.items())}


def _read_info(info: Any) -> TensorInfo:
    import tensorflow as tf

    shape = None if info.tensor_shape.unknown_rank else tuple(_known_size(dim.size) for dim in info.tensor_shape.dim)
    dtype = tf.as_dtype(info.dtype)
    return TensorInfo(dtype.name, shape, info.name, info.dtype, np.dtype(dtype.as_numpy_dtype))


def _known_size(size: int) -> int | None:
    return None if size < 0 else size


def _format_set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


# The canonical codes, in the order of their numbers: CODES[3] == "INVALID_ARGUMENT".
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

# TF Serving, model_servers/http_rest_api_handler.cc and http_server.cc; what is missing here is 500.
_HTTP_CODES = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_MAX_MESSAGE_BYTES = 1024  # bytes of a gRPC message; TF Serving cuts at the same place


class StatusError(ExportError):
    """What TensorFlow or the server refuses, in their words.

    Attributes:
        code: Name of a gRPC status, such as "INVALID_ARGUMENT".
        message: The exact text that a client sees.
        http_status: The HTTP code of the same failure: 400 for INVALID_ARGUMENT.
    """

    def __init__(self, code: str, message: str, http_status: int | None = None):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.http_status = http_status or _HTTP_CODES.get(code, 500)

    @property
    def number(self) -> int:
        """The number of the code: 3 is INVALID_ARGUMENT."""
        return CODES.index(self.code)


def truncated(message: str) -> str:
    """The message as a gRPC answer carries it: at most 1,024 bytes, and it says when more was cut off."""
    encoded = message.encode()
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return message
    return encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "...TRUNCATED"
