"""Which messages are TF Serving's three configuration files, and is a text one of them?

`ModelServerConfig` comes from tensorflow-serving-api. The two that this package lacks are declared here, by the field
names and types of TF Serving's documentation; text needs no field numbers, so these are our own.
"""

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format, wrappers_pb2

from keras_committee.errors import RecipeError

_INT = ".google.protobuf.Int64Value"
_BATCHING = {
    "max_batch_size": _INT,
    "batch_timeout_micros": _INT,
    "max_enqueued_batches": _INT,
    "num_batch_threads": _INT,
    "thread_pool_name": ".google.protobuf.StringValue",
    "allowed_batch_sizes": "repeated int64",
    "pad_variable_length_inputs": "bool",
    "enable_large_batch_splitting": ".google.protobuf.BoolValue",
    "max_execution_batch_size": _INT,
}
_PROMETHEUS = {"enable": "bool", "path": "string"}
_MONITORING = {"prometheus_config": ".keras_committee.config.PrometheusConfig"}


def parse_models(text: str) -> Any:
    """The `ModelServerConfig` in `text`. Raises RecipeError."""
    return _parse(text, _model_server_config()(), "models.config")


def parse_batching(text: str) -> Any:
    """The `BatchingParameters` in `text`. Raises RecipeError."""
    return _parse(text, declared("BatchingParameters")(), "batching.config")


def parse_monitoring(text: str) -> Any:
    """The `MonitoringConfig` in `text`. Raises RecipeError."""
    return _parse(text, declared("MonitoringConfig")(), "monitoring.config")


@functools.cache
def declared(name: str) -> Any:
    """The class of "BatchingParameters" or "MonitoringConfig"."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"keras_committee.config.{name}"))


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_committee/config.proto", package="keras_committee.config", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    for name, fields in (
        ("BatchingParameters", _BATCHING),
        ("PrometheusConfig", _PROMETHEUS),
        ("MonitoringConfig", _MONITORING),
    ):
        declaration = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            declaration.field.append(_field(field, number, kind))
    return file


def _field(name: str, number: int, kind: str) -> descriptor_pb2.FieldDescriptorProto:
    field = descriptor_pb2.FieldDescriptorProto
    repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
    made = field(name=name, number=number, label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL)
    if kind.startswith("."):
        made.type, made.type_name = field.TYPE_MESSAGE, kind
    else:
        made.type = {"int64": field.TYPE_INT64, "bool": field.TYPE_BOOL, "string": field.TYPE_STRING}[kind]
    return made


def _model_server_config() -> type[message.Message]:
    try:
        from tensorflow_serving.config import model_server_config_pb2
    except ImportError as error:
        raise RecipeError(
            f"models.config is checked with the messages of tensorflow-serving-api, which is not there: {error}.\n"
            '  pip install "keras-committee[serving]"'
        ) from error
    return model_server_config_pb2.ModelServerConfig


def _parse(text: str, into: message.Message, what: str) -> message.Message:
    try:
        return text_format.Parse(text, into)
    except text_format.ParseError as error:
        raise RecipeError(f"{what} is no {into.DESCRIPTOR.name} in text format: line:column {error}") from error
