"""What TF Serving makes of values of every type."""

import base64

from asking import RED, SEEN, TEAL, H, I, K, b64, bad, good, pixels, png

TYPES = [
    bad("12", f"{H}:predict", {"instances": ["x", "y"]}, "not of expected type: float"),
    bad("12", f"{H}:predict", {"instances": [True]}, "JSON Value: true Type: True is not of expected type: float"),
    bad("12", f"{H}:predict", {"instances": [None]}, "JSON Value: null Type: Null is not of expected type: float"),
    bad("12", f"{H}:predict", {"instances": [1, "1"]}, "Failed to process element: 1 of 'instances' list."),
    bad("12", f"{H}:predict", {"inputs": ["x"]}, "not of expected type: float"),
    bad("12", f"{H}:predict", {"inputs": "x"}, 'JSON Value: "x" Type: String is not of expected type: float'),
    bad("12", f"{H}:predict", {"instances": [1e39]}, "without loss of precision", ours=True),
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
