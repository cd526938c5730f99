"""tf.Examples and long lists of numbers in JSON, and values in messages."""

import json
import math
import random

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow.core.example import example_pb2

from keras_committee.tfserving.server import json_reader
from keras_committee.tfserving.server.json_input import parse_object, read_examples, read_predict
from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.tf_protocol import StatusError, TensorInfo


def features(**lists):
    """An Example with these features: the kind of list and its values."""
    example = example_pb2.Example()
    for name, (kind, values) in lists.items():
        getattr(example.features.feature[name], f"{kind}_list").value.extend(values)
    return example


# ClassifyRegressRequestTest of TF Serving's util/json_tensor_test.cc: its name of a test, the request, the Examples
REQUESTS = {
    "RequestNoContext": (
        b"""{"examples": [
            {"names": ["foo", "bar"], "ratings": [8.0, 9.0], "age": 20},
            {"names": ["baz"], "ratings": 6.0}
        ]}""",
        ("", {}),
        [
            features(names=("bytes", [b"foo", b"bar"]), ratings=("float", [8.0, 9.0]), age=("int64", [20])),
            features(names=("bytes", [b"baz"]), ratings=("float", [6.0])),
        ],
    ),
    "RequestWithContextAndSignature": (
        b"""{"signature_name": "custom", "context": {"query": "pizza", "location": ["sfo"]}, "examples": [
            {"names": ["foo", "bar"], "ratings": [8.0, 9.0, NaN, Infinity], "age": 20},
            {"names": ["baz", {"b64": "aGVsbG8="}], "ratings": 6.0, "intboolmix": [1, true, false]},
            {"names": "bar", "ratings": -Infinity}
        ]}""",
        ("custom", {"query": ("bytes", [b"pizza"]), "location": ("bytes", [b"sfo"])}),
        [
            features(
                names=("bytes", [b"foo", b"bar"]),
                ratings=("float", [8.0, 9.0, math.nan, math.inf]),
                age=("int64", [20]),
            ),
            features(names=("bytes", [b"baz", b"hello"]), ratings=("float", [6.0]), intboolmix=("int64", [1, 1, 0])),
            features(names=("bytes", [b"bar"]), ratings=("float", [-math.inf])),
        ],
    ),
}


@pytest.mark.parametrize("test", REQUESTS)
def test_examples_have_the_features_of_tf_servings_tests(test):
    body, (signature, context), expected = REQUESTS[test]
    name, contents = read_examples(body, Limits())
    assert name == signature
    for content, example in zip(contents, expected, strict=True):
        example.MergeFrom(features(**context))
        assert text_format.MessageToString(example_pb2.Example.FromString(content)) == text_format.MessageToString(
            example
        )


# util/json_tensor.cc, JsonValueToDebugString, with PrettyWriter and internal/dtoa.h of rapidjson
TEXTS = [
    (
        b"[1, -2.0, 1e39, 1e20, 1e21, 1e-6, 1.5e-7, -0.0]",
        "[1, -2.0, 1e39, 100000000000000000000.0, 1e21, 0.000001, 1.5e-7, -0.0]",
    ),
    (b"[18446744073709551616]", "[18446744073709552000.0]"),
    (b"[1, NaN, 3]", "[1, "),  # nothing is written from a number that is not finite
    (b'["\\u001f/\\"\\n\xc3\xbc"]', '["\\u001F/\\"\\nü"]'),
    (
        b'[{}, [], {"a": {"b": [1, {"c": null}]}, "a": true}]',
        '[{}, [], {\n        "a": {\n            "b": [1, {\n                    "c": null\n                }]\n'
        '        },\n        "a": true\n    }]',
    ),
    (b"[" * 5000 + b"]" * 5000, "[" * 256),
    (b'["' + b"q" * 300 + b'", 5]', '["' + "q" * 300 + '"'),
]


@pytest.mark.parametrize(("body", "text"), TEXTS)
def test_a_message_has_the_value_as_rapidjson_writes_it(body, text):
    with pytest.raises(StatusError) as caught:
        parse_object(body)
    assert caught.value.message == f"JSON Value: {text} Is not object"


def test_a_name_of_a_feature_that_is_no_utf8_is_rejected():
    with pytest.raises(StatusError, match="INVALID_ARGUMENT: the name of a feature is not UTF-8"):
        read_examples(b'{"examples": [{"\xff": 1}]}', Limits())


INFOS = {"x": TensorInfo("float32", None, "x:0", 1, np.dtype(np.float32))}


def read(body):
    """Return what a request holds, or the message of its error."""
    try:
        request = read_predict(body, lambda _: INFOS, Limits())
    except StatusError as error:
        return error.message
    return request.signature, request.is_row_format, request.inputs["x"].dtype, request.inputs["x"].tolist()


def random_request(rng):
    shape = [rng.randint(1, 3) for _ in range(rng.randint(1, 4))]
    values = np.round([rng.gauss(0, 3) for _ in range(math.prod(shape))], rng.randint(0, 3)).reshape(shape)
    values = values.astype(rng.choice([int, float])).tolist()
    body = rng.choice([{"instances": values}, {"inputs": values}, {"inputs": {"x": values}}])
    signature = rng.choice([{}, {"signature_name": rng.choice(["", "a[1]", "b"])}])
    document = rng.choice([{**signature, **body}, {**body, **signature}])
    separators = rng.choice([None, (",", ":")])
    return json.dumps(document, separators=separators, indent=rng.choice([None, None, 1])).encode()


def damaged(body, rng):
    position, character = rng.randrange(len(body)), rng.choice([b"", *(bytes([code]) for code in b'[]{},:" 0129-.e')])
    return body[:position] + character + body[position + rng.randint(0, 1) :]


def test_lists_of_numbers_that_are_read_flat_are_read_as_nested_lists_are(monkeypatch):
    rng = random.Random(3)
    bodies = [random_request(rng) for _ in range(1500)]
    bodies += [damaged(body, rng) for body in bodies] + [damaged(damaged(body, rng), rng) for body in bodies]
    bodies += [
        b'{"inputs": [[[0, 0, ]1]], [[[-1, 0, 0]]]}',
        b'{"inputs": [[1, 2], 3[, 4]]}',
        b'{"inputs": [[1, 2]3, [4, 5]]}',
        b'{"inputs": [[1, 2 3], [4, 5]]}',
        b'{"x": [1], "inputs": %d}' % json_reader.PLACEHOLDER,
        b'{"inputs": %d}' % json_reader.PLACEHOLDER,
        b'{"signature_name": "[1]", "instances": [2]}',
        b'{"signature_name": "\\"[1]", "instances": 2}',
        b'{"inputs": [1], "inputs": [2]}',
        b"[[1], [2]]",
    ]
    nested = list(map(read, bodies))
    monkeypatch.setattr(json_reader, "_MIN_LONG_LIST", 0)
    assert sum(json_reader.split_numbers(body) is not None for body in bodies) > 1000
    assert list(map(read, bodies)) == nested
