"""Which signatures has a SavedModel, and does a request fit the one that it names?"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_committee.serving.status import StatusError

DEFAULT = "serving_default"  # the signature of a request that names none
_INIT_OP = "__saved_model_init_op"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A named input or output: `dtype` as in "float32" or "string"; `shape` None where its rank is unknown."""

    dtype: str
    shape: tuple[int | None, ...] | None
    tensor_name: str
    type_number: int  # the DataType of types.proto
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
    if (name or DEFAULT) not in signatures:
        raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{name or DEFAULT}" not found.')
    return signatures[name or DEFAULT]


def check_inputs(signature: Signature, names: Iterable[str]) -> None:
    """Raises INVALID_ARGUMENT in TF Serving's words (predict_util.cc) where inputs are missing or unknown."""
    sent, wanted = set(names), set(signature.inputs)
    if len(sent) != len(wanted):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({_set(wanted)}). "
            f"Sent extra: {_set(sent - wanted)}. Missing but required: {_set(wanted - sent)}.",
        )
    for name in sorted(sent - wanted):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"input tensor alias not found in signature: {name}. Inputs expected to be in the set {_set(wanted)}.",
        )


def choose_outputs(signature: Signature, names: Sequence[str] | None) -> list[str]:
    """The outputs that are asked for; all of them where `names` is empty."""
    names = list(names or signature.outputs)
    for i, name in enumerate(names):
        if name not in signature.outputs:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {name}"
                f" Outputs expected to be in the set {_set(signature.outputs)}.",
            )
        if name in names[:i]:
            raise StatusError("INVALID_ARGUMENT", f"duplicate output tensor alias: {name}")
    return names


def type_number(array: np.ndarray) -> int:
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

    shape = None if info.tensor_shape.unknown_rank else tuple(_size(dim.size) for dim in info.tensor_shape.dim)
    dtype = tf.as_dtype(info.dtype)
    return TensorInfo(dtype.name, shape, info.name, info.dtype, np.dtype(dtype.as_numpy_dtype))


def _size(size: int) -> int | None:
    return None if size < 0 else size


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
