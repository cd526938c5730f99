"""JSON responses of TF Serving's REST API."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_committee.tfserving.tf_protocol import StatusError

_CHUNK_SIZE = 4096  # floats formatted together
_ESCAPES = {code: f"\\u{code:04X}" for code in range(0x20)} | str.maketrans(
    {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
)


def format_predictions(outputs: Mapping[str, np.ndarray], is_row_format: bool) -> str:
    """Return the response to a predict request: {"predictions": rows} or {"outputs": columns}.

    Args:
        outputs: Arrays by output name. The name is omitted if there is only one output.
        is_row_format: Whether the request was in row format ("instances").

    Raises:
        StatusError: INVALID_ARGUMENT with TF Serving's message for outputs that JSON cannot represent.
    """
    if not outputs:
        raise StatusError("INVALID_ARGUMENT", "Cannot convert empty tensor map to JSON")
    return _format_rows(outputs) if is_row_format else _format_columns(outputs)


def format_classifications(labels: np.ndarray | None, scores: np.ndarray | None) -> str:
    """Return the response to a classify request: pairs of label and score, both of shape (examples, classes)."""
    shape = (labels if labels is not None else np.asarray(scores)).shape
    label_array = np.full(shape, b"", object) if labels is None else labels
    score_texts = _format_elements("scores", np.zeros(shape, np.float32) if scores is None else scores)
    pairs = [
        f"[{label}, {score}]"
        for label, score in zip(_format_elements("classes", label_array), score_texts, strict=True)
    ]
    return f'{{\n    "results": [{", ".join(_nest(pairs, shape))}\n    ]\n}}'


def format_string(text: str) -> str:
    """Return a JSON string as rapidjson writes it: control characters as \\u001F, all others as they are."""
    return f'"{text.translate(_ESCAPES)}"'


def format_regressions(values: np.ndarray) -> str:
    """Return the response to a regress request: one number per example."""
    return f'{{\n    "results": [{", ".join(_format_elements("outputs", values))}]\n}}'


def format_error(message: str) -> str:
    """Return the body of an error response."""
    return f'{{\n    "error": {format_string(message)}\n}}'


def format_document(document: Mapping[str, Any]) -> str:
    """Return the response to a status or metadata request."""
    return json.dumps(document, indent=1, ensure_ascii=False)


def _format_rows(outputs: Mapping[str, np.ndarray]) -> str:
    size = None
    for name, array in outputs.items():
        if not array.ndim:
            raise StatusError("INVALID_ARGUMENT", f"Tensor name: {name} has no shape information ")
        if size not in (None, len(array)):
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}",
            )
        size = len(array)
    columns = {name: _nest(_format_elements(name, array), array.shape) for name, array in outputs.items()}
    if len(columns) == 1:
        (column,) = columns.values()
        return f'{{\n    "predictions": [{", ".join(column)}\n    ]\n}}'
    keys = [format_string(name) for name in columns]
    rows = (_format_row(keys, row) for row in zip(*columns.values(), strict=True))
    return '{\n    "predictions": [\n' + ",\n".join(rows) + "\n    ]\n}"


def _format_row(keys: list[str], values: tuple[str, ...]) -> str:
    items = (f"            {key}: {value}" for key, value in zip(keys, values, strict=True))
    return "        {\n" + ",\n".join(items) + "\n        }"


def _format_columns(outputs: Mapping[str, np.ndarray]) -> str:
    texts = {name: _format_array(name, array) for name, array in outputs.items()}
    if len(texts) == 1:
        return f'{{\n    "outputs": {next(iter(texts.values()))}\n}}'
    items = (f"        {format_string(name)}: {text}" for name, text in texts.items())
    return '{\n    "outputs": {\n' + ",\n".join(items) + "\n    }\n}"


def _format_array(name: str, array: np.ndarray) -> str:
    texts = _format_elements(name, array)
    return f"[{', '.join(_nest(texts, array.shape))}]" if array.ndim else texts[0]


def _nest(texts: list[str], shape: tuple[int, ...]) -> list[str]:
    """Join the elements to lists along all axes but the first; return `shape[0]` texts."""
    for axis in range(len(shape) - 1, 0, -1):
        size, count = shape[axis], int(np.prod(shape[:axis]))
        texts = [f"[{', '.join(texts[i * size : (i + 1) * size])}]" for i in range(count)]
    return texts


def _format_elements(name: str, array: np.ndarray) -> list[str]:
    """Return the JSON text of each element, in row-major order."""
    if not array.size:
        return []
    if array.dtype.kind in "OSU":
        return _format_strings(array, name.endswith("_bytes"))
    if array.dtype in (np.float32, np.float64):
        return _format_floats(array.ravel())
    if array.dtype.kind in "iu" and array.dtype != np.uint16:  # json_tensor.cc has no case for uint16
        return list(map(str, array.ravel().tolist()))
    if array.dtype.kind == "b":
        return ["true" if value else "false" for value in array.ravel().tolist()]
    kind = {"float16": "half"}.get(array.dtype.name, array.dtype.name)
    raise StatusError("INVALID_ARGUMENT", f"Failed to write JSON value for tensor type: {kind}")


def _format_strings(array: np.ndarray, as_bytes: bool) -> list[str]:
    contents = [content if isinstance(content, bytes) else str(content).encode() for content in array.ravel()]
    if as_bytes:
        return [f'{{"b64": "{base64.b64encode(content).decode()}"}}' for content in contents]
    return [format_string(content.decode(errors="surrogateescape")) for content in contents]


def _format_floats(values: np.ndarray) -> list[str]:
    """Format each float with six digits if that is exact, otherwise nine (float32) or seventeen (float64)."""
    texts: list[str] = []
    for start in range(0, len(values), _CHUNK_SIZE):
        texts += _format_float_chunk(values[start : start + _CHUNK_SIZE])
    return texts


def _format_float_chunk(values: np.ndarray) -> list[str]:
    texts = (" ".join(["%.6g"] * len(values)) % tuple(values.tolist())).split(" ")
    is_exact = np.array(list(map(float, texts))).astype(values.dtype) == values
    for i in np.flatnonzero(~is_exact & np.isfinite(values)):
        texts[i] = ("%.9g" if values.dtype == np.float32 else "%.17g") % values[i]
    names = {"nan": "NaN", "-nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    for i in np.flatnonzero(~np.isfinite(values)):
        texts[i] = names[texts[i]]
    return [text if "." in text or "e" in text or text[-1] in "yN" else text + ".0" for text in texts]
