"""Requests to the REST API and the expected responses, by the rules of TF Serving's source.

`row` is the rule, and `source` the file of TF Serving in which it stands. Cases with `ours` concern a limit or a
message of the local server: they are not sent to another server.
"""

import base64
import dataclasses
import gzip
import io
import json

import numpy as np
from PIL import Image

H, K, T, I = (f"/v1/models/{name}" for name in ("half_plus_two", "kinds", "two", "image"))  # noqa: E741
PLAIN = "not formatted correctly. 'signature_name' key must be a string value."


JSON, URLS_SOURCE, HTTP = "util/json_tensor.cc", "model_servers/http_rest_api_util.cc", "model_servers/http_server.cc"
HANDLER, CORE, GRAPH = "model_servers/http_rest_api_handler.cc", "model_servers/server_core.cc", "TensorFlow's runtime"
EVHTTP = "util/net_http/server/internal/evhttp_request.cc"
STATUS_SOURCE = "model_servers/get_model_status_impl.cc"
SOURCES = {
    **dict.fromkeys(
        [str(row) for row in (1, 2, 5, *range(7, 14), *range(26, 29), *range(31, 35), *range(36, 47), 52)], JSON
    ),
    **dict.fromkeys(["3", "19", "20"], URLS_SOURCE),
    **dict.fromkeys(["4", "14", "22", "25"], HANDLER),
    **dict.fromkeys(["16", "17", "18"], CORE),
    **dict.fromkeys(["29", "30", "35"], GRAPH),
    **dict.fromkeys(["23", "24"], STATUS_SOURCE),
    **dict.fromkeys(["21", "CORS", "query"], HTTP),
    "6": "rapidjson/error/en.h",
    "51": "servables/tensorflow/classifier.cc and regressor.cc",
    "gzip": EVHTTP,
    "method": "util/net_http/server/internal/evhttp_server.cc",
}


@dataclasses.dataclass(frozen=True)
class Case:
    row: str
    request: str  # "POST /v1/..."
    body: str | bytes | None
    status: int
    answer: object = None  # the JSON document of a good answer; floats may differ by 1e-6
    error: str = ""  # a part of the message
    text: str = ""  # a part of the body as it is sent
    ours: bool = False
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    empty: bool = False  # whether the response has no body
    raw: bytes = b""  # a part of the body, where it is no UTF-8
    test: str = ""  # the file and the test of TF Serving from which the case is

    @property
    def source(self):
        return self.test or SOURCES[self.row]

    def __str__(self):
        body = "" if self.body is None else str(self.body)[:40]
        return f"{self.row or self.test} {self.request} {body}".encode("ascii", "backslashreplace").decode()


def good(row, path, body, answer=None, **more):
    return Case(row, f"POST {path}", body if isinstance(body, bytes) else json.dumps(body), 200, answer, **more)


def bad(row, path, body, error, status=400, **more):
    body = body if isinstance(body, str | bytes) else json.dumps(body)
    return Case(row, f"POST {path}", body, status, error=error, **more)


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


def png(color, size=8):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(color, size=8):
    return np.broadcast_to(np.array(color), (size, size, 3)).tolist()


RED, TEAL = (255, 0, 0), (0, 51, 204)
ROWS = {"instances": [1.0, 2.0, 5.0]}
ANSWER = {"predictions": [2.5, 3.0, 4.5]}
SEEN = {
    "predictions": [{"label": "red", "probabilities": [1, 0, 0]}, {"label": "blue", "probabilities": [0, 0.2, 0.8]}]
}
STATUS = {
    "model_version_status": [
        {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
}

OF_FLOAT = {"signature_name": "of_float32"}
PREDICT = [
    good("1", f"{H}:predict", ROWS, ANSWER, text='"predictions": [2.5, 3.0, 4.5'),
    good("1", f"{H}:predict", {"instances": [{"x": 1.0}, {"x": 2.0}]}, {"predictions": [2.5, 3.0]}),
    good("1", f"{H}:predict", {"instances": [0.2]}, {"predictions": [2.1]}, text="[2.1"),
    good("1", f"{H}:predict", {"instances": [1, 2.5]}, {"predictions": [2.5, 3.25]}),
    good("2", f"{H}:predict", {"inputs": [3.0, 4.0]}, {"outputs": [3.5, 4.0]}),
    good("2", f"{H}:predict", {"inputs": {"x": [3.0, 4.0]}}, {"outputs": [3.5, 4.0]}),
    good("2", f"{H}:predict", {"inputs": []}, {"outputs": []}),
    good("2", f"{H}:predict", {"inputs": {"x": []}}, {"outputs": []}),
    good("3", f"{H}/versions/123:predict", ROWS, ANSWER),
    good("3", f"{H}/versions/000123:predict", ROWS, ANSWER),
    good("3", f"{H}/labels/lab:predict", ROWS, ANSWER),
    good("3", f"{H}/labels/l%61b:predict", ROWS, ANSWER),
    good("3", "/V1/MODELS/half_plus_two:predict", ROWS, ANSWER),
    good("3", "/v1/models/half%5Fplus_two:predict", ROWS, ANSWER),
    good(
        "4", f"{H}:predict", {"signature_name": "serving_default", "instances": [3.0, 4.0]}, {"predictions": [3.5, 4.0]}
    ),
    good("4", f"{H}:predict", {"signature_name": "", "instances": [3.0]}, {"predictions": [3.5]}),
    good("4", f"{H}:predict", {"instances": [3.0], "unknown": {"a": [None, True]}}, {"predictions": [3.5]}),
    good("41", f"{H}:predict", b'{"instances": [NaN, Infinity, -Infinity]}', text="[NaN, Infinity, -Infinity"),
    good("41", f"{H}:predict", b'{"instances": [Inf, -Inf, -NaN]}', text="[Infinity, -Infinity, NaN"),  # rapidjson
    good("41", f"{H}:predict", b'{"Inf-NaN": "Inf", "instances": [-Inf]}', text="[-Infinity"),
    good("41", f"{H}:predict", {"instances": [1435774380]}, {"predictions": [717887192.0]}),
    good("46", f"{H}:predict", b'{"instances":[1]} trailing', {"predictions": [2.5]}),
    good("46", f"{H}:predict", b' \n\t{"instances":[1]}}]', {"predictions": [2.5]}),
    good("46", f"{H}:predict", b'{"instances":[1],"instances":[2]}', {"predictions": [2.5]}),
    good(
        "46",
        f"{H}:predict",
        b'{"signature_name":"serving_default","instances":[1],"signature_name":5}',
        {"predictions": [2.5]},
    ),
    good("46", f"{H}:predict", b'\xef\xbb\xbf{"instances":[1]}', {"predictions": [2.5]}),
    good("46", f"{H}:predict", b'{"instances":[1e0, 1E+0, 10e-1]}', {"predictions": [2.5, 2.5, 2.5]}),
    good("46", f"{H}:predict", b'{"\\u0069nstances":[1]}', {"predictions": [2.5]}),
    bad("46", f"{H}:predict", '{"instances":' + "[" * 16 + "]" * 16 + "}", "nested too deeply", ours=True),
]

PARSING = [
    bad("5", f"{H}:predict", "", "JSON Parse error: The document is empty"),
    bad("6", f"{H}:predict", "instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
    bad(
        "6", f"{H}:predict", '{"instances": [1, 2}', "JSON Parse error: Missing a comma or ']' after an array element."
    ),
    bad(
        "6", f"{H}:predict", '{"instances": [1] "a"', "JSON Parse error: Missing a comma or '}' after an object member."
    ),
    bad("6", f"{H}:predict", '{"instances" [1]}', "JSON Parse error: Missing a colon after a name of object member."),
    bad("6", f"{H}:predict", "{instances: [1]}", "JSON Parse error: Missing a name for object member."),
    bad("6", f"{H}:predict", '{"instances: [1]}', "JSON Parse error: Missing a closing quotation mark in string."),
    bad("6", f"{H}:predict", '{"instances": [1,]}', "JSON Parse error: Invalid value."),
    bad("6", f"{H}:predict", '{"a": "\\q"}', "JSON Parse error: Invalid escape character in string."),
    bad("6", f"{H}:predict", '{"a": "\\u12G4"}', "JSON Parse error: Incorrect hex digit after \\u escape in string."),
    bad("6", f"{H}:predict", '{"instances": [1e400]}', "JSON Parse error: Number too big to be stored in double."),
    bad("6", f"{H}:predict", '{"instances": [' + "9" * 5000 + "]}", "Number too big to be stored in double."),
    bad("6", f"{H}:predict", '{"instances": [' + "9" * 400 + "]}", "Number too big to be stored in double."),
    bad("6", f"{H}:predict", '{"instances": [1.]}', "Miss fraction part in number. at offset: 17"),
    bad("6", f"{H}:predict", '{"instances": [1e]}', "Miss exponent in number. at offset: 17"),
    bad("6", f"{H}:predict", '{"instances": [1.5E+]}', "Miss exponent in number. at offset: 20"),
    bad("6", f"{H}:predict", '{"instances": [1e+,]}', "Miss exponent in number. at offset: 18"),
    bad("6", f"{H}:predict", b"\x00\x01\x02", "JSON Parse error: The document is empty. at offset: 0"),
    bad("7", f"{H}:predict", "[1,2]", "Is not object"),
    # util/json_tensor.cc, JsonValueToDebugString: one line per list, no more tokens after 256 bytes
    bad("7", f"{H}:predict", '[1,{"a":[2,"b"]}]', 'JSON Value: [1, {\n        "a": [2, "b"]\n    }] Is not object'),
    bad("7", f"{H}:predict", [12345678] * 100, "JSON Value: [" + "12345678, " * 25 + "12345678 Is not object"),
    bad("7", f"{H}:predict", "NaN", "Is not object"),
    bad("8", f"{H}:predict", {}, "Missing 'inputs' or 'instances' key"),
    bad("8", f"{H}:predict", {"Instances": [1]}, "Missing 'inputs' or 'instances' key"),
    bad(
        "9",
        f"{H}:predict",
        {"instances": [1], "inputs": [1]},
        "Not formatted correctly expecting only one of 'inputs' or 'instances'",
    ),
    bad("10", f"{H}:predict", {"instances": []}, "No values in 'instances' array"),
    bad("11", f"{H}:predict", {"instances": {"x": 1}}, "'instances' to be an list/array"),
    bad("11", f"{H}:predict", {"instances": None}, "'instances' to be an list/array"),
    bad("13", f"{H}:predict", {"signature_name": None, "instances": [1]}, PLAIN),
    bad("13", f"{H}:predict", {"signature_name": ["a"], "instances": [1]}, PLAIN),
    bad(
        "14",
        f"{H}:predict",
        {"signature_name": "nope", "instances": [1]},
        'Serving signature name: "nope" not found in signature def',
    ),
    bad(
        "14",
        "/v1/models/examples:predict",
        {"signature_name": "get_counter", "instances": [1]},
        "Failed to get input map for signature: get_counter",
    ),
    bad(
        "14",
        f"{K}:predict",
        {"signature_name": "ünïcode", "instances": [1]},
        'Serving signature name: "ünïcode" not found',
    ),
]

TYPES = [
    bad("12", f"{H}:predict", {"instances": [True]}, "JSON Value: true Type: True is not of expected type: float"),
    bad("12", f"{H}:predict", {"instances": [1, "1"]}, "Failed to process element: 1 of 'instances' list."),
    bad("12", f"{H}:predict", {"inputs": ["x"]}, "not of expected type: float"),
    bad("12", f"{H}:predict", {"inputs": "x"}, 'JSON Value: "x" Type: String is not of expected type: float'),
    # util/json_tensor.cc, AddValueToTensor: GetFloat narrows a double
    good("41", f"{K}:predict", {**OF_FLOAT, "instances": [1e39, -1e39]}, text="[Infinity, -Infinity"),
    good("41", f"{K}:predict", {**OF_FLOAT, "inputs": [10**40]}, text="[Infinity]"),
    bad("34", f"{H}:predict", {"instances": [{"b64": "aGVsbG8="}]}, "Type: Object is not of expected type: float"),
    bad("33", f"{H}:predict", {"instances": [{"b64": 5}]}, "does not have named input: b64"),
    *[
        good(
            "40",
            f"{K}:predict",
            {"signature_name": f"of_{kind}", "instances": [0, 1, 100]},
            {"predictions": [0, 1, 100]},
        )
        for kind in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")
    ],
    *[
        bad("40", f"{K}:predict", {"signature_name": f"of_{kind}", "instances": [1.0]}, f"not of expected type: {kind}")
        for kind in ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool")
    ],
    *[
        bad(
            "40",
            f"{K}:predict",
            {"signature_name": f"of_{kind}", "instances": [value]},
            f"not of expected type: {kind}",
        )
        for kind, value in [
            ("int32", 2**31),
            ("int32", -(2**31) - 1),
            ("int64", 2**63),
            ("uint32", -1),
            ("uint32", 2**32),
            ("uint64", -1),
            ("uint64", 2**64),
            ("int8", 2**31),
            ("int32", True),
            ("bool", 1),
            ("bool", "true"),
        ]
    ],
    good(
        "40",
        f"{K}:predict",
        {"signature_name": "of_int64", "instances": [2**63 - 1, -(2**63)]},
        {"predictions": [2**63 - 1, -(2**63)]},
    ),
    good("40", f"{K}:predict", {"signature_name": "of_uint64", "instances": [2**64 - 1]}, {"predictions": [2**64 - 1]}),
    good(
        "40", f"{K}:predict", {"signature_name": "of_bool", "instances": [True, False]}, {"predictions": [True, False]}
    ),
    good("40", f"{K}:predict", {"signature_name": "of_uint8", "instances": [300]}, {"predictions": [44]}),
    bad("45", f"{K}:predict", {"signature_name": "of_float16", "inputs": [1]}, "to type: half", 501),
    # uint16 has no case in util/json_tensor.cc; an error in a row becomes INVALID_ARGUMENT.
    bad("45", f"{K}:predict", {"signature_name": "of_uint16", "inputs": [1]}, "to type: uint16", 501),
    bad("45", f"{K}:predict", {"signature_name": "of_uint16", "instances": [1]}, "UNIMPLEMENTED: Conversion of JSON"),
    bad("45", f"{K}:predict", {"signature_name": "to_uint16", "inputs": [1]}, "for tensor type: uint16"),
    good(
        "43",
        f"{K}:predict",
        {"signature_name": "of_float32", "instances": [9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5]},
        text="[9e+06, 999999.0, 0.5, 0.0003, 3e-05, 555557.5",
    ),
    good(
        "43",
        f"{K}:predict",
        {"signature_name": "of_float64", "instances": [0.1234567890123, 1e300, 7]},
        text="[0.12345678901230001, 1e+300, 7.0",
        ours=True,
    ),
    good(
        "43",
        f"{K}:predict",
        {"signature_name": "of_float32", "instances": [1 / 3, -0.0, 16777216]},
        text="[0.333333343, -0.0, 16777216.0",
    ),
    good(
        "42",
        f"{K}:predict",
        b'{"signature_name":"of_float32","instances":[[NaN,Infinity],[3,-Infinity]]}',
        text="[[NaN, Infinity], [3.0, -Infinity]",
    ),
    good(
        "44", f"{K}:predict", {"signature_name": "as_bytes", "instances": ["hello"]}, {"predictions": [b64(b"hello")]}
    ),
    good(
        "44",
        f"{K}:predict",
        {"signature_name": "as_bytes", "instances": [b64(b"\x00\xff")]},
        {"predictions": [b64(b"\x00\xff")]},
    ),
    good(
        "44",
        f"{K}:predict",
        {"instances": ["hello", "wörld", "", 'q"\\\n']},
        {"predictions": ["hello", "wörld", "", 'q"\\\n']},
    ),
    good("44", f"{K}:predict", {"instances": [b64(b"hello")]}, {"predictions": ["hello"]}),
    good("44", f"{K}:predict", {"instances": [{"b64": "aGVs\nbG8"}]}, {"predictions": ["hello"]}),
    # absl::Base64Unescape: padding is absent or complete, "=" or "."
    good("44", f"{K}:predict", {"inputs": {"b64": "aGVsbG8."}}, {"outputs": "hello"}),
    good("44", f"{K}:predict", {"inputs": {"b64": "aA.="}}, {"outputs": "h"}),
    bad("32", f"{K}:predict", {"inputs": {"b64": "aGVsbG8=="}}, "Unable to base64 decode"),
    bad("32", f"{K}:predict", {"inputs": {"b64": "aA="}}, "Unable to base64 decode"),
    bad("32", f"{K}:predict", {"inputs": {"b64": "aGVs="}}, "Unable to base64 decode"),
    bad("33", f"{K}:predict", b'{"inputs": [{"b64": "aA==", "b64": "aA=="}]}', "not formatted correctly for base64"),
    good("44", f"{K}:predict", {"inputs": b64(b"\xffA")}, raw=b'"outputs": "\xffA"'),
    good("44", f"{K}:predict", {"inputs": b64(b"hello")}, {"outputs": "hello"}),
    good("44", f"{K}:predict", {"inputs": {"x": b64(b"hello")}}, {"outputs": "hello"}),
    good("44", f"{K}:predict", {"inputs": "aGVsbG8="}, {"outputs": "aGVsbG8="}),
    good("44", f"{K}:predict", {"instances": [[b64(b"a")], ["b"]]}, {"predictions": [["a"], ["b"]]}),
    bad("32", f"{K}:predict", {"instances": [{"b64": "!!!"}]}, "Unable to base64 decode"),
    bad("32", f"{K}:predict", {"instances": [{"b64": "a-_b"}]}, "Unable to base64 decode"),
    bad("32", f"{K}:predict", {"inputs": [{"b64": "aGVsbG8"}, {"b64": "a"}]}, "Unable to base64 decode"),
    bad("33", f"{K}:predict", {"instances": [{"b64": 5}]}, "does not have named input: b64"),
    bad("33", f"{K}:predict", {"inputs": [{"b64": 5}]}, "not formatted correctly for base64 data"),
    bad(
        "33",
        f"{K}:predict",
        {"instances": [{"x": {"b64": "aA==", "more": 1}}]},
        "not formatted correctly for base64 data",
    ),
    bad("12", f"{K}:predict", {"instances": [5]}, "not of expected type: string"),
    bad("12", f"{K}:predict", b'{"instances": ["\\ud800"]}', "The surrogate pair in string is invalid."),
]

IMAGES = [
    good("31", f"{I}:predict", {"instances": [pixels(RED), pixels(TEAL)]}, SEEN),
    good("31", f"{I}:predict", {"instances": [{"image": pixels(RED)}, {"image": pixels(TEAL)}]}, SEEN),
    good("31", f"{I}:predict", {"signature_name": "predict_bytes", "instances": [b64(png(RED)), b64(png(TEAL))]}, SEEN),
    good(
        "31",
        f"{I}:predict",
        {"signature_name": "predict_bytes", "instances": [{"image_bytes": b64(png(c))} for c in (RED, TEAL)]},
        SEEN,
    ),
    good(
        "31",
        f"{I}:predict",
        {"signature_name": "predict_bytes", "inputs": {"image_bytes": [b64(png(RED, 20))]}},
        {"outputs": {"label": ["red"], "probabilities": [[1, 0, 0]]}},
    ),
    bad(
        "35",
        f"{I}:predict",
        {"signature_name": "predict_bytes", "instances": [base64.b64encode(png(RED)).decode()]},
        "Unknown image file format",
    ),
    bad("35", f"{I}:predict", {"signature_name": "predict_bytes", "instances": [""]}, ""),
    bad("35", f"{I}:predict", {"signature_name": "predict_bytes", "instances": [b64(png(RED)[:60])]}, ""),
    good(
        "51",
        f"{I}:classify",
        {"signature_name": "classify", "examples": [{"image/encoded": b64(png(TEAL))}]},
        {"results": [[["red", 0.0], ["green", 0.2], ["blue", 0.8]]]},
    ),
]

OF_INT = {"signature_name": "of_int32"}
SHAPES = [
    good("26", f"{K}:predict", {**OF_INT, "instances": [[1, 2], [3, 4]]}, {"predictions": [[1, 2], [3, 4]]}),
    good("26", f"{K}:predict", {**OF_INT, "inputs": 7}, {"outputs": 7}),
    good(
        "26", f"{K}:predict", {**OF_INT, "inputs": [[[1, 2], [3, 4], [5, 6]]]}, {"outputs": [[[1, 2], [3, 4], [5, 6]]]}
    ),
    good("45", f"{K}:predict", {**OF_INT, "instances": [[], []]}, {"predictions": [[], []]}),
    good("45", f"{K}:predict", {**OF_INT, "inputs": []}, {"outputs": []}),
    bad(
        "26",
        f"{K}:predict",
        {**OF_INT, "instances": [[1, 2], [3, 4], [5, 6, 7]]},
        "element: 2 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 3",
    ),
    bad(
        "26",
        f"{K}:predict",
        {**OF_INT, "instances": [{"x": [1]}, {"x": [1, 2]}]},
        "element: 1 key: x of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2",
    ),
    bad(
        "27", f"{K}:predict", {**OF_INT, "instances": [[1, 2], [3, 4], [[5, 6]]]}, "Expecting shape [2] but got: [1,2]"
    ),
    bad("27", f"{K}:predict", {**OF_INT, "instances": [1, [1]]}, "Expecting shape [] but got: [1]"),
    bad("27", f"{K}:predict", {**OF_INT, "instances": [[1], 1]}, "Expecting shape [1] but got: []"),
    bad(
        "27",
        f"{K}:predict",
        {**OF_INT, "inputs": [[1], 1]},
        "JSON Value: 1 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    bad("27", f"{K}:predict", {**OF_INT, "inputs": [1, [1]]}, "Encountered list at unexpected level: 1 expected < 1"),
    bad(
        "28",
        f"{K}:predict",
        {**OF_INT, "inputs": [[1, 2], [3]]},
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    bad(
        "28",
        f"{I}:predict",
        {"instances": [[*pixels(RED)[:-1], pixels(RED)[0][:-1]]]},
        "Encountered list at unexpected size: 7 at level: 1 expected size: 8",
    ),
    bad("29", f"{I}:predict", {"instances": [pixels(RED, 16)]}, "not compatible with expected shape"),
    bad("30", f"{I}:predict", {"instances": np.zeros([1, 8, 8, 5]).tolist()}, "not compatible with expected shape"),
    bad("30", f"{I}:predict", {"instances": [1.0]}, ""),
    good("36", f"{T}:predict", {"instances": [{"a": 1, "b": 0.2}]}, {"predictions": [{"sum": 1.2, "difference": 0.8}]}),
    good("36", f"{T}:predict", {"inputs": {"a": [1], "b": [0.2]}}, {"outputs": {"sum": [1.2], "difference": [0.8]}}),
    good(
        "39",
        f"{T}:predict",
        {"inputs": {"a": [1], "b": [0.2], "c": "ignored"}},
        {"outputs": {"sum": [1.2], "difference": [0.8]}},
    ),
    bad("36", f"{T}:predict", {"instances": [[1, 2]]}, "instances is a plain list, but expecting list of objects"),
    bad("36", f"{T}:predict", {"inputs": [1, 2]}, "inputs is a plain value/list, but expecting an object"),
    bad("37", f"{T}:predict", {"instances": [{"a": 1}]}, "keys must be equal to: a,b"),
    bad("37", f"{T}:predict", {"instances": [{"a": 1, "b": 2, "c": 3}]}, "does not have named input: c"),
    bad(
        "37",
        f"{T}:predict",
        {"instances": [{"a": 1, "b": 2}, {"b": 2}]},
        "Failed to process element: 1 of 'instances' list.",
    ),
    bad("37", f"{H}:predict", {"instances": [{"z": 1}]}, "does not have named input: z"),
    bad("38", f"{T}:predict", {"instances": [{"a": 1, "b": 2}, [1]]}, "Expecting object but got list at item 1"),
    bad("38", f"{H}:predict", {"instances": [1, {"x": 1}]}, "Expecting value/list but got object at item 1"),
    bad("39", f"{T}:predict", {"inputs": {"a": [1]}}, "Missing named input: b in 'inputs' object."),
    bad("39", f"{H}:predict", {"inputs": {"y": [1]}}, "Missing named input: x in 'inputs' object."),
    bad("45", f"{T}:predict", {"signature_name": "uneven", "instances": [1, 2]}, "inconsistent batch size"),
    good(
        "45", f"{T}:predict", {"signature_name": "uneven", "inputs": [1, 2]}, {"outputs": {"all": [1, 2], "first": [1]}}
    ),
    bad(
        "45",
        f"{T}:predict",
        {"signature_name": "scalar", "instances": [1, 2]},
        "Tensor name: total has no shape information",
    ),
    good("45", f"{T}:predict", {"signature_name": "scalar", "inputs": [1, 2]}, {"outputs": 3.0}),
    good("42", f"{T}:predict", {"signature_name": "logarithm", "instances": [0, -1, 1]}, text="[-Infinity, NaN, 0.0"),
    bad("30", f"{T}:predict", {"inputs": {"a": [1, 2], "b": [1, 2, 3]}}, ""),
]

UP, REGRESS = {"signature_name": "classify"}, {"signature_name": "regress"}
EXAMPLES = [
    good("51", f"{H}:classify", {**UP, "examples": [{"x": 3.0}]}, {"results": [[["up", 3.5], ["down", -3.5]]]}),
    good(
        "51",
        f"{H}:classify",
        {**UP, "examples": [{"x": [3.0]}, {"x": 1.0}]},
        {"results": [[["up", 3.5], ["down", -3.5]], [["up", 2.5], ["down", -2.5]]]},
    ),
    good(
        "51",
        f"{H}:classify",
        {**UP, "context": {"x": 3.0}, "examples": [{}, {"x": 1.0}]},
        {"results": [[["up", 3.5], ["down", -3.5]], [["up", 2.5], ["down", -2.5]]]},
    ),
    good(
        "51",
        f"{H}:regress",
        {"signature_name": "regress", "examples": [{"x": 3.0}, {"x": 1.0}]},
        {"results": [3.5, 2.5]},
    ),
    good(
        "51", f"{H}/versions/123:regress", {"signature_name": "regress", "examples": [{"x": 0.2}]}, {"results": [2.1]}
    ),
    bad("51", f"{H}:classify", {"examples": [{"x": 3.0}]}, "No classification inputs found in SignatureDef"),
    bad(
        "51",
        f"{H}:classify",
        {"signature_name": "regress", "examples": [{"x": 3.0}]},
        'at least one of "classes" or "scores"',
    ),
    bad("51", f"{H}:regress", {**UP, "examples": [{"x": 3.0}]}, "Expected one output Tensor."),
    bad(
        "51",
        f"{H}:regress",
        {"signature_name": "nope", "examples": [{"x": 3.0}]},
        "No signature was found with the name: nope",
    ),
    bad("51", f"{H}:classify", {**UP, "examples": [{"y": 3.0}]}, "x"),
    bad("51", f"{H}:classify", {**UP, "examples": [{"x": "text"}]}, "x"),
    bad(
        "51",
        "/v1/models/foo:classify",
        {**UP, "examples": [{"x": 3.0}]},
        "Servable not found for request: Latest(foo)",
        404,
    ),
    bad("52", f"{H}:classify", {}, "key 'examples' is expected and was not found"),
    bad("52", f"{H}:classify", {"examples": {}}, "Expecting 'examples' value to be an list/array"),
    bad("52", f"{H}:classify", {"examples": []}, "'examples' value is an empty array"),
    bad("52", f"{H}:classify", {"examples": [[{"a": 1}]]}, "Example must be JSON object but got JSON Array"),
    bad(
        "52",
        f"{H}:classify",
        {"examples": [{"a": [10, 10.0]}]},
        "Unexpected element type in feature: a expecting type: int64",
    ),
    bad(
        "52",
        f"{H}:classify",
        {"examples": [{"a": [10.0, "b"]}]},
        "Unexpected element type in feature: a expecting type: float",
    ),
    bad(
        "52",
        f"{H}:classify",
        {"examples": [{"a": ["b", True]}]},
        "Unexpected element type in feature: a expecting type: bytes",
    ),
    bad("52", f"{H}:classify", {"examples": [{"a": [[1]]}]}, "Feature: a has element with unexpected JSON type: Array"),
    bad(
        "52",
        f"{H}:classify",
        {"examples": [{"a": 18446744073709551603}]},
        "Feature: a has uint64_t element. Only int64_t is supported.",
    ),
    bad("52", f"{H}:classify", {"context": [], "examples": [{}]}, "Example must be JSON object but got JSON Array"),
    bad("52", f"{H}:classify", {"signature_name": 5, "examples": [{}]}, PLAIN),
    # util/json_tensor.cc, MakeExampleFromJsonObject and AddValueToFeature
    good(
        "51", f"{H}:regress", b'{"signature_name": "regress", "examples": [{"x": 3.0, "x": 1.0}]}', {"results": [2.5]}
    ),
    good("51", f"{H}:regress", {**REGRESS, "examples": [{"x": 1e39}]}, text="[Infinity]"),
    bad("52", f"{H}:regress", "", "JSON Parse error: The document is empty"),
]

FOO = "Servable not found for request: Latest(foo)"
URLS = [
    bad("16", "/v1/models/foo:predict", ROWS, FOO, 404),
    bad("16", "/v1/models/%66oo:predict", ROWS, FOO, 404),
    bad("16", "/v1/models/..%2f..%2fetc:predict", ROWS, "Servable not found for request: Latest(../../etc)", 404),
    bad("16", "/v1/models/half_plus_two%00:predict", ROWS, "Servable not found for request: Latest(half_plus_two", 404),
    bad("16", "/v1/models/HALF_PLUS_TWO:predict", ROWS, "Servable not found for request: Latest(HALF_PLUS_TWO)", 404),
    bad("16", "/v1/models/foo:predict", "", "The document is empty"),
    bad("17", f"{H}/versions/99:predict", ROWS, "Servable not found for request: Specific(half_plus_two, 99)", 404),
    bad("17", f"{H}/versions/0:predict", ROWS, "Servable not found for request: Specific(half_plus_two, 0)", 404),
    bad("18", f"{H}/labels/zzz:predict", ROWS, "Unrecognized servable version label: zzz"),
    bad("18", "/v1/models/foo/labels/lab:predict", ROWS, "Unrecognized servable version label: lab"),
    # The error of ParseModelInfo leaves ProcessRequest before it is written to the body.
    bad("19", f"{H}/versions/18446744073709551615:predict", ROWS, "", empty=True),
    Case("19", f"GET {H}/versions/9223372036854775808", None, 400, empty=True),
    *[
        bad("20", path, ROWS, f"Malformed request: POST {path}")
        for path in (
            f"{H}/versions/HELLO:predict",
            f"{H}/metadata",
            H,
            f"{H}/versions/1/labels/a:predict",
            f"{H}:PREDICT",
            f"{H}:predicts",
            f"{H}:",
            f"{H}/:predict",
            "/v1/models/:predict",
            "/v1/",
            "/v1/models",
            f"{H}/versions/-1:predict",
            f"{H}:predict/",
            f"{H}/labels/a:b:predict",
            f"{H}:generate",
        )
    ],
    *[
        Case("20", f"{method} {path}", None, 400, error=f"Malformed request: {method} {path}")
        for method, path in [
            ("GET", f"{H}:predict"),
            ("GET", "/v1/foo"),
            ("GET", f"{H}/versions/x"),
            ("GET", f"{H}/"),
            ("GET", f"{H}/metadata/"),
            ("PUT", f"{H}:predict"),
            ("DELETE", H),
            ("GET", f"{H}/metadata?x=1"),
        ]
    ],
    # The query is a part of the path: util/net_http/server/internal/evhttp_request.cc
    bad("20", f"{H}:predict?x=1", ROWS, f"Malformed request: POST {H}:predict?x=1"),
    Case("24", f"GET {H}?x=1", None, 404, error="Could not find any versions of model half_plus_two?x=1"),
    Case(
        "query",
        "GET /monitoring/prometheus/metrics?x=1",
        None,
        400,
        text="Unexpected path: /monitoring/prometheus/metrics?x=1. Should be /monitoring/prometheus/metrics",
    ),
    # Preflight requests: model_servers/http_server.cc
    Case("CORS", f"OPTIONS {H}:predict", None, 400, empty=True),
    Case("CORS", f"OPTIONS {H}:predict", None, 400, headers={"Origin": "null"}, empty=True),
    Case("CORS", f"OPTIONS {H}:predict", None, 200, headers={"Origin": "https://a.example"}, empty=True),
    Case("CORS", "OPTIONS /v1/anything", None, 200, headers={"Origin": "http://localhost:3000"}, empty=True),
    Case("CORS", "OPTIONS /statuspage", None, 404, headers={"Origin": "https://a.example"}, text="<HTML>"),
    Case("20", f"HEAD {H}", None, 400),
    Case("method", f"TRACE {H}", None, 501, text="<HTML>"),
    Case("method", f"PATCH {H}", None, 400, error=f"Malformed request: PATCH {H}"),
    # util/net_http/server/internal/evhttp_request.cc, NeedUncompressGzipContent and ReadRequestGzipBytes
    *[
        good("gzip", f"{H}:predict", gzip.compress(json.dumps(ROWS).encode(), mtime=0), ANSWER, headers=headers)
        for headers in ({"Content-Encoding": "gzip"}, {"Content-Encoding": "x-gzip"})
    ],
    bad("gzip", f"{H}:predict", "no gzip", "The document is empty", headers={"Content-Encoding": "gzip"}),
    *[
        Case("21", f"GET {path}", None, 404, text="<HTML>")
        for path in ("/statuspage", "/v2/models/half_plus_two", "/v1", "/favicon.ico")
    ],
    Case("21", "POST /predict", "{}", 404, text="<HTML>"),
    Case("22", "GET /v1/models", None, 400, error="Missing model name in request."),
    *[
        Case("23", f"GET {path}", None, 200, STATUS)
        for path in (
            H,
            f"{H}/versions/123",
            f"{H}/labels/lab",
            f"{H}/labels/anything",
            "/V1/models/half_plus_two",
            f"{H}/METADATA",
        )
    ],
    Case("24", "GET /v1/models/foo", None, 404, error="Could not find any versions of model foo"),
    Case("24", f"GET {H}/versions/9", None, 404, error="Could not find version 9 of model half_plus_two"),
    Case("25", "GET /v1/models/foo/metadata", None, 404, error=FOO),
    Case(
        "25",
        f"GET {H}/versions/9/metadata",
        None,
        404,
        error="Servable not found for request: Specific(half_plus_two, 9)",
    ),
    Case("25", f"GET {H}/labels/zzz/metadata", None, 400, error="Unrecognized servable version label: zzz"),
    Case("25", f"GET {H}/metadata", None, 200, text='"version": "123"', ours=True),
]

CASES = [*PREDICT, *PARSING, *TYPES, *SHAPES, *IMAGES, *EXAMPLES, *URLS]
