"""Protobuf messages, declared here instead of generated: TensorFlow's generated modules import all of TensorFlow.

Those that a client sends and receives have the bytes of TensorFlow's and TensorFlow Serving's messages with the same
names. Only the fields in use are declared; others that arrive are ignored. An enum is an int32: the bytes are the same.
The messages live in pools of their own, so they never collide with generated ones.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FieldProto = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FieldProto.TYPE_BOOL,
    "bytes": _FieldProto.TYPE_BYTES,
    "double": _FieldProto.TYPE_DOUBLE,
    "float": _FieldProto.TYPE_FLOAT,
    "int32": _FieldProto.TYPE_INT32,
    "int64": _FieldProto.TYPE_INT64,
    "string": _FieldProto.TYPE_STRING,
    "uint32": _FieldProto.TYPE_UINT32,
    "uint64": _FieldProto.TYPE_UINT64,
}


def declare_messages(package: str, messages: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    """Return classes of messages by name, as proto3 declares them.

    Args:
        package: Package of the messages.
        messages: By name of a message, its fields by number: "bool enable", "repeated int64 sizes", "Status status" for
            a message of the same package, or "map Status statuses" for a map of strings to messages.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        declaration = file.message_type.add(name=name)
        for number, field in fields.items():
            *label, kind, field_name = field.split()
            if label == ["map"]:
                _declare_map(declaration, package, number, kind, field_name)
            else:
                _add_field(declaration, package, number, kind, field_name, is_repeated=label == ["repeated"])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def _declare_map(declaration: Any, package: str, number: int, kind: str, name: str) -> None:
    """Declare a map as protobuf does: as repeated entries, each with a key and a value."""
    entry = declaration.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    _add_field(entry, package, 1, "string", "key")
    _add_field(entry, package, 2, kind, "value")
    _add_field(declaration, package, number, f"{declaration.name}.{entry.name}", name, is_repeated=True)


def _add_field(declaration: Any, package: str, number: int, kind: str, name: str, *, is_repeated: bool = False) -> None:
    label = _FieldProto.LABEL_REPEATED if is_repeated else _FieldProto.LABEL_OPTIONAL
    field = declaration.field.add(name=name, number=number, label=label)
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _FieldProto.TYPE_MESSAGE, f".{package}.{kind}"


_MESSAGES = declare_messages(
    "keras_committee.tensorflow_serving",
    {
        # tensorflow/core/framework/{tensor,tensor_shape}.proto
        "Dim": {1: "int64 size"},
        "TensorShapeProto": {2: "repeated Dim dim", 3: "bool unknown_rank"},
        "TensorProto": {
            1: "int32 dtype",
            2: "TensorShapeProto tensor_shape",
            4: "bytes tensor_content",
            5: "repeated float float_val",
            6: "repeated double double_val",
            7: "repeated int32 int_val",
            8: "repeated bytes string_val",
            9: "repeated float scomplex_val",
            10: "repeated int64 int64_val",
            11: "repeated bool bool_val",
            12: "repeated double dcomplex_val",
            13: "repeated int32 half_val",
            16: "repeated uint32 uint32_val",
            17: "repeated uint64 uint64_val",
        },
        # tensorflow/core/example/{example,feature}.proto
        "BytesList": {1: "repeated bytes value"},
        "Feature": {1: "BytesList bytes_list"},
        "Features": {1: "map Feature feature"},
        "Example": {1: "Features features"},
        # tensorflow_serving/apis/{model,predict,get_model_status}.proto and util/status.proto
        "Int64Value": {1: "int64 value"},
        "ModelSpec": {1: "string name", 2: "Int64Value version", 3: "string signature_name", 4: "string version_label"},
        "PredictRequest": {1: "ModelSpec model_spec", 2: "map TensorProto inputs", 3: "repeated string output_filter"},
        "PredictResponse": {1: "map TensorProto outputs", 2: "ModelSpec model_spec"},
        "GetModelStatusRequest": {1: "ModelSpec model_spec"},
        "StatusProto": {1: "int32 error_code", 2: "string error_message"},
        "ModelVersionStatus": {1: "int64 version", 2: "int32 state", 3: "StatusProto status"},
        "GetModelStatusResponse": {1: "repeated ModelVersionStatus model_version_status"},
    },
)

Example = _MESSAGES["Example"]
GetModelStatusRequest = _MESSAGES["GetModelStatusRequest"]
GetModelStatusResponse = _MESSAGES["GetModelStatusResponse"]
ModelSpec = _MESSAGES["ModelSpec"]
PredictRequest = _MESSAGES["PredictRequest"]
PredictResponse = _MESSAGES["PredictResponse"]
TensorProto = _MESSAGES["TensorProto"]
