"""What TF Serving makes of URLs, and of classify and regress requests."""

from asking import PLAIN, ROWS, STATUS, Case, H, bad, good

UP = {"signature_name": "classify"}
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
    bad("52", f"{H}:classify", {"instances": [1]}, "key 'examples' is expected and was not found"),
    bad("52", f"{H}:classify", {"examples": {}}, "Expecting 'examples' value to be an list/array"),
    bad("52", f"{H}:classify", {"examples": []}, "'examples' value is an empty array"),
    bad("52", f"{H}:classify", {"examples": [[{"a": 1}]]}, "Example must be JSON object but got JSON Array"),
    bad("52", f"{H}:classify", {"examples": [5]}, "Example must be JSON object but got JSON Number"),
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
    bad("52", f"{H}:classify", {"examples": [{"a": None}]}, "Feature: a has element with unexpected JSON type: Null"),
    bad("52", f"{H}:classify", {"examples": [{"a": [[1]]}]}, "Feature: a has element with unexpected JSON type: Array"),
    bad(
        "52",
        f"{H}:classify",
        {"examples": [{"a": {"c": 1}}]},
        "Feature: a has element with unexpected JSON type: Object",
    ),
    bad(
        "52",
        f"{H}:classify",
        {"examples": [{"a": 18446744073709551603}]},
        "Feature: a has uint64 element. Only int64 is supported.",
    ),
    bad("52", f"{H}:classify", {"context": [], "examples": [{}]}, "Example must be JSON object but got JSON Array"),
    bad("52", f"{H}:classify", {"signature_name": 5, "examples": [{}]}, PLAIN),
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
    bad(
        "19",
        f"{H}/versions/18446744073709551615:predict",
        ROWS,
        "Failed to convert version: 18446744073709551615 to numeric.",
    ),
    Case(
        "19",
        f"GET {H}/versions/9223372036854775808",
        None,
        400,
        error="Failed to convert version: 9223372036854775808 to numeric.",
    ),
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
            ("OPTIONS", f"{H}:predict"),
        ]
    ],
    Case("20", f"HEAD {H}", None, 400),
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
