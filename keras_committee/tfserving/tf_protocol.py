"""TensorFlow Serving's protocol: tensors on the wire, signatures, status codes and the warm-up file.

The client, the sessions and the local server share this module.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_committee.errors import ExportError

DEFAULT_SIGNATURE = "serving_default"  # the signature of a request that names none
WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")  # inside a version folder

# The canonical status codes in numeric order: CODES[3] == "INVALID_ARGUMENT".
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

# From TF Serving's model_servers/http_rest_api_handler.cc and http_server.cc; any other code is HTTP 500.
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


class _WireType(NamedTuple):
    """How a dtype travels. Clients use it, too, so it is no `tf.DType`, whose import takes seconds.

    Attributes:
        name: Name of the dtype.
        number: The DataType of types.proto.
        field: The field of a TensorProto that carries the values.
        field_dtype: Their dtype there. Half floats travel as the bits of an integer, a complex number as its real part
            followed by its imaginary part.
    """

    name: str
    number: int
    field: str
    field_dtype: type

    @property
    def numpy_dtype(self) -> np.dtype:
        if self.name == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(object if self.name == "string" else self.name)

    @property
    def is_complex(self) -> bool:
        return self.name.startswith("complex")

    @property
    def is_reinterpreted(self) -> bool:
        """Whether the memory of an array is that of the field, so that values are not converted."""
        return self.is_complex or self.field == "half_val"


_WIRE_TYPES = (
    _WireType("float32", 1, "float_val", np.float32),
    _WireType("float64", 2, "double_val", np.float64),
    _WireType("int32", 3, "int_val", np.int32),
    _WireType("uint8", 4, "int_val", np.int32),
    _WireType("int16", 5, "int_val", np.int32),
    _WireType("int8", 6, "int_val", np.int32),
    _WireType("string", 7, "string_val", np.object_),
    _WireType("complex64", 8, "scomplex_val", np.float32),
    _WireType("int64", 9, "int64_val", np.int64),
    _WireType("bool", 10, "bool_val", np.bool_),
    _WireType("bfloat16", 14, "half_val", np.uint16),
    _WireType("uint16", 17, "int_val", np.int32),
    _WireType("complex128", 18, "dcomplex_val", np.float64),
    _WireType("float16", 19, "half_val", np.uint16),
    _WireType("uint32", 22, "uint32_val", np.uint32),
    _WireType("uint64", 23, "uint64_val", np.uint64),
)
_WIRE_TYPE_BY_NAME = {wire_type.name: wire_type for wire_type in _WIRE_TYPES}
_WIRE_TYPE_BY_NUMBER = {wire_type.number: wire_type for wire_type in _WIRE_TYPES}

_MAX_DIMENSIONS = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32  # of NumPy; TensorFlow allows 254
_MAX_REPEATED_ELEMENTS = 2**20  # a proto of twenty bytes may claim that its one value fills a whole tensor
_MAX_VARINT_BYTES = 5  # of 32 bits
_MAX_MESSAGE_BYTES = 1024  # of a gRPC status message; TF Serving truncates at the same length
_INIT_OP = "__saved_model_init_op"


class StatusError(ExportError):
    """A failure with a status code, in the words of TensorFlow or TF Serving.

    Attributes:
        code: Name of a gRPC status, such as "INVALID_ARGUMENT".
        message: The exact text that a client receives.
        http_status: The corresponding HTTP status, such as 400 for INVALID_ARGUMENT.
    """

    def __init__(self, code: str, message: str, http_status: int | None = None):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.http_status = http_status or _HTTP_CODES.get(code, 500)

    @property
    def number(self) -> int:
        """The number of the code; 3 is INVALID_ARGUMENT."""
        return CODES.index(self.code)


def truncated(message: str) -> str:
    """Return the message as a gRPC status carries it: at most 1,024 bytes, with a mark if it was cut."""
    encoded = message.encode()
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return message
    return encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "...TRUNCATED"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A named input or output of a signature.

    Attributes:
        dtype: Name of the dtype, such as "float32" or "string".
        shape: Size of each dimension, None where it is unknown; None if the rank is unknown.
        tensor_name: Name of the tensor in the graph.
        datatype_enum: The DataType of types.proto.
        numpy_dtype: The NumPy dtype; object for strings.
    """

    dtype: str
    shape: tuple[int | None, ...] | None
    tensor_name: str
    datatype_enum: int
    numpy_dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Signature:
    """A callable function of a SavedModel. `proto` is the SignatureDef that it was read from."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    method_name: str
    proto: Any


def read_signatures(meta_graph: Any) -> dict[str, Signature]:
    """Return the signatures of a MetaGraphDef by name, without the one that initializes tables."""
    return {
        name: Signature(_read_infos(proto.inputs), _read_infos(proto.outputs), proto.method_name, proto)
        for name, proto in sorted(meta_graph.signature_def.items())
        if name != _INIT_OP
    }


def find_signature(signatures: Mapping[str, Signature], name: str) -> Signature:
    """Return the signature called `name`, "serving_default" for "". Raises FAILED_PRECONDITION if it is missing."""
    name = name or DEFAULT_SIGNATURE
    if name not in signatures:
        raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    return signatures[name]


def check_inputs(signature: Signature, names: Iterable[str]) -> None:
    """Raise INVALID_ARGUMENT, in the words of TF Serving (predict_util.cc), if inputs are missing or unknown."""
    sent, expected = set(names), set(signature.inputs)
    if len(sent) != len(expected):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(sent)}!={len(expected)} len({_format_set(sent)}) != "
            f"len({_format_set(expected)}). Sent extra: {_format_set(sent - expected)}. "
            f"Missing but required: {_format_set(expected - sent)}.",
        )
    for name in sorted(sent - expected):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"input tensor alias not found in signature: {name}. "
            f"Inputs expected to be in the set {_format_set(expected)}.",
        )


def choose_outputs(available: Iterable[str], names: Sequence[str] | None) -> list[str]:
    """Return the requested outputs `names`, or all `available` ones if `names` is empty.

    Raises:
        StatusError: INVALID_ARGUMENT, in the words of TF Serving, for an unknown or repeated name.
    """
    available = list(available)
    names = list(names or available)
    for index, name in enumerate(names):
        if name not in available:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {name}"
                f" Outputs expected to be in the set {_format_set(available)}.",
            )
        if name in names[:index]:
            raise StatusError("INVALID_ARGUMENT", f"duplicate output tensor alias: {name}")
    return names


def datatype_enum(array: np.ndarray) -> int:
    """Return the DataType of `array`. Object arrays hold bytes and are strings."""
    import tensorflow as tf

    if array.dtype.kind in "OSU":
        return tf.string.as_datatype_enum
    try:
        return tf.as_dtype(array.dtype).as_datatype_enum
    except TypeError as error:
        raise StatusError("INVALID_ARGUMENT", f"TensorFlow has no tensors of dtype {array.dtype}") from error


def typed_proto(array: np.ndarray) -> Any:
    """Return the TensorProto of `array` with its values in a typed field such as `float_val`, as TF Serving does."""
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto()
    _write_values(proto, array)
    return proto


def write_packed(proto: Any, array: np.ndarray) -> None:
    """Write `array` into an empty TensorProto as raw bytes, the most compact form. Strings stay typed."""
    if array.dtype.kind in "OSU":
        _write_values(proto, array)
    else:
        _write_type_and_shape(proto, array)
        proto.tensor_content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def proto_shape(proto: Any, max_elements: int) -> tuple[int, ...]:
    """Return the shape that `proto` claims. Nothing is allocated.

    Raises:
        StatusError: INVALID_ARGUMENT if the shape is unknown or has more than `max_elements` elements.
    """
    shape = proto.tensor_shape
    dims = tuple(dim.size for dim in shape.dim)
    if shape.unknown_rank or any(size < 0 for size in dims):
        raise StatusError("INVALID_ARGUMENT", f"the tensor has no known shape. Received: {list(dims)[:9]}")
    check_rank(len(dims))
    if math.prod(max(size, 1) for size in dims) > max_elements:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"a tensor may have at most {max_elements} elements. Received: shape {list(dims)[:9]} with "
            f"{_format_element_count(dims)}",
        )
    return dims


def check_rank(rank: int) -> None:
    """Raise INVALID_ARGUMENT if a tensor has more dimensions than a NumPy array can have."""
    if rank > _MAX_DIMENSIONS:
        raise StatusError("INVALID_ARGUMENT", f"a tensor of {rank} dimensions; at most {_MAX_DIMENSIONS} are supported")


def proto_to_array(proto: Any, max_elements: int = 2**26) -> np.ndarray:
    """Return the array in `proto`, which may come from an untrusted client.

    As in TensorFlow, missing values repeat the last one, or are zero. Strings become an object array of bytes. The size
    is checked before anything is allocated.

    Raises:
        StatusError: INVALID_ARGUMENT for a shape that is unknown or has more than `max_elements` elements, an
            unsupported dtype, content of another length than the shape, or more than 2**20 elements to repeat.
    """
    shape = proto_shape(proto, max_elements)
    if proto.dtype not in _WIRE_TYPE_BY_NUMBER:
        raise StatusError("INVALID_ARGUMENT", f"tensors of DataType {proto.dtype} are not supported")
    wire_type = _WIRE_TYPE_BY_NUMBER[proto.dtype]
    if not proto.tensor_content or 0 in shape:
        return _array_from_values(proto, wire_type, shape)
    if wire_type.name == "string":
        return _strings_from_content(proto.tensor_content, shape)
    return _array_from_content(proto.tensor_content, wire_type, shape)


def _read_infos(infos: Any) -> dict[str, TensorInfo]:
    return {name: _read_info(info) for name, info in sorted(infos.items())}


def _read_info(info: Any) -> TensorInfo:
    import tensorflow as tf

    shape = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    dtype = tf.as_dtype(info.dtype)
    return TensorInfo(
        dtype.name,
        None if info.tensor_shape.unknown_rank else shape,
        info.name,
        info.dtype,
        np.dtype(dtype.as_numpy_dtype),
    )


def _format_set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _write_type_and_shape(proto: Any, array: np.ndarray) -> _WireType:
    name = "string" if array.dtype.kind in "OSU" else array.dtype.name
    if name not in _WIRE_TYPE_BY_NAME:
        raise StatusError("UNIMPLEMENTED", f"tensors of dtype {name} are not supported")
    proto.dtype = _WIRE_TYPE_BY_NAME[name].number
    proto.tensor_shape.SetInParent()  # present also for a scalar
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return _WIRE_TYPE_BY_NAME[name]


def _write_values(proto: Any, array: np.ndarray) -> None:
    wire_type = _write_type_and_shape(proto, array)
    values = np.ascontiguousarray(array).reshape(-1)
    if wire_type.name == "string":
        proto.string_val.extend(value if isinstance(value, bytes) else str(value).encode() for value in values)
    else:
        getattr(proto, wire_type.field).extend(_convert(values, wire_type, wire_type.field_dtype).tolist())


def _array_from_content(content: bytes, wire_type: _WireType, shape: tuple[int, ...]) -> np.ndarray:
    numpy_dtype = wire_type.numpy_dtype
    num_bytes = numpy_dtype.itemsize * math.prod(shape)
    if len(content) != num_bytes:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"tensor_content has {len(content)} bytes; {wire_type.name}{list(shape)[:9]} has {num_bytes}",
        )
    content_dtype = np.uint8 if wire_type.name == "bool" else numpy_dtype  # any byte is a valid uint8, not a valid bool
    return np.frombuffer(content, content_dtype).astype(numpy_dtype).reshape(shape)


def _strings_from_content(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the strings in `content`: the length of each as a varint, then all bytes."""
    count, offset = math.prod(shape), 0
    lengths: list[int] = []
    while len(lengths) < count and offset < len(content):
        length, offset = _read_varint(content, offset)
        lengths.append(length)
    if len(lengths) != count or offset + sum(lengths) != len(content):
        raise StatusError("INVALID_ARGUMENT", f"tensor_content does not hold exactly {count} strings")
    strings = np.empty(count, object)
    for i, length in enumerate(lengths):
        strings[i] = content[offset : offset + length]
        offset += length
    return strings.reshape(shape)


def _read_varint(content: bytes, offset: int) -> tuple[int, int]:
    """Return the number at `offset` in groups of 7 bits, the lowest first, and the offset behind it."""
    value, shift = 0, 0
    for byte in content[offset : offset + _MAX_VARINT_BYTES]:
        value |= (byte & 0x7F) << shift
        shift, offset = shift + 7, offset + 1
        if byte < 0x80:
            return value, offset
    raise StatusError("INVALID_ARGUMENT", "tensor_content holds the incomplete length of a string")


def _array_from_values(proto: Any, wire_type: _WireType, shape: tuple[int, ...]) -> np.ndarray:
    sent = getattr(proto, wire_type.field)
    count, width = math.prod(shape), 2 if wire_type.is_complex else 1  # width: entries of the field per element
    num_sent = min(len(sent) // width, count)
    if num_sent < count > _MAX_REPEATED_ELEMENTS:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"{num_sent} values for {count} elements; at most {_MAX_REPEATED_ELEMENTS} elements may repeat a value",
        )
    values = np.full((count, width), b"" if wire_type.name == "string" else 0, wire_type.field_dtype)
    values.ravel()[: num_sent * width] = sent[: num_sent * width]
    if num_sent:
        values[num_sent:] = values[num_sent - 1]
    return _convert(values.ravel(), wire_type, wire_type.numpy_dtype).reshape(shape)


def _convert(values: np.ndarray, wire_type: _WireType, dtype: Any) -> np.ndarray:
    """Convert between the dtypes of an array and of the field that carries it."""
    return values.view(dtype) if wire_type.is_reinterpreted else values.astype(dtype)


def _format_element_count(dims: tuple[int, ...]) -> str:
    """Return the number of elements as a power of 2: for 32 dimensions of 2**63 it has 600 digits."""
    return f"about 2**{sum(math.log2(max(size, 1)) for size in dims):.0f}"
