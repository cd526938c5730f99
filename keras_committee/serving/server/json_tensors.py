"""Which tensors does the JSON of a predict request hold, as rows or as columns?"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_committee.serving.server.json_text import parse, shown
from keras_committee.serving.server.json_values import check, is_base64, shape_of, to_array
from keras_committee.serving.server.limits import Limits, check_shape
from keras_committee.tfserving.tf_protocol import StatusError, TensorInfo

Infos = Mapping[str, TensorInfo]


@dataclasses.dataclass(frozen=True)
class PredictRequest:
    """`signature` is "" where none was named; `row` says in which format to answer."""

    signature: str
    inputs: dict[str, np.ndarray]
    row: bool


def read_predict(body: bytes, find_inputs: Callable[[str], Infos], limits: Limits) -> PredictRequest:
    """The request in `body`.

    Args:
        body: UTF-8 text, decompressed.
        find_inputs: Maps the name of a signature to its inputs, or raises StatusError.
        limits: Checked before arrays are allocated.

    Raises:
        StatusError: INVALID_ARGUMENT in TF Serving's words.
    """
    document = parse(body, limits)
    signature = read_signature(document)
    infos = find_inputs(signature)
    if "instances" in document and "inputs" in document:
        raise _format(document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    if "instances" in document:
        return PredictRequest(signature, _read_rows(document, infos, limits), row=True)
    if "inputs" in document:
        return PredictRequest(signature, _read_columns(document["inputs"], infos, limits), row=False)
    raise _invalid("Missing 'inputs' or 'instances' key")


def read_signature(document: Mapping[str, Any]) -> str:
    """The name of the signature in a document, "" where it names none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _format(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def _read_columns(value: Any, infos: Infos, limits: Limits) -> dict[str, np.ndarray]:
    if isinstance(value, dict) and not is_base64(value):
        for name in infos:
            if name not in value:
                raise _invalid(f"Missing named input: {name} in 'inputs' object.")
        return {name: to_array(value[name], name, info, limits) for name, info in infos.items()}
    if len(infos) > 1:
        raise _invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required "
            "as per tensorinfo_map"
        )
    return {name: to_array(value, name, info, limits) for name, info in infos.items()}


def _read_rows(document: dict[str, Any], infos: Infos, limits: Limits) -> dict[str, np.ndarray]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise _format(document, "Expecting 'instances' to be an list/array")
    if not rows:
        raise _format(document, "No values in 'instances' array")
    check_shape("instances", [len(rows)], limits)
    if not isinstance(rows[0], dict) and len(infos) > 1:
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    if _is_object(rows[0]):
        return _read_objects(rows, infos, limits)
    return _read_values(rows, infos, limits)


def _read_objects(rows: list[Any], infos: Infos, limits: Limits) -> dict[str, np.ndarray]:
    if all(_is_object(row) and row.keys() == infos.keys() for row in rows):
        columns = {name: [row[name] for row in rows] for name in infos}
        return _tried(lambda: _read_columns(columns, infos, limits), lambda: _check_objects(rows, infos))
    _check_objects(rows, infos)
    raise _invalid("'instances' cannot be read as tensors")


def _read_values(rows: list[Any], infos: Infos, limits: Limits) -> dict[str, np.ndarray]:
    ((name, info),) = list(infos.items())[:1]
    return _tried(lambda: {name: to_array(rows, name, info, limits)}, lambda: _check_values(rows, info))


def _tried(read: Callable[[], dict[str, np.ndarray]], explain: Callable[[], None]) -> dict[str, np.ndarray]:
    """What `read` gives; where it refuses, TF Serving's words, which are about one row, come before ours."""
    try:
        return read()
    except StatusError:
        explain()
        raise


def _check_objects(rows: list[Any], infos: Infos) -> None:
    seen: dict[str, tuple[int, list[int]]] = {}
    for i, row in enumerate(rows):
        if not _is_object(row):
            raise _invalid(f"Expecting object but got list at item {i} of input list")
        for key, value in row.items():
            try:
                _check_item(value, key, infos, seen)
            except StatusError as error:
                raise _invalid(
                    f"Failed to process element: {i} key: {key} of 'instances' list. Error: {error}"
                ) from error
        if row.keys() != infos.keys():
            raise _invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {shown(row)} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )


def _check_values(rows: list[Any], info: TensorInfo) -> None:
    seen: dict[str, tuple[int, list[int]]] = {}
    for i, row in enumerate(rows):
        if _is_object(row):
            raise _invalid(f"Expecting value/list but got object at item {i} of input list")
        try:
            _check_item(row, "", {"": info}, seen)
        except StatusError as error:
            raise _invalid(f"Failed to process element: {i} of 'instances' list. Error: {error}") from error


def _check_item(value: Any, name: str, infos: Infos, seen: dict[str, tuple[int, list[int]]]) -> None:
    if name not in infos:
        raise _invalid(f"JSON object: does not have named input: {name}")
    size, shape = check(value, infos[name].dtype), shape_of(value)
    first_size, first_shape = seen.setdefault(name, (size, shape))
    if size != first_size:
        raise _invalid(f"Expecting tensor size: {first_size} but got: {size}")
    if shape != first_shape:
        raise _invalid(f"Expecting shape {_text(first_shape)} but got: {_text(shape)}")


def _text(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _format(document: Mapping[str, Any], words: str) -> StatusError:
    return _invalid(f"JSON Value: {shown(document)} {words}")


def _invalid(message: str) -> StatusError:
    return StatusError("INVALID_ARGUMENT", message)
