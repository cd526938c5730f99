"""What does the text of a request say, read by the rules of TF Serving's parser and refused in its words?"""

import itertools
import json
import math
import re
from typing import Any

import numpy as np

from keras_committee.serving.server.limits import Limits
from keras_committee.tfserving.tf_protocol import StatusError

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.S)
_HUGE = re.compile(rb"[eE]\+?\d{3}|\d{300}")  # may be beyond a double
_SHOWN = 1000  # characters of a value in a message
_PIECE = 2**20  # bytes looked at together
_SPACE = " \t\r\n"
# Python's words and those of the parser behind TF Serving (rapidjson/error/en.h).
_WORDS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}


def parse(body: bytes, limits: Limits) -> dict[str, Any]:
    """The object that `body` begins with. Of equal keys the first counts, NaN and Infinity are numbers, and what
    follows the object is ignored.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    text = _decoded(body)
    if not text:
        raise StatusError("INVALID_ARGUMENT", "JSON Parse error: The document is empty")
    skeleton = _STRINGS.sub(b"", body.lstrip(b"\xef\xbb\xbf \t\r\n"))
    _check_depth(skeleton, limits.depth)
    value = _read(text, {"parse_float": _finite, "parse_int": _not_huge} if _HUGE.search(skeleton) else {})
    if not isinstance(value, dict):
        raise StatusError("INVALID_ARGUMENT", f"JSON Value: {shown(value)} Is not object")
    return value


def shown(value: Any) -> str:
    """The value as JSON for a message; a long one is cut."""
    pieces = json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value)
    text = "".join(itertools.islice((piece[:_SHOWN] for piece in pieces), _SHOWN))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _decoded(body: bytes) -> str:
    try:
        return body.removeprefix(b"\xef\xbb\xbf").decode().lstrip(_SPACE)
    except UnicodeDecodeError as error:
        raise _parse_error("Invalid encoding in string.", error.start) from error


def _read(text: str, options: dict[str, Any]) -> Any:
    try:
        return json.JSONDecoder(object_pairs_hook=_first_wins, **options).raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise _parse_error(_words(error, text), len(text[: error.pos].encode("utf-8", "replace"))) from error
    except RecursionError as error:
        raise StatusError("INVALID_ARGUMENT", "JSON Parse error: nested too deeply") from error
    except (ValueError, OverflowError) as error:  # an integer of thousands of digits, or 1e400
        raise StatusError("INVALID_ARGUMENT", "JSON Parse error: Number too big to be stored in double.") from error


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    last = dict(pairs)
    return last if len(last) == len(pairs) else dict(pairs[::-1])


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise OverflowError
    return value


def _not_huge(text: str) -> int:
    float(value := int(text))  # OverflowError beyond a double
    return value


def _words(error: json.JSONDecodeError, text: str) -> str:
    if error.msg == "Expecting ',' delimiter":
        brackets = _STRINGS.sub(b"", text[: error.pos][-_PIECE:].encode("utf-8", "replace"))
        if _innermost(brackets) == b"{":
            return "Missing a comma or } after an object member."
        return "Missing a comma or ] after an array element."
    return _WORDS.get(error.msg, "Invalid value.")


def _innermost(brackets: bytes) -> bytes:
    """The bracket that is still open at the end."""
    open_ones = []
    for bracket in re.findall(rb"[\[\]{}]", brackets):
        if bracket in b"[{":
            open_ones.append(bracket)
        elif open_ones:
            open_ones.pop()
    return open_ones[-1] if open_ones else b""


def _parse_error(words: str, offset: int) -> StatusError:
    return StatusError("INVALID_ARGUMENT", f"JSON Parse error: {words} at offset: {offset}")


def _check_depth(skeleton: bytes, most: int) -> None:
    """Raises INVALID_ARGUMENT where the first value is nested deeper. `skeleton` is the text without its strings."""
    level = 0
    for start in range(0, len(skeleton), _PIECE):
        piece = np.frombuffer(skeleton[start : start + _PIECE], np.uint8)
        steps = ((piece == ord("[")) | (piece == ord("{"))).astype(np.int32)
        steps -= (piece == ord("]")) | (piece == ord("}"))
        levels = level + np.cumsum(steps, dtype=np.int32)
        ended = np.flatnonzero(levels <= 0)
        if levels[: ended[0] if ended.size else None].max(initial=0) > most:
            raise StatusError("INVALID_ARGUMENT", f"JSON Parse error: nested too deeply; at most {most} levels")
        if ended.size:
            return
        level = int(levels[-1])
