"""The JSON reader: rapidjson's values and messages, and the same from orjson as from the exact reader.

The expected messages and offsets follow include/rapidjson/reader.h and error/en.h of rapidjson 1.1.0, which TF Serving
2.20.0 uses (workspace.bzl) with its iterative parser.
"""

import json
import math
import random

import pytest

from keras_committee.tfserving.server.json_reader import ObjectWithDuplicates, read_exactly, read_json
from keras_committee.tfserving.tf_protocol import StatusError

VALUE, EMPTY, NAME = "Invalid value.", "The document is empty.", "Missing a name for object member."
COMMA_IN_LIST = "Missing a comma or ']' after an array element."
COMMA_IN_OBJECT = "Missing a comma or '}' after an object member."
ESCAPE, QUOTE = "Invalid escape character in string.", "Missing a closing quotation mark in string."
SURROGATES, BIG = "The surrogate pair in string is invalid.", "Number too big to be stored in double."
ERRORS = [
    (b"  ", EMPTY, 2),
    (b"\0[1]", EMPTY, 0),  # a zero byte ends the text
    (b"]", EMPTY, 0),
    (b"instances", VALUE, 0),
    (b"\xef\xbb\xbf x", VALUE, 4),
    (b"[1,]", VALUE, 3),
    (b"[,1]", VALUE, 1),
    (b"[", VALUE, 1),
    (b'{"a":}', VALUE, 5),
    (b"[1 2]", COMMA_IN_LIST, 3),
    (b"[1}", COMMA_IN_LIST, 2),
    (b"[01]", COMMA_IN_LIST, 2),
    (b"[1.5.]", COMMA_IN_LIST, 4),
    (b"[1e5.]", COMMA_IN_LIST, 4),
    (b"[1\0]", COMMA_IN_LIST, 2),
    (b'{"a":1 "b":2}', COMMA_IN_OBJECT, 7),
    (b'{"a":1', COMMA_IN_OBJECT, 6),
    (b"{a:1}", NAME, 1),
    (b'{"a":1,}', NAME, 7),
    (b"{", NAME, 1),
    (b'{"a" 1}', "Missing a colon after a name of object member.", 5),
    (b"[nul]", VALUE, 4),
    (b"[tru", VALUE, 4),
    (b"[nan]", VALUE, 2),
    (b"[Nan]", VALUE, 3),
    (b"[Infi]", VALUE, 5),
    (b"[-]", VALUE, 2),
    (b"[+1]", VALUE, 1),
    (b"[.5]", VALUE, 1),
    (b"[1.]", "Miss fraction part in number.", 3),
    (b"[1e]", "Miss exponent in number.", 3),
    (b"[1.5E+]", "Miss exponent in number.", 6),
    (b"[0, 1e400]", BIG, 4),
    (b"[-" + b"9" * 400 + b"]", BIG, 1),
    (b'["\\q"]', ESCAPE, 2),
    (b'["\x1f"]', ESCAPE, 2),
    (b'["\\', ESCAPE, 2),
    (b'["abc', QUOTE, 5),
    (b'["a\0c"]', QUOTE, 3),
    (b'["\\u12G4"]', "Incorrect hex digit after \\u escape in string.", 2),
    (b'["\\ud800"]', SURROGATES, 2),
    (b'["a\\ud800\\u0041"]', SURROGATES, 3),
]


@pytest.mark.parametrize(("text", "message", "offset"), ERRORS, ids=[repr(text)[:30] for text, _, _ in ERRORS])
@pytest.mark.parametrize("read", [read_json, read_exactly])
def test_each_error_has_the_message_and_the_offset_of_rapidjson(read, text, message, offset):
    with pytest.raises(StatusError) as caught:
        read(text)
    assert (caught.value.code, caught.value.message) == (
        "INVALID_ARGUMENT",
        f"JSON Parse error: {message} at offset: {offset}",
    )


VALUES = [
    (b"[Inf, -Inf, Infinity, -Infinity]", [math.inf, -math.inf] * 2),
    (b"[9e308, -9e308]", [math.inf, -math.inf]),  # the exponent is within rapidjson's limit
    (b"[-0, 18446744073709551615, -9223372036854775808]", [0, 2**64 - 1, -(2**63)]),
    (b"[18446744073709551616, -9223372036854775809]", [2.0**64, -(2.0**63)]),
    (b"[1, 2.5, 3e0, [4, {}], [], 5,6]", [1, 2.5, 3.0, [4, {}], [], 5, 6]),
    (b'{"a":{"b":[]},"":null}', {"a": {"b": []}, "": None}),
    (b'["\\ud83d\\ude00\\n\\/\\u0000"]', ["😀\n/\0"]),
    (b'["\xff", "\\udc80"]', ["\udcff", "\udced\udcb2\udc80"]),  # raw bytes, and a lone low surrogate as UTF-8
    (b'\xef\xbb\xbf\t{"a": [true, false]} and more', {"a": [True, False]}),
    (b"1 2", 1),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
@pytest.mark.parametrize("read", [read_json, read_exactly])
def test_values_that_other_parsers_reject_or_read_differently(read, text, value):
    assert same(read(text), value)


def test_nan_is_a_number():
    assert [math.isnan(value) for value in read_json(b"[NaN, -NaN]")] == [True, True]


@pytest.mark.parametrize("text", [b'{"a":1,"b":[{}],"a":{"c":2,"c":3}}', b'{"a":1,"b":":{","a":{"c":2,"c":3}}'])
def test_of_equal_keys_the_first_counts_and_all_are_kept(text):
    value = read_json(text)
    assert (value["a"], set(value), [key for key, _ in value.pairs]) == (1, {"a", "b"}, ["a", "b", "a"])
    assert value.pairs[2][1] == {"c": 2}
    assert isinstance(value.pairs[2][1], ObjectWithDuplicates)


def random_value(rng, depth=0):
    kind = rng.random()
    if depth > 4 or kind < 0.5:
        numbers = (rng.randint(-(10**20), 10**20), rng.randint(-5, 5), rng.random() * 10.0 ** rng.randint(-30, 30))
        return rng.choice([*numbers, True, False, None, "a:b", "{", 'ü"\\', "\a", "😀"])
    if kind < 0.75:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 5))]
    return {rng.choice("abc:{ü"): random_value(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def same(a, b):
    """Whether two values are equal and of the same types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def result(read, text):
    try:
        return read(text)
    except StatusError as error:
        return error.message


def test_both_readers_agree_on_random_texts_and_on_damaged_ones():
    rng = random.Random(7)
    for _ in range(3000):
        text = json.dumps(random_value(rng), ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
        assert same(read_json(text), read_exactly(text)), text
        damaged = bytearray(text)
        damaged[rng.randrange(len(text))] = rng.choice(b'[]{},:"\\0129-+.eEnNtf \x00\xff')
        damaged = bytes(damaged)
        assert same(result(read_json, damaged), result(read_exactly, damaged)), damaged
