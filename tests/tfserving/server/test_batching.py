"""Batching of simultaneous requests by the rules of TF Serving."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_committee.tfserving.config import parse_batching
from keras_committee.tfserving.server.batching import BatchedSession, BatchingParameters
from keras_committee.tfserving.session import Session
from keras_committee.tfserving.tf_protocol import StatusError

THREE = BatchingParameters(
    max_batch_size=8, batch_timeout_micros=30_000_000, num_batch_threads=1, allowed_batch_sizes=(4, 8)
)


class RecordingSession:
    """A session that records its inputs, and fails with `error` if it is set."""

    def __init__(self, session, error=None):
        self.signatures, self.meta_graph = session.signatures, session.meta_graph
        self.session, self.error, self.inputs = session, error, []

    def run(self, signature, inputs, outputs=None, *, timeout=None):
        self.inputs.append(inputs["x"].tolist())
        if self.error:
            raise self.error
        return self.session.run(signature, inputs, outputs, timeout=timeout)

    def close(self):
        pass


@pytest.fixture(scope="module")
def session(half_plus_two):
    with Session.load(half_plus_two / "123") as session:
        yield session


def run(batched, row, **options):
    try:
        return batched.run("", {"x": np.float32(row)}, **options)["y"].tolist()
    except StatusError as error:
        return error.code


def run_together(recorded, parameters, rows, **options):
    """Send requests with these rows within the waiting time of a batch, and return their results."""
    batched = BatchedSession(recorded, parameters)
    with ThreadPoolExecutor(len(rows)) as threads:
        requests = [threads.submit(run, batched, row, **options) for row in rows]
        while sum(len(batch.tasks) for batch in list(batched._queue)) + sum(map(bool, recorded.inputs)) < 1:
            pass
        threading.Timer(0.3, batched.close).start()  # closing runs the queued batches
        return [request.result(30) for request in requests]


def test_requests_are_joined_and_each_gets_its_rows(session):
    recorded = RecordingSession(session)
    assert run_together(recorded, THREE, [[1, 2], [5]]) == [[2.5, 3.0], [4.5]]
    assert len(recorded.inputs) == 1


def test_a_batch_is_padded_with_the_first_row_of_the_last_request(session):
    recorded = RecordingSession(session)
    assert run_together(recorded, THREE, [[5, 7]]) == [[4.5, 5.5]]
    assert recorded.inputs == [[5, 7, 5, 5]]
    recorded = RecordingSession(session)
    assert run_together(recorded, THREE, [[1, 2], [5]]) == [[2.5, 3.0], [4.5]]
    assert recorded.inputs in ([[1, 2, 5, 5]], [[5, 1, 2, 1]])  # either may arrive first


def test_a_full_batch_does_not_wait(session):
    batched = BatchedSession(RecordingSession(session), THREE)
    assert run(batched, [1] * 8) == [2.5] * 8
    batched.close()


def test_one_failure_fails_the_whole_batch(session):
    recorded = RecordingSession(session, StatusError("INVALID_ARGUMENT", "one image is broken"))
    assert run_together(recorded, THREE, [[1], [2]]) == ["INVALID_ARGUMENT"] * 2


def test_different_shapes_in_one_batch_fail_it(session):
    assert run_together(RecordingSession(session), THREE, [[[1, 2]], [[3]]]) == ["FAILED_PRECONDITION"] * 2


def test_a_request_larger_than_a_batch_is_rejected(session):
    batched = BatchedSession(session, THREE)
    with pytest.raises(StatusError, match="Task size 9 is larger than maximum input batch size 8"):
        batched.run("", {"x": np.zeros(9, np.float32)})


def test_a_full_queue_rejects_requests(session):
    full = BatchingParameters(max_batch_size=1, num_batch_threads=0, max_enqueued_batches=0)
    with pytest.raises(StatusError, match="UNAVAILABLE: The batch scheduling queue"):
        BatchedSession(session, full).run("", {"x": np.zeros(1, np.float32)})


def test_deadlines_that_pass_in_the_queue_are_resource_exhausted(session):
    assert run_together(RecordingSession(session), THREE, [[1]], timeout=0.05) == ["RESOURCE_EXHAUSTED"]


def test_inputs_without_a_batch_axis_run_alone(session):
    recorded = RecordingSession(session)
    batched = BatchedSession(recorded, THREE)
    assert run(batched, 3) == 3.5
    assert run(batched, []) == []
    assert recorded.inputs == [3, []]


def test_parameters_are_read_from_batching_config():
    text = "max_batch_size { value: 32 } batch_timeout_micros { value: 2000 }"
    text += "allowed_batch_sizes: 8 allowed_batch_sizes: 32"
    assert BatchingParameters.from_proto(parse_batching(text)) == BatchingParameters(
        max_batch_size=32, batch_timeout_micros=2000, allowed_batch_sizes=(8, 32)
    )
    with pytest.raises(StatusError, match="must increase and end with max_batch_size 32"):
        BatchingParameters(max_batch_size=32, allowed_batch_sizes=(8, 16))
