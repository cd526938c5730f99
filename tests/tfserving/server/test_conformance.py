"""Conformance of the REST API with TF Serving: status codes, values, shapes and messages.

The local server is tested by default. To test another server with the models of `zoo.py`:

    python tests/tfserving/zoo.py zoo
    tensorflow_model_server --rest_api_port=8501 --model_config_file=$PWD/zoo/models.config \\
        --allow_version_labels_for_unavailable_models
    python -m pytest tests/tfserving/server/test_conformance.py --target http://127.0.0.1:8501
"""

import contextlib
import http.client
import json
from urllib.parse import urlsplit

import pytest
from rest_cases import CASES
from rest_upstream_cases import CASES as UPSTREAM_CASES

from keras_committee.tfserving.server import json_input, json_reader


@pytest.fixture(scope="module")
def target(request):
    """host:port of the server under test."""
    url = request.config.getoption("--target")
    if url:
        return urlsplit(url).netloc
    return f"127.0.0.1:{request.getfixturevalue('rest_server').port}"


@pytest.fixture(scope="module")
def cases(request):
    return [case for case in (*CASES, *UPSTREAM_CASES) if not (case.ours and request.config.getoption("--target"))]


def send(connection, case):
    method, _, path = case.request.partition(" ")
    connection.request(method, path, case.body.encode() if isinstance(case.body, str) else case.body, case.headers)
    response = connection.getresponse()
    return response.status, response.read().decode(errors="surrogateescape")


def approximate(value):
    if isinstance(value, dict):
        return {key: approximate(item) for key, item in value.items()}
    if isinstance(value, list):
        return [approximate(item) for item in value]
    return pytest.approx(value, rel=1e-6, abs=1e-7) if isinstance(value, float) else value


def mismatch(case, status, body):
    """Describe how a response differs from the case, which rests on its source; "" if it does not."""
    text = difference(case, status, body)
    return f"{text} [{case.source}]" if text else ""


def difference(case, status, body):
    if status != case.status:
        return f"{case}: {status} instead of {case.status}: {body[:300]}"
    if case.empty and body:
        return f"{case}: {body[:300]} instead of an empty body"
    if case.error and case.error not in json.loads(body)["error"]:
        return f"{case}: {json.loads(body)['error'][:300]!r} does not contain {case.error!r}"
    if case.answer is not None and json.loads(body) != approximate(case.answer):
        return f"{case}: {body[:300]}"
    if case.raw not in body.encode(errors="surrogateescape"):
        return f"{case}: {body[:300]} lacks {case.raw}"
    return "" if case.text in body else f"{case}: {body[:300]} lacks {case.text}"


def mismatches(target, cases):
    with contextlib.closing(http.client.HTTPConnection(target, timeout=30)) as connection:
        texts = [mismatch(case, *send(connection, case)) for case in cases]
    return [text for text in texts if text]


def test_each_response_is_that_of_tf_serving(target, cases):
    assert mismatches(target, cases) == []


def use_the_exact_reader(monkeypatch):
    monkeypatch.setattr(json_input, "split_numbers", lambda body: None)
    monkeypatch.setattr(json_input, "read_json", json_reader.read_exactly)


def read_each_list_of_numbers_flat(monkeypatch):
    monkeypatch.setattr(json_reader, "_MIN_LONG_LIST", 0)


@pytest.mark.parametrize("choose_reader", [use_the_exact_reader, read_each_list_of_numbers_flat])
def test_each_response_is_the_same_with_each_reader(rest_server, monkeypatch, choose_reader):
    choose_reader(monkeypatch)
    cases = [case for case in (*CASES, *UPSTREAM_CASES) if case.request.startswith("POST")]
    assert mismatches(f"127.0.0.1:{rest_server.port}", cases) == []


def test_every_rule_has_a_case():
    assert {str(row) for row in (*range(1, 15), *range(16, 47), 51, 52)} <= {case.row for case in CASES}


def test_a_wrong_response_is_reported():
    case = CASES[0]
    assert mismatch(case, 200, '{"predictions": [2.5, 3.0, 4.5]}') == ""
    assert "4.6" in mismatch(case, 200, '{"predictions": [2.5, 3.0, 4.6]}')
    assert "instead of 200" in mismatch(case, 400, '{"error": ""}')


def test_metadata_lists_every_signature_with_int64_as_text(target):
    with contextlib.closing(http.client.HTTPConnection(target, timeout=30)) as connection:
        connection.request("GET", "/v1/models/half_plus_two/metadata")
        document = json.loads(connection.getresponse().read())
    assert document["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    signatures = document["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"__saved_model_init_op", "serving_default", "classify", "regress"}
    x = signatures["serving_default"]["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT"
    assert x["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
