"""Does a server answer as TF Serving does, to the code, the word and the digit?

By default the stand-in is asked. Another one that serves the models of `zoo.py`:

    python tests/serving/zoo.py /tmp/zoo
    tensorflow_model_server --rest_api_port=8501 --model_config_file=/tmp/zoo/models.config \\
        --allow_version_labels_for_unavailable_models
    python -m pytest tests/serving/test_conformance.py --target http://127.0.0.1:8501
"""

import contextlib
import http.client
import json
from urllib.parse import urlsplit

import pytest
from conformance import CASES


@pytest.fixture(scope="module")
def target(request):
    """host:port of the server that is asked."""
    url = request.config.getoption("--target")
    if url:
        return urlsplit(url).netloc
    return f"127.0.0.1:{request.getfixturevalue('stand_in').port}"


@pytest.fixture(scope="module")
def cases(request):
    return [case for case in CASES if not (case.ours and request.config.getoption("--target"))]


def ask(connection, case):
    method, _, path = case.request.partition(" ")
    connection.request(method, path, case.body.encode() if isinstance(case.body, str) else case.body)
    response = connection.getresponse()
    return response.status, response.read().decode()


def nearly(value):
    if isinstance(value, dict):
        return {key: nearly(each) for key, each in value.items()}
    if isinstance(value, list):
        return [nearly(each) for each in value]
    return pytest.approx(value, rel=1e-6, abs=1e-7) if isinstance(value, float) else value


def complaint(case, status, body):
    """What is wrong with an answer; "" where it is right."""
    if status != case.status:
        return f"{case}: {status} instead of {case.status}: {body[:300]}"
    if case.error and case.error not in json.loads(body)["error"]:
        return f"{case}: {json.loads(body)['error'][:300]!r} does not say {case.error!r}"
    if case.answer is not None and json.loads(body) != nearly(case.answer):
        return f"{case}: {body[:300]}"
    return "" if case.text in body else f"{case}: {body[:300]} lacks {case.text}"


def test_every_request_is_answered_as_tf_serving_does(target, cases):
    with contextlib.closing(http.client.HTTPConnection(target, timeout=30)) as connection:
        complaints = [complaint(case, *ask(connection, case)) for case in cases]
    assert [each for each in complaints if each] == []


def test_there_are_as_many_requests_as_promised():
    assert len(CASES) >= 200
    assert {str(row) for row in (*range(1, 15), *range(16, 47), 51, 52)} <= {case.row for case in CASES}


def test_a_wrong_answer_would_be_seen():
    case = CASES[0]
    assert complaint(case, 200, '{"predictions": [2.5, 3.0, 4.5]}') == ""
    assert "4.6" in complaint(case, 200, '{"predictions": [2.5, 3.0, 4.6]}')
    assert "instead of 200" in complaint(case, 400, '{"error": ""}')


def test_metadata_tells_every_signature_with_int64_as_text(target):
    with contextlib.closing(http.client.HTTPConnection(target, timeout=30)) as connection:
        connection.request("GET", "/v1/models/half_plus_two/metadata")
        document = json.loads(connection.getresponse().read())
    assert document["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    signatures = document["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "classify", "regress"} <= set(signatures)
    x = signatures["serving_default"]["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT"
    assert x["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
