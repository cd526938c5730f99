"""Requests of TF Serving's own tests, as requests to the REST API of the models of zoo.py.

Each case names the file and the test of TF Serving on which it rests. Where a test there calls a function, the case
sends a request that reaches it, to a model that returns its inputs or constants.
"""

import json

from rest_cases import Case, H, K, b64

N, E = "/v1/models/named", "/v1/models/examples"
JSON, HANDLER, URLS, SERVER = (
    "util/json_tensor_test.cc",
    "model_servers/http_rest_api_handler_test.cc",
    "model_servers/http_rest_api_util_test.cc",
    "model_servers/tensorflow_model_server_test.py",
)
RESERVED, DECODED = "%21%23%24%25%26%27%28%29%2A%2B%2C%2F%3A%3B%3D%3F%40%5B%5D", "!#$%&'()*+,/:;=?@[]"
DEEP = "[" * 100_000 + "]" * 100_000  # 500,000 in TF Serving's test


def good(test, path, body, answer=None, file=JSON, **more):
    body = body if isinstance(body, str | bytes) else json.dumps(body)
    return Case("", f"POST {path}", body, 200, answer, test=f"{file}, {test}", **more)


def bad(test, path, body, error, status=400, file=JSON, **more):
    body = body if isinstance(body, str | bytes) else json.dumps(body)
    return Case("", f"POST {path}", body, status, error=error, test=f"{file}, {test}", **more)


def of(kind, **body):
    return {"signature_name": f"of_{kind}", **body}


def named(signature="serving_default", **body):
    return {"signature_name": signature, **body}


INTEGERS = [[1, 2], [3, 4], [5, 6]]
TENSORS = [
    good("SingleUnnamedTensor", f"{K}:predict", of("int32", instances=INTEGERS), {"predictions": INTEGERS}),
    good("DeeplyNestedWellFormed", f"{K}:predict", f'{{"signature_name":"of_int32","instances":[1],"nested":{DEEP}}}'),
    bad(
        *("DeeplyNestedMalformed", f"{K}:predict", f'{{"signature_name":{DEEP}}}', "key must be a string value"),
        text='    \\"signature_name\\": ' + "[" * 230,
    ),
    good(
        "MixedInputForFloatTensor",
        f"{K}:predict",
        of("float32", instances=[1, 2.0, 3, 4, 5.003, 0.007, 0.0]),
        text="[1.0, 2.0, 3.0, 4.0, 5.003, 0.007, 0.0",
    ),
    good(
        "MixedInputForDoubleTensor",
        f"{K}:predict",
        of("float64", instances=[1.0, 2, 3, 4, 0.662, 0, 0.0]),
        text="[1.0, 2.0, 3.0, 4.0, 0.662, 0.0, 0.0",
    ),
    *[
        good("FloatTensorWithPrecisionLoss", f"{K}:predict", of("float32", instances=[value]), text="[1.43577434e+09")
        for value in (1435774380, 1435774380.0)
    ],
    *[
        good(*(test, f"{K}:predict", f'{{"signature_name":"of_float32","instances":[{value}]}}'), text=f"[{result}")
        for test, value, result in [
            ("FloatTensorThatExceedsMaxReturnsInf", "1.79769e+308", "Infinity"),
            ("FloatTensorThatExceedsMaxReturnsInf", "-1.79769e+308", "-Infinity"),
            ("FloatTensorThatExceedsMinReturnsZero", "2.22507e-308", "0.0"),
            ("FloatTensorThatExceedsMinReturnsZero", "-2.22507e-308", "-0.0"),
        ]
    ],
    good(
        "SingleUnnamedTensorWithSignature", f"{K}:predict", of("int32", instances=[[1, 2]]), {"predictions": [[1, 2]]}
    ),
    good(
        "TensorFromNonNullTerminatedBuffer",
        f"{K}:predict",
        '{"signature_name":"of_int32","instances":[[1,2],[3,4],[5,6]]}X',
        {"predictions": INTEGERS},
    ),
    good(
        "SingleUnnamedTensorBase64Scalars",
        f"{K}:predict",
        {"instances": [b64(b"hello"), b64(b"world")]},
        {"predictions": ["hello", "world"]},
    ),
    good(
        "SingleUnnamedTensorBase64Lists",
        f"{K}:predict",
        {"instances": [[b64(b"hello")], [b64(b"world")]]},
        {"predictions": [["hello"], ["world"]]},
    ),
    good(
        "SingleNamedTensorBase64",
        f"{K}:predict",
        {"instances": [{"x": [[b64(b"hello")], [b64(b"world")]]}]},
        {"predictions": [[["hello"], ["world"]]]},
    ),
    good(
        "MultipleNamedTensor",
        f"{N}:predict",
        '{"instances": ['
        '{"int_tensor": [[1,2],[3,4],[5,6]], "str_tensor": ["foo", "bar"],'
        ' "float_tensor": [1.0, NaN], "dbl_tensor": [NaN]},'
        '{"int_tensor": [[7,8],[9,0],[1,2]], "str_tensor": ["baz", "bat"],'
        ' "float_tensor": [2.0, Infinity], "dbl_tensor": [2.0]}]}',
        text='"float_tensor": [2.0, Infinity],\n            "int_tensor": [[7, 8], [9, 0], [1, 2]],\n'
        '            "str_tensor": ["baz", "bat"]',
    ),
    good(
        "SingleUnnamedTensorColumnarFormat",
        f"{K}:predict",
        of("int32", inputs={"x": [INTEGERS]}),
        {"outputs": [INTEGERS]},
    ),
    good("SingleUnnamedTensorColumnarFormat", f"{K}:predict", of("int32", inputs=[INTEGERS]), {"outputs": [INTEGERS]}),
    good(
        "MultipleNamedTensorColumnarFormat",
        f"{N}:predict",
        named("columns", inputs={"int_tensor": [INTEGERS], "str_tensor": ["foo", "bar"], "bin_tensor": b64(b"hello")}),
        {"outputs": {"int_tensor": [INTEGERS], "str_tensor": ["foo", "bar"], "bin_tensor": "hello"}},
    ),
    bad("SingleUnnamedTensorErrors", f"{K}:predict", "", "document is empty"),
    *[
        bad("SingleUnnamedTensorErrors", f"{K}:predict", of("int32", **body), error)
        for body, error in [
            ({"signature_name": 5, "instances": [[1, 2], [5, 6, 7]]}, "must be a string value"),
            ({"instances": [[1, 2], [5, 6, 7]], "inputs": [[1, 2], [5, 6, 7]]}, "Not formatted correctly"),
            ({"instances": [[1, 2], [3, 4], [5, 6, 7]]}, "Expecting tensor size"),
            ({"instances": [[1, 2], [3, 4], [[5, 6]]]}, "Expecting shape"),
            ({"instances": [1, [1]]}, "Expecting shape"),
            ({"instances": [[1, 2], ["a", "b"]]}, "not of expected type"),
        ]
    ],
    *[
        bad("MultipleNamedTensorErrors", f"{N}:predict", named("two", instances=rows), error)
        for rows, error in [
            (
                [
                    {"int_tensor": INTEGERS, "str_tensor": ["foo", "bar"]},
                    {"int_tensor": [[[7, 8], [9, 0], [1, 2]]], "str_tensor": ["baz", "bat"]},
                ],
                "Expecting shape [3,2] but got: [1,3,2]",
            ),
            (
                [
                    {"int_tensor": [*INTEGERS, [7, 8]], "str_tensor": ["foo", "bar"]},
                    {"int_tensor": [[7, 8], [9, 0], [1, 2]], "str_tensor": ["baz", "bat"]},
                ],
                "Expecting tensor size: 8 but got: 6",
            ),
            ([{"int_tensor": INTEGERS, "str_tensor": ["foo", "bar"]}, [1, 20, 30]], "Expecting object but got list"),
        ]
    ],
    bad(
        "MultipleNamedTensorErrors",
        f"{K}:predict",
        {"instances": [["baz", "bar"], {"x": ["baz", "bat"]}]},
        "Expecting value/list but got object",
    ),
    # AddValueToTensor rejects objects before it looks at the type, which has no JSON form.
    bad(
        "SingleUnnamedTensorErrors", f"{K}:predict", of("float16", inputs=[{"a": 1}]), "Type: Object is not of expected"
    ),
]

ONE_ROW = {"int_tensor": INTEGERS, "float_tensor": [1.0], "double_scalar_tensor": 8.0, "str_tensor": ["foo", "bar"]}
OTHER_ROW = {
    "int_tensor": [[7, 8], [9, 0], [1, 2]],
    "float_tensor": [2.0],
    "double_scalar_tensor": 9.0,
    "str_tensor": ["baz", "bat"],
}
BYTES = [[b64(b"hello"), b64(b"world")], [b64(b"tf"), b64(b"serving")]]
CUBE = [INTEGERS, [[7, 8], [9, 0], [1, 2]]]
ONE = {"instances": [1]}
RESULTS = [
    good("FromJsonSingleTensor", f"{K}:predict", of("int32", instances=CUBE), {"predictions": CUBE}),
    good("FromJsonSingleTensor", f"{K}:predict", of("int32", inputs=CUBE), {"outputs": CUBE}),
    good("FromJsonSingleScalarTensor", f"{K}:predict", of("int32", instances=[1, 2, 3]), {"predictions": [1, 2, 3]}),
    good("FromJsonSingleScalarTensor", f"{K}:predict", of("int32", inputs=[1, 2, 3]), {"outputs": [1, 2, 3]}),
    good("FromJsonSingleBytesTensor", f"{N}:predict", named("bytes", **ONE), {"predictions": BYTES}),
    good(
        "FromJsonSingleFloatTensorSixDigitPrecision",
        f"{K}:predict",
        of("float32", instances=[[9000000, 999999, 0.5], [0.0003, 0.00003, 555557.5]]),
        text="[[9e+06, 999999.0, 0.5], [0.0003, 3e-05, 555557.5]",
    ),
    good(
        "FromJsonSingleFloatTensorNonFinite",
        f"{K}:predict",
        '{"signature_name":"of_float32","instances":[[NaN,Infinity],[3,-Infinity]]}',
        text="[[NaN, Infinity], [3.0, -Infinity]",
    ),
    bad("FromJsonSingleTensorErrors", f"{N}:predict", named("complex", **ONE), "tensor type: complex64"),
    bad("FromJsonSingleTensorErrors", f"{N}:predict", named("scalar", **ONE), "no shape information"),
    good(
        "FromJsonMultipleNamedTensors",
        f"{N}:predict",
        named("many", **ONE),
        {
            "predictions": [
                {**row, "str_tensor_bytes": content} for row, content in zip((ONE_ROW, OTHER_ROW), BYTES, strict=True)
            ]
        },
    ),
    good(
        "FromJsonMultipleNamedTensors",
        f"{N}:predict",
        named("many", inputs=[1]),
        {"outputs": {**{key: [ONE_ROW[key], OTHER_ROW[key]] for key in ONE_ROW}, "str_tensor_bytes": BYTES}},
    ),
    bad("FromJsonMultipleNamedTensorsErrors", f"{N}:predict", named("uneven", **ONE), "inconsistent batch size"),
    good("FromJsonSingleZeroBatchTensor", f"{N}:predict", named("empty_int", **ONE), {"predictions": []}),
    # No value is written, so none is of the wrong type.
    good("FromJsonSingleZeroBatchTensor", f"{N}:predict", named("empty_complex", **ONE), {"predictions": []}),
    good("FromJsonMultipleZeroBatchTensors", f"{N}:predict", named("empty_two", **ONE), {"predictions": []}),
    bad("FromJsonMultipleZeroBatchTensorsErrors", f"{N}:predict", named("empty_one", **ONE), "inconsistent batch size"),
    bad("StatusError", f"{K}:predict", named('Bad "key"', **ONE), 'Serving signature name: "Bad "key"" not found'),
    bad("StatusError", f"{K}:predict", named("Bad 'key'\n\x1f", **ONE), "Bad 'key'\n", text="\\n\\u001F"),
]

TWO_ROWS = [
    {"class": ["car", "bike", "bus"], "score": [0.2, 0.7, 0.1]},
    {"class": ["car", "bike", "bus"], "score": [1, 0, 0]},
]
OUTPUT = {"signature_name": "regress"}
EXAMPLE_ERRORS = [
    ({"signature_name": ["hello"], "examples": [{"names": ["foo", "bar"]}]}, "'signature_name' key must be a string"),
    ({"context": [{"names": ["foo", "bar"]}]}, "Example must be JSON object"),
    ({"examples": {"names": ["foo", "bar"]}}, "list/array"),
    ({"examples": [[{"names": ["foo", "bar"]}]]}, "Example must be JSON object"),
    ({"examples": [{"names": [10, None]}]}, "names has element with unexpected JSON type: Null"),
    ({"examples": [{"names": [10, 10.0]}]}, "feature: names expecting type: int64"),
    ({"examples": [{"names": [10, {"test": 10}]}]}, "names has element with unexpected JSON type: Object"),
    ({"examples": [{"names": [[10], 20]}]}, "names has element with unexpected JSON type: Array"),
    ({"examples": [{"names": [20, 18446744073709551603]}]}, "Only int64_t is supported"),
]
EXAMPLES = [
    *[
        bad("JsonErrors", f"{E}:{verb}", body, error)
        for body, error in EXAMPLE_ERRORS
        for verb in ("classify", "regress")
    ],
    good(
        "JsonFromClassificationResult",
        f"{E}:classify",
        {"examples": [TWO_ROWS[0], {"class": ["car", "bike", "bus"], "score": [0.7, 0.1, 0.2]}]},
        {"results": [[["car", 0.2], ["bike", 0.7], ["bus", 0.1]], [["car", 0.7], ["bike", 0.1], ["bus", 0.2]]]},
    ),
    good(
        "JsonFromRegressionResult",
        f"{E}:regress",
        {**OUTPUT, "examples": [{"output": 0.2}, {"output": 0.9}, {"output": 1.0}]},
        text='"results": [0.2, 0.9, 1.0]',
    ),
    good(
        "JsonFromRegressionResultWithNonFinite",
        f"{E}:regress",
        '{"signature_name": "regress", "examples": [{"output": 0.2}, {"output": Infinity}, {"output": 1.0},'
        ' {"output": -Infinity}, {"output": NaN}]}',
        text='"results": [0.2, Infinity, 1.0, -Infinity, NaN]',
    ),
    *[
        good(
            "Regress", path, {"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]}, {"results": [42]}, HANDLER
        )
        for path in (f"{E}:regress", f"{E}/versions/123:regress", f"{E}/labels/lab:regress")
    ],
    *[
        good(
            *("Classify", path, {"signature_name": "classify_x_to_y", "examples": [{"x": x}]}),
            *({"results": [[["", score]]]}, HANDLER),
        )
        for path, x, score in ((f"{E}:classify", 20.0, 12), (f"{E}/labels/lab:classify", 10.0, 7))
    ],
]

ROWS = {"instances": [1.0, 2.0]}
PATHS = [
    *[
        Case(
            "",
            f"{method} {path}",
            "",
            400,
            error=f"Malformed request: {method} {path}",
            test=f"{HANDLER}, UnsupportedApiCalls",
        )
        for method, path in [
            ("GET", "/v1/foo"),
            ("POST", "/v1/foo"),
            ("GET", "/v1/models/debug/model_name"),
            ("POST", "/v1/models"),
            ("GET", "/v1/models/foo:predict"),
            ("GET", "/v1/models/foo/version/50:predict"),
            ("POST", "/v1/models/foo/version/50:regress"),
            ("POST", "/v1/models/foo/versions/HELLO:regress"),
            ("POST", "/v1/models/foo/metadata"),
            ("POST", "/v1/models/foo/label/some_label:regress"),
            ("POST", "/v1/models/foo/versions/50/labels/some_label:regress"),
            ("POST", "/v1/models/foo/versions/some_label:regress"),
        ]
    ],
    bad(
        "UnsupportedApiCalls", "/v1/models/foo/versions/18446744073709551615:regress", "", "", file=HANDLER, empty=True
    ),
    *[
        bad("PredictModelNameVersionErrors", path, {"instances": [1]}, error, 404, HANDLER)
        for path, error in [
            ("/v1/models/foo:predict", "Latest(foo)"),
            ("/v1/models/foo/versions/50:predict", "Specific(foo, 50)"),
            (f"{H}99:predict", "Latest(half_plus_two99)"),
        ]
    ],
    *[
        bad("PredictRequestErrors", f"{H}{rest}:predict", body, error, file=HANDLER)
        for rest, body, error in [
            ("", "", "JSON Parse error: The document is empty"),
            ("", "instances = [1, 2]", "JSON Parse error: Invalid value"),
            ("", {"instances": ["x", "y"]}, "not of expected type: float"),
            ("/labels/none", {"instances": ["x", "y"]}, "Unrecognized servable version label"),
            ("", {"signature_name": 100}, "'signature_name' key must be a string value."),
        ]
    ],
    good(
        *("Predict", f"{H}:predict", {"instances": [[1.0, 2.0], [3.0, 4.0]]}),
        *({"predictions": [[2.5, 3.0], [3.5, 4.0]]}, HANDLER),
    ),
    *[
        good("Predict", f"{H}{rest}:predict", ROWS, {"predictions": [2.5, 3.0]}, HANDLER)
        for rest in ("/versions/123", "/labels/lab")
    ],
    *[
        Case("", f"GET /v1/models/{path}", None, status, error=error, test=f"{URLS}, TestParseModelInfoForGet")
        for path, status, error in [
            (f"modelname{RESERVED}", 404, f"Could not find any versions of model modelname{DECODED}"),
            ("modelname/versions/99", 404, "Could not find version 99 of model modelname"),
            ("modelname/labels/latest", 404, "Could not find any versions of model modelname"),
            (f"modelname/labels/latest{RESERVED}", 404, "Could not find any versions of model modelname"),
            (f"modelname{RESERVED}/metadata", 404, f"Latest(modelname{DECODED})"),
            (
                f"modelname/labels/latest{RESERVED}/metadata",
                400,
                f"Unrecognized servable version label: latest{DECODED}",
            ),
        ]
    ],
    *[
        bad("TestParseModelInfoForPost", f"/v1/models/{path}:predict", ROWS, error, status, URLS)
        for path, status, error in [
            (f"modelname{RESERVED}", 404, f"Latest(modelname{DECODED})"),
            ("modelname/versions/99", 404, "Specific(modelname, 99)"),
            ("modelname/labels/latest", 400, "Unrecognized servable version label: latest"),
            (f"modelname/labels/latest{RESERVED}", 400, f"Unrecognized servable version label: latest{DECODED}"),
        ]
    ],
    # The model name may be any bytes.
    Case("", "GET /v1/models/%ff", None, 404, raw=b"model \xff", test=f"{URLS}, TestParseModelInfoForGet"),
]

CASES = [*TENSORS, *RESULTS, *EXAMPLES, *PATHS]
