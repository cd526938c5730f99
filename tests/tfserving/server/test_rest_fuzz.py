"""Random requests to the REST API: no HTTP 500, no growth of memory, and right responses in between."""

import http.client
import json

import hypothesis
import hypothesis.strategies as st
import pytest
from grpc_requests import resident

PREDICT = "/v1/models/half_plus_two:predict"
CANARY = ("POST", PREDICT, b'{"instances":[1.0,2.0,5.0]}', {})
ANSWER = {"predictions": [2.5, 3.0, 4.5]}

# Parts of valid and invalid requests, whose combinations come near to valid requests.
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "predict"])
MODELS = st.sampled_from(["half_plus_two", "kinds", "two", "image", "nobody", "..%2f", "%00", "%C3%A9", "a" * 300])
VERSIONS = st.sampled_from(
    ["", "/versions/123", "/versions/9", "/versions/" + "9" * 30, "/labels/lab", "/labels/%2e", "/x"]
)
VERBS = st.sampled_from(["", ":predict", ":classify", ":regress", ":PREDICT", "/metadata", ":", "?a=b", "/"])
PATHS = st.builds(lambda *parts: "/v1/models/" + "".join(parts), MODELS, VERSIONS, VERBS) | st.sampled_from(
    [PREDICT] * 5 + ["/", "/v1", "/v1/models", "/monitoring/prometheus/metrics", "/favicon.ico", "//", "/v1/%"]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([1.5, 2, {"b64": "aGVsbG8="}, {"b64": "!"}, {"b64": 5}, "NaN", 10**400])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "y", "b64", "image", "image_bytes", "inputs"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["instances", "inputs", "signature_name", "examples", "context", "x"])
BODIES = (
    st.dictionaries(KEYS, VALUES, max_size=3).map(lambda body: json.dumps(body).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=200)
    | st.sampled_from([b"", b"[" * 9999, b'{"instances":[1]}{', b'{"instances":[1e999]}', b"\xef\xbb\xbf{}"])
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Content-Encoding": st.sampled_from(["gzip", "br", "identity"]),
        "Content-Type": st.sampled_from(["application/json", "text/plain", "multipart/form-data", "\t"]),
        "Expect": st.just("100-continue"),
        "Range": st.just("bytes=0-"),
    },
)


def send(server, method, path, body, headers):
    """Return the status and the body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def fuzz(server, examples):
    """Send random requests, and after each one with a known response; return the status codes."""
    statuses = set()

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(METHODS, PATHS, BODIES, HEADERS)
    def send_random(method, path, body, headers):
        status, _ = send(server, method, path, body, headers)
        statuses.add(status)
        assert status in (200, 400, 403, 404, 405, 411, 413, 415, 431, 501)
        assert json.loads(send(server, *CANARY)[1]) == ANSWER

    send_random()
    return statuses


def test_D10_random_requests_cause_no_server_error(rest_server):
    assert {200, 400, 404} <= fuzz(rest_server, 200)


@pytest.mark.slow
def test_D10_two_thousand_random_requests_leak_no_memory(rest_server):
    fuzz(rest_server, 200)  # allocates caches
    before = resident()
    fuzz(rest_server, 2000)
    assert resident() - before < 64 * 2**20
