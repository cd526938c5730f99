"""JSON texts, read by the rules of TF Serving's parser, rapidjson 1.1, and rejected with its messages.

As in TF Serving (ParseJson in util/json_tensor.cc), NaN and infinities are numbers, objects may have equal keys, bytes
in strings need not be UTF-8, nesting has hardly a limit, and anything after the first value is ignored. orjson reads
the usual text; the reader in Python, exact but slow, reads what orjson rejects or would read differently.
"""

import contextlib
import dataclasses
import gc
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from keras_committee.tfserving.tf_protocol import StatusError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_DEPTH = 2**20  # levels; each takes about 100 bytes of memory
_INTEGER_RANGE = range(-(2**63), 2**64)  # rapidjson reads other integers as doubles
_MAX_EXPONENT = 308
_MAX_SIGNIFICANT_DIGITS = 17  # rapidjson skips further digits of a fraction

PLACEHOLDER = 4815162342108  # of a list in `split_numbers`
_PLACEHOLDER_TEXT = b"%d" % PLACEHOLDER
_MAX_FAST_DEPTH = 64
_MIN_LONG_LIST = 2**12  # bytes
_NUMBER_BYTES = b"0123456789+-.eE \t\n\r"
_LISTS_TO_SPACES = bytes.maketrans(b"[]", b"  ")
_STRING_LITERAL = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.S)
_WHITESPACE = re.compile(rb"[ \t\n\r]*")
_NUMBER = re.compile(rb"(-?(?:0|[1-9][0-9]*))(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
_MANY_NUMBERS = re.compile(rb"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?[ \t\n\r]*,[ \t\n\r]*)+")
# The longest beginning of NaN, Inf or Infinity, behind which an error is reported.
_SPECIAL_NUMBER = re.compile(rb"(-?)((?:N(?:aN?)?|I(?:n(?:f(?:i(?:n(?:i(?:ty?)?)?)?)?)?)?)?)")
_PLAIN_CHARACTERS = re.compile(rb'[^"\\\x00-\x1f]*')
_UNICODE_ESCAPE = re.compile(rb"\\u([0-9A-Fa-f]{4})")
_WORDS = {ord("n"): (b"null", None), ord("t"): (b"true", True), ord("f"): (b"false", False)}
_SPECIAL_NUMBERS = {b"NaN": math.nan, b"Inf": math.inf, b"Infinity": math.inf}
_SIMPLE_ESCAPES = dict(zip(b'"\\/bfnrt', (b'"', b"\\", b"/", b"\b", b"\f", b"\n", b"\r", b"\t"), strict=True))
_PUNCTUATION = frozenset(b"]},:\0")  # no value begins with one of them; a zero byte ends the text


@dataclasses.dataclass(frozen=True)
class NumberArray:
    """Numbers in nested lists of equal sizes: all numbers in row-major order, and the sizes of the lists."""

    numbers: list[int | float]
    shape: list[int]


class ObjectWithDuplicates(dict):
    """A JSON object in which keys occur more than once: the first value of each.

    Attributes:
        pairs: All keys and values in the order of the text.
    """

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs[::-1])
        self.pairs = pairs


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the search for reference cycles while a request is read.

    The lists of a large request start it over and over, and it visits all objects of TensorFlow: without the pause it
    takes most of the time of a request. What is freed within the pause does not start it afterwards.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_json(body: bytes) -> Any:
    """Return the value at the start of `body`.

    Strings are decoded with the error handler "surrogateescape", which keeps bytes that are not UTF-8.

    Raises:
        StatusError: INVALID_ARGUMENT with rapidjson's message and the offset in bytes.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return read_exactly(body)
    return read_exactly(body) if _may_have_duplicates(body, value) else value


def read_exactly(body: bytes) -> Any:
    """Return the value at the start of `body` as `read_json` does, without orjson's help on the whole text.

    Raises:
        StatusError: INVALID_ARGUMENT with rapidjson's message and the offset in bytes.
    """
    if not body:
        raise StatusError("INVALID_ARGUMENT", "JSON Parse error: The document is empty")
    return _ExactReader(body).read()


def split_numbers(body: bytes) -> tuple[Any, NumberArray] | None:
    """Read a text with one long list, of numbers or of nested lists of numbers, in half of the time of `read_json`.

    The numbers are read as one flat list, because most of the time of orjson goes into small lists.

    Returns:
        The value of the text, with `PLACEHOLDER` instead of the list, and the list; None for any other text, also if
        the text or the list is not valid.
    """
    start, end = body.find(b"["), body.rfind(b"]") + 1
    head, text, tail = body[:start], body[start:end], body[end:]
    if end - start < _MIN_LONG_LIST or _may_be_in_string(head) or _PLACEHOLDER_TEXT in head + tail:
        return None
    shape = _uniform_shape(text.translate(None, _NUMBER_BYTES))
    if shape is None or _may_have_numbers_between_lists(text):
        return None
    try:
        numbers = orjson.loads(b"[" + text.translate(_LISTS_TO_SPACES) + b"]")
        value = read_json(head + _PLACEHOLDER_TEXT + tail)
    except (orjson.JSONDecodeError, StatusError):
        return None
    return (value, NumberArray(numbers, shape)) if len(numbers) == math.prod(shape) else None


def _may_be_in_string(head: bytes) -> bool:
    """Whether the text behind `head` may be within a string."""
    return b"\\" in head or head.count(b'"') % 2 == 1


def _uniform_shape(skeleton: bytes) -> list[int] | None:
    """Return the shape of nested lists of equal sizes, of whose text only brackets and commas are left."""
    depth = len(skeleton) - len(skeleton.lstrip(b"["))
    shape: list[int] = []
    item = b""  # the text of an element of the list at hand, which begins at `start`
    for start in range(depth, max(0, depth - _MAX_FAST_DEPTH), -1):
        last = skeleton.find(item + b"]", start)  # the last element
        shape.insert(0, max(0, last - start) // (len(item) + 1) + 1)
        item = b"[" + b",".join([item] * shape[0]) + b"]"
    return shape if skeleton == item else None


def _may_have_numbers_between_lists(text: bytes) -> bool:
    """Whether a number may stand outside of the innermost lists, as in [[1, 2], 3[, 4]] or [[1, ]2].

    It is in a place where it is valid once the brackets are spaces; orjson finds all others.
    """
    codes = np.frombuffer(text, np.uint8)
    before_lists = _previous_codes(codes, np.flatnonzero(codes == ord("["))[1:])
    before_ends = _previous_codes(codes, np.flatnonzero(codes == ord("]")))
    follows_separator = (before_lists == ord(",")) | (before_lists == ord("["))
    follows_value = ((before_ends >= ord("0")) & (before_ends <= ord("9"))) | (before_ends == ord("]"))
    return not (follows_separator.all() and follows_value.all())


def _previous_codes(codes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    previous = codes[positions - 1]
    return np.where(previous == ord(" "), codes[positions - 2], previous)  # json.dumps writes one space


def _may_have_duplicates(body: bytes, value: Any) -> bool:
    """Whether `value`, as read by orjson, may lack members with equal keys: it keeps the last of them."""
    num_members = _count_members(value, body.count(b"{"))
    # A member has one colon outside of strings.
    return body.count(b":") != num_members and _STRING_LITERAL.sub(b"", body).count(b":") != num_members


def _count_members(value: Any, max_objects: int) -> int:
    """Return the number of members of all objects in `value`, which contains at most `max_objects` objects."""
    num_members, num_objects, level = 0, 0, [value]
    while level and num_objects < max_objects:
        objects = [item for item in level if type(item) is dict]
        num_objects += len(objects)
        num_members += sum(map(len, objects))
        children = [item.values() for item in objects] + [item for item in level if type(item) is list]
        level = [item for items in children for item in items]
    return num_members


class _ExactReader:
    """One pass over a text. `_position` is the offset of the next byte."""

    def __init__(self, body: bytes):
        self._body = body + b"\0"
        self._position = len(_BYTE_ORDER_MARK) if body.startswith(_BYTE_ORDER_MARK) else 0

    def read(self) -> Any:
        open_containers: list[tuple[list[Any], str | None]] = []  # elements or members; the current key of an object
        self._skip_whitespace()
        while True:
            start = self._body[self._position]
            if start in b"[{":
                container = self._open(start, len(open_containers))
                if container is not None:
                    open_containers.append(container)
                    continue
                value = self._close([], is_object=start == ord("{"))
            elif start in _PUNCTUATION:
                raise self._error("Invalid value." if open_containers else "The document is empty.")
            else:
                value = self._read_scalar(start)
            while open_containers:
                items, key = open_containers.pop()
                items.append(value if key is None else (key, value))
                if self._at_comma():
                    open_containers.append((items, self._next_key(items, is_object=key is not None)))
                    break
                self._check_end(is_object=key is not None)
                value = self._close(items, is_object=key is not None)
            else:
                return value

    def _open(self, start: int, depth: int) -> tuple[list[Any], str | None] | None:
        """Return a new container, or None if it is empty."""
        if depth >= _MAX_DEPTH:
            raise StatusError("INVALID_ARGUMENT", f"JSON Parse error: nested too deeply; at most {_MAX_DEPTH} levels")
        self._position += 1
        self._skip_whitespace()
        if self._body[self._position] == start + 2:  # the codes of "[" and "]", and of "{" and "}", differ by 2
            return None
        items: list[Any] = []
        return items, self._next_key(items, is_object=start == ord("{"))

    def _at_comma(self) -> bool:
        """Skip a comma and the whitespace around it; return whether there is one."""
        self._skip_whitespace()
        if self._body[self._position] != ord(","):
            return False
        self._position += 1
        self._skip_whitespace()
        return True

    def _next_key(self, items: list[Any], *, is_object: bool) -> str | None:
        if is_object:
            return self._read_key()
        self._read_many_numbers(items)
        return None

    def _skip_whitespace(self) -> None:
        if self._body[self._position] in b" \t\n\r" and (match := _WHITESPACE.match(self._body, self._position)):
            self._position = match.end()

    def _check_end(self, *, is_object: bool) -> None:
        if is_object and self._body[self._position] != ord("}"):
            raise self._error("Missing a comma or '}' after an object member.")
        if not is_object and self._body[self._position] != ord("]"):
            raise self._error("Missing a comma or ']' after an array element.")

    def _close(self, items: list[Any], *, is_object: bool) -> Any:
        self._position += 1
        if not is_object:
            return items
        values = dict(items)
        return values if len(values) == len(items) else ObjectWithDuplicates(items)

    def _read_key(self) -> str:
        if self._body[self._position] != ord('"'):
            raise self._error("Missing a name for object member.")
        key = self._read_string()
        self._skip_whitespace()
        if self._body[self._position] != ord(":"):
            raise self._error("Missing a colon after a name of object member.")
        self._position += 1
        self._skip_whitespace()
        return key

    def _read_scalar(self, start: int) -> Any:
        if start == ord('"'):
            return self._read_string()
        if start in _WORDS:
            word, value = _WORDS[start]
            self._skip_word(word)
            return value
        return self._read_number()

    def _skip_word(self, word: bytes) -> None:
        for code in word:
            if self._body[self._position] != code:
                raise self._error("Invalid value.")
            self._position += 1

    def _read_string(self) -> str:
        parts: list[bytes] = []
        self._position += 1
        while True:
            match = _PLAIN_CHARACTERS.match(self._body, self._position)
            parts.append(match[0] if match else b"")
            self._position += len(parts[-1])
            code = self._body[self._position]
            if code == ord('"'):
                self._position += 1
                return b"".join(parts).decode("utf-8", "surrogateescape")
            if code != ord("\\"):
                message = (
                    "Invalid escape character in string." if code else "Missing a closing quotation mark in string."
                )
                raise self._error(message)
            parts.append(self._read_escape())

    def _read_escape(self) -> bytes:
        code = self._body[self._position + 1]
        if code in _SIMPLE_ESCAPES:
            self._position += 2
            return _SIMPLE_ESCAPES[code]
        if code != ord("u"):
            raise self._error("Invalid escape character in string.")
        start = self._position
        character = self._read_unicode_escape(start)
        if 0xD800 <= character <= 0xDBFF:
            if not self._body.startswith(b"\\u", self._position):
                raise self._error("The surrogate pair in string is invalid.", start)
            low = self._read_unicode_escape(start)
            if not 0xDC00 <= low <= 0xDFFF:
                raise self._error("The surrogate pair in string is invalid.", start)
            character = 0x10000 + ((character - 0xD800) << 10 | low - 0xDC00)
        return chr(character).encode("utf-8", "surrogatepass")

    def _read_unicode_escape(self, start: int) -> int:
        match = _UNICODE_ESCAPE.match(self._body, self._position)
        if match is None:
            raise self._error("Incorrect hex digit after \\u escape in string.", start)
        self._position = match.end()
        return int(match[1], 16)

    def _read_many_numbers(self, numbers: list[Any]) -> None:
        """Append the numbers that come next and are followed by a comma, for speed."""
        if (match := _MANY_NUMBERS.match(self._body, self._position)) is None:
            return
        try:
            numbers += orjson.loads(b"[" + match[0].rstrip(b", \t\n\r") + b"]")
        except orjson.JSONDecodeError:  # one of them is too large; `_read_number` rejects it
            return
        self._position = match.end()

    def _read_number(self) -> int | float:
        match = _NUMBER.match(self._body, self._position)
        if match is None:
            return self._read_special_number()
        start, self._position = self._position, match.end()
        integer, fraction, exponent = match.groups()
        self._check_complete(fraction, exponent)
        if fraction is None and exponent is None and len(integer) <= 20 and int(integer) in _INTEGER_RANGE:
            return int(integer)
        value = float(match[0])
        if math.isinf(value) and _is_too_big(integer, fraction or b"", exponent):
            raise self._error("Number too big to be stored in double.", start)
        return value

    def _check_complete(self, fraction: bytes | None, exponent: bytes | None) -> None:
        """Raise INVALID_ARGUMENT if a fraction or an exponent without digits follows."""
        code = self._body[self._position]
        if code == ord(".") and fraction is None and exponent is None:
            raise self._error("Miss fraction part in number.", self._position + 1)
        if code in b"eE" and exponent is None:
            sign_length = int(self._body[self._position + 1] in b"+-")
            raise self._error("Miss exponent in number.", self._position + 1 + sign_length)

    def _read_special_number(self) -> float:
        match = _SPECIAL_NUMBER.match(self._body, self._position)
        is_negative, word = (False, b"") if match is None else (bool(match[1]), match[2])
        self._position += is_negative + len(word)
        if word not in _SPECIAL_NUMBERS:
            raise self._error("Invalid value.")
        return -_SPECIAL_NUMBERS[word] if is_negative else _SPECIAL_NUMBERS[word]

    def _error(self, message: str, position: int | None = None) -> StatusError:
        offset = self._position if position is None else position
        return StatusError("INVALID_ARGUMENT", f"JSON Parse error: {message} at offset: {offset}")


def _is_too_big(integer: bytes, fraction: bytes, exponent: bytes | None) -> bool:
    """Whether rapidjson rejects a number beyond double. It reads some, such as 9e308, as infinity."""
    digits = integer.lstrip(b"-")
    if len(digits) > _MAX_EXPONENT and float(digits[:-1]) >= sys.float_info.max / 10:
        return True
    num_fraction_digits = min(len(fraction), max(0, _MAX_SIGNIFICANT_DIGITS - len(digits)))
    return exponent is not None and len(exponent) > 1 and int(exponent[:10]) > _MAX_EXPONENT + num_fraction_digits
