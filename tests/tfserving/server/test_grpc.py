"""The gRPC API under malformed requests, floods and limits."""

import os
import threading

import grpc
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from grpc_cases import CASES
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_requests import KINDS, PREDICTION, THREE, call, encoded, resident, send, wait_done
from tensorflow_serving.apis import predict_pb2

from keras_committee.errors import ResourceError
from keras_committee.tfserving.server import grpc as serving_grpc
from keras_committee.tfserving.server.limits import Limits
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


def test_a_long_message_is_truncated_as_in_tf_serving(channel):
    _, _, message = call(channel, CASES["predict a long name"])
    assert message == "Servable not found for request: Latest(" + "n" * (1024 - 39) + "...TRUNCATED"


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("content", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\x0a\x05", b"\x0b" * 5000])
def test_D11_a_malformed_message_is_an_invalid_argument(channel, method, content):
    _, code, message = send(channel, method, content)
    assert (code, "not a valid " in message) == ("INVALID_ARGUMENT", True)


def test_D11_twenty_bytes_allocate_nothing(channel):
    bombs = [case for name, case in CASES.items() if "D11" in name]
    call(channel, bombs[0])
    before = resident()
    for case in bombs * 20:
        assert len(encoded(case)) < 80
        assert call(channel, case)[1] == "INVALID_ARGUMENT"
    assert resident() - before < 16 * 2**20


@pytest.mark.parametrize(("batch", "code"), [(1023, "OK"), (1024, "OK"), (1025, "INVALID_ARGUMENT")])
def test_D14_the_largest_batch_is_answered_and_a_larger_one_is_not(channel, batch, code):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=batch)
    request.inputs["x"].tensor_content = np.arange(batch, dtype=np.float32).tobytes()
    assert send(channel, "Predict", request.SerializeToString())[1] == code


def test_D12_a_large_message_is_rejected_before_it_is_read(manager):
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
    server.close()


@pytest.mark.parametrize(("timeout", "minimum", "maximum"), [(7, 5, 7.1), (1000, 29, 30)])
def test_the_model_has_the_deadline_of_the_client_up_to_the_limit(
    channel, manager, monkeypatch, timeout, minimum, maximum
):
    timeouts = []
    with manager.borrow("half_plus_two") as servable:
        run = servable.session.run
        monkeypatch.setattr(servable.session, "run", lambda *a, timeout: (timeouts.append(timeout), run(*a))[1])
    assert send(channel, "Predict", encoded(THREE), timeout=timeout)[1] == "OK"
    assert minimum < timeouts[0] <= maximum


def test_a_bug_of_the_server_is_internal_and_only_in_its_log(channel, manager, monkeypatch, caplog):
    monkeypatch.setattr(manager, "statuses", lambda *_: 1 / 0)
    _, code, message = call(channel, CASES["status"])
    assert (code, "ZeroDivisionError" in message) == ("INTERNAL", False)
    assert "ZeroDivisionError" in caplog.text


def test_health_has_the_service_names_of_tf_serving(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "ModelService", "PredictionService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == 1


def test_metrics_have_the_names_of_tf_serving(manager):
    metrics = Metrics()
    with (
        serving_grpc.start(manager, ("127.0.0.1", 0), metrics=metrics) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        for name in ("predict", "predict", "predict D08 signature", "classify", "predict D09 model"):
            call(channel, CASES[name])
    page = metrics.render()
    assert ':tensorflow:serving:request_count{model_name="half_plus_two",status="OK"} 3' in page
    assert ':tensorflow:serving:request_count{model_name="half_plus_two",status="FAILED_PRECONDITION"} 1' in page
    assert 'request_latency_count{model_name="half_plus_two",API="Predict",entrypoint="GRPC"} 2' in page
    assert "foo" not in page


def test_excess_requests_are_unavailable_until_others_finish(manager, monkeypatch):
    go = threading.Event()
    with manager.borrow("half_plus_two") as servable:
        run = servable.session.run
        monkeypatch.setattr(servable.session, "run", lambda *a, timeout: (go.wait(20), run(*a))[1])
    with (
        serving_grpc.start(manager, ("127.0.0.1", 0), Limits(max_queue_size=2)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        predict = channel.unary_unary(PREDICTION + "Predict")
        waiting = [predict.future(encoded(THREE), timeout=20) for _ in range(6)]
        refused = wait_done(waiting, 4)
        assert [rpc.code().name for rpc in refused] == ["UNAVAILABLE"] * 4
        go.set()
        assert sum(rpc.code().name == "OK" for rpc in waiting) == 2
        assert call(channel, THREE)[1] == "OK"


def test_D22_a_port_in_use_is_reported(manager, server):
    with pytest.raises(ResourceError, match=rf"port {server.port} in use \(pid {os.getpid()}\)"):
        serving_grpc.start(manager, ("127.0.0.1", server.port))


CODES_OF_BUGS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "ABORTED", "UNAVAILABLE"}
CUTS = st.tuples(st.integers(0, 2**16), st.integers(0, 6), st.binary(max_size=6))


def mutated(content, cuts):
    """Replace, remove or insert bytes of `content`."""
    for start, length, replacement in cuts:
        start %= len(content) + 1
        content = content[:start] + replacement + content[start + length :]
    return content


def fuzz(channel, examples):
    """Send mutations of the cases, and after each a request with a known response."""
    cases = [case for case in CASES.values() if case.method != "HandleReloadConfigRequest"]
    content = encoded(THREE)
    known = send(channel, "Predict", content)

    @hypothesis.settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.sampled_from(cases), st.sampled_from(list(KINDS)), st.booleans(), st.lists(CUTS, max_size=4))
    def send_mutation(case, other, wrong_method, cuts):
        _, code, message = send(channel, other if wrong_method else case.method, mutated(encoded(case), cuts))
        assert code not in CODES_OF_BUGS, message
        assert send(channel, "Predict", content) == known

    send_mutation()


def test_D08_D11_malformed_requests_do_no_harm(channel):
    fuzz(channel, 150)


@pytest.mark.slow
def test_D08_D11_two_thousand_malformed_requests_do_no_harm(channel):
    fuzz(channel, 200)
    before = resident()
    fuzz(channel, 2000)
    assert resident() - before < 64 * 2**20
