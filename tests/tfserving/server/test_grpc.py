"""Does the stand-in outlive what comes over gRPC: lies, floods, limits, and what is no request at all?"""

import os
import threading

import grpc
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from grpc_requests import KINDS, PREDICTION, THREE, ask, done, encoded, resident, send
from grpc_cases import CASES
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import predict_pb2

from keras_committee.errors import ResourceError
from keras_committee.tfserving.server import grpc as serving_grpc
from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.server.manager import Manager, ModelConfig
from keras_committee.tfserving.server.metrics import Metrics


@pytest.fixture
def channel(grpc_channel):
    return grpc_channel


@pytest.fixture
def manager(grpc_manager):
    return grpc_manager


@pytest.fixture
def server(grpc_server):
    return grpc_server


def test_a_long_message_is_cut_where_tf_serving_cuts_it(channel):
    _, _, message = ask(channel, CASES["predict a long name"])
    assert message == "Servable not found for request: Latest(" + "n" * (1024 - 39) + "...TRUNCATED"


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("content", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\x0a\x05", b"\x0b" * 5000])
def test_D11_what_is_no_message_is_an_invalid_argument(channel, method, content):
    _, code, message = send(channel, method, content)
    assert (code, "this is no " in message) == ("INVALID_ARGUMENT", True)


def test_D11_twenty_bytes_allocate_nothing(channel):
    bombs = [case for name, case in CASES.items() if "D11" in name]
    ask(channel, bombs[0])
    before = resident()
    for case in bombs * 20:
        assert len(encoded(case)) < 80
        assert ask(channel, case)[1] == "INVALID_ARGUMENT"
    assert resident() - before < 16 * 2**20


@pytest.mark.parametrize(("batch", "code"), [(1023, "OK"), (1024, "OK"), (1025, "INVALID_ARGUMENT")])
def test_D14_the_largest_batch_is_answered_and_one_more_is_not(channel, batch, code):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=batch)
    request.inputs["x"].tensor_content = np.arange(batch, dtype=np.float32).tobytes()
    assert send(channel, "Predict", request.SerializeToString())[1] == code


def test_D12_a_message_that_is_too_large_is_refused_before_it_is_read(manager):
    server = serving_grpc.start(manager, ("127.0.0.1", 0), Limits(max_body_bytes=1000))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        padding = b"\x7a\xd0\x07" + b"p" * 976  # an unknown field
        small = encoded(THREE)
        assert send(channel, "Predict", small)[1] == "OK"
        _, code, message = send(channel, "Predict", small + padding)
        assert (code, "larger than max (" in message) == ("RESOURCE_EXHAUSTED", True)
        before = resident()
        assert send(channel, "Predict", b"p" * 3_900_000)[1] == "RESOURCE_EXHAUSTED"
        assert resident() - before < 16 * 2**20
        assert send(channel, "Predict", small)[1] == "OK"
    server.close(0)


@pytest.mark.parametrize(("patience", "least", "most"), [(7, 5, 7.1), (1000, 29, 30)])
def test_the_deadline_of_the_client_is_the_models_but_ours_if_it_is_longer(
    channel, manager, monkeypatch, patience, least, most
):
    seen = []
    with manager.borrow("half_plus_two") as lent:
        run = lent.session.run
        monkeypatch.setattr(lent.session, "run", lambda *a, timeout: (seen.append(timeout), run(*a))[1])
    assert send(channel, "Predict", encoded(THREE), timeout=patience)[1] == "OK"
    assert least < seen[0] <= most


def test_a_mistake_of_ours_is_internal_and_tells_nothing(channel, manager, monkeypatch, caplog):
    monkeypatch.setattr(manager, "statuses", lambda *_: 1 / 0)
    _, code, message = ask(channel, CASES["status"])
    assert (code, "ZeroDivisionError" in message) == ("INTERNAL", False)
    assert "ZeroDivisionError" in caplog.text


def test_health_is_told_under_tf_servings_names(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "ModelService", "PredictionService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == 1


RELOADS = [
    ('config { name: "J" base_path: "models/j" model_platform: "tensorflow" }', "INVALID_ARGUMENT", "absolute"),
    ("", "INVALID_ARGUMENT", "it lists no model"),
    ('config { name: "J" base_path: "BASE" model_platform: "tensorflow" }', "OK", ""),
]


def test_a_client_may_reload_where_it_was_allowed(half_plus_two):
    with Manager([ModelConfig("half_plus_two", half_plus_two)]) as manager:
        server = serving_grpc.start(manager, ("127.0.0.1", 0), Limits(), allow_reload=True)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            _, _, message = ask(channel, CASES["reload is off"])
            assert message.endswith("Only ModelConfigList is currently supported")
            for listed, code, words in RELOADS:
                text = f"config {{ model_config_list {{ {listed.replace('BASE', str(half_plus_two))} }} }}"
                _, received, message = ask(channel, CASES["reload is off"]._replace(request=text))
                assert (received, words in message) == (code, True), message
            manager.wait_until_available()
            assert ask(channel, CASES["status"]._replace(request='model_spec { name: "J" }'))[1] == "OK"
        server.close(0)


def test_requests_are_counted_under_tf_servings_names(manager):
    metrics = Metrics()
    with (
        serving_grpc.start(manager, ("127.0.0.1", 0), metrics=metrics) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        for name in ("predict", "predict", "predict D08 signature", "classify", "predict D09 model"):
            ask(channel, CASES[name])
    page = metrics.render()
    assert ':tensorflow:serving:request_count{model_name="half_plus_two",status="OK"} 3' in page
    assert ':tensorflow:serving:request_count{model_name="half_plus_two",status="FAILED_PRECONDITION"} 1' in page
    assert 'request_latency_count{model_name="half_plus_two",API="Predict",entrypoint="GRPC"} 2' in page
    assert "foo" not in page


def test_too_many_requests_are_unavailable_and_may_come_again(manager, monkeypatch):
    go = threading.Event()
    with manager.borrow("half_plus_two") as lent:
        run = lent.session.run
        monkeypatch.setattr(lent.session, "run", lambda *a, timeout: (go.wait(20), run(*a))[1])
    with (
        serving_grpc.start(manager, ("127.0.0.1", 0), Limits(max_queue_size=2)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        call = channel.unary_unary(PREDICTION + "Predict")
        waiting = [call.future(encoded(THREE), timeout=20) for _ in range(6)]
        refused = done(waiting, 4)
        assert [each.code().name for each in refused] == ["UNAVAILABLE"] * 4
        go.set()
        assert sum(each.code().name == "OK" for each in waiting) == 2
        assert ask(channel, THREE)[1] == "OK"


def test_D22_a_taken_port_is_told(manager, server):
    with pytest.raises(ResourceError, match=rf"port {server.port} in use \(pid {os.getpid()}\)"):
        serving_grpc.start(manager, ("127.0.0.1", server.port))


CODES_OF_BUGS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "ABORTED", "UNAVAILABLE"}
CUTS = st.tuples(st.integers(0, 2**16), st.integers(0, 6), st.binary(max_size=6))


def mutated(content, cuts):
    """`content` with some of its bytes replaced, taken out, or added to."""
    for at, length, other in cuts:
        at %= len(content) + 1
        content = content[:at] + other + content[at + length :]
    return content


def fuzz(channel, examples):
    """So many mutations of the written requests; between them an answer that is known."""
    cases = [case for case in CASES.values() if case.method != "HandleReloadConfigRequest"]
    content = encoded(THREE)
    known = send(channel, "Predict", content)

    @hypothesis.settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.sampled_from(cases), st.sampled_from(list(KINDS)), st.booleans(), st.lists(CUTS, max_size=4))
    def ask_and_ask_again(case, other, wrong_method, cuts):
        _, code, message = send(channel, other if wrong_method else case.method, mutated(encoded(case), cuts))
        assert code not in CODES_OF_BUGS, message
        assert send(channel, "Predict", content) == known

    ask_and_ask_again()


def test_D08_D11_requests_with_errors_do_no_harm(channel):
    fuzz(channel, 150)


@pytest.mark.slow
def test_D08_D11_two_thousand_requests_with_errors_do_no_harm(channel):
    fuzz(channel, 200)
    before = resident()
    fuzz(channel, 2000)
    assert resident() - before < 64 * 2**20
