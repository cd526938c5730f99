"""Does the stand-in refuse what is too much before it costs anything, and go on answering the others?"""

import concurrent.futures
import contextlib
import gzip
import http.client
import json
import os
import shutil
import socket
import struct
import threading
import time

import pytest
from half_plus_two import save_half_plus_two

from keras_committee.tfserving.server import rest
from keras_committee.tfserving.server.limits import Limits, check_shape
from keras_committee.tfserving.server.manager import Manager, ManagerOptions, ModelConfig
from keras_committee.tfserving.server.rest import decompress
from keras_committee.tfserving.tf_protocol import StatusError

SMALL = Limits(
    max_body_bytes=5000,
    max_decompressed_bytes=8000,
    max_header_bytes=2000,
    max_connections=20,
    read_timeout=0.5,
    max_batch_size=40,
    response_timeout=3,
    max_queue_size=3,
)
PREDICT = "/v1/models/half_plus_two:predict"
CANARY = b'{"instances":[1.0,2.0,5.0]}'
HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\n".encode()


@pytest.fixture(scope="module")
def manager(half_plus_two, tmp_path_factory):
    base = shutil.copytree(half_plus_two, tmp_path_factory.mktemp("limits") / "half_plus_two")
    with Manager([ModelConfig("half_plus_two", base)], ManagerOptions(poll_seconds=0.05)) as manager:
        manager.wait_until_available()
        yield manager


@pytest.fixture(scope="module")
def server(manager):
    with rest.start(manager, ("127.0.0.1", 0), SMALL) as server:
        yield server


def ask(port, body=CANARY, headers=None, path=PREDICT, method="POST"):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body, headers or {}, encode_chunked=True)
        response = connection.getresponse()
        return response.status, response.read().decode()


def send(port, content, half=False):
    """What comes back for raw bytes, until the server closes; b"" where it just closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        with contextlib.suppress(OSError):
            raw.sendall(content)
            if half:
                raw.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := raw.recv(65536):
                answer += piece
        return answer


@pytest.fixture(autouse=True)
def canary(request):
    """After each test with a server, it still answers rightly."""
    yield
    for name in {"server"} & set(request.fixturenames):
        status, body = answer_after_queue(request.getfixturevalue(name).port)
        assert (status, json.loads(body)) == (200, {"predictions": [2.5, 3.0, 4.5]})


def answer_after_queue(port):
    """The answer to the canary once the requests of clients who have left are out of the queue."""
    until = time.monotonic() + 10
    while (answer := ask(port))[0] == 503 and time.monotonic() < until:
        time.sleep(0.05)
    return answer


def of_size(size):
    return CANARY + b" " * (size - len(CANARY))


@pytest.mark.parametrize(("size", "status"), [(4999, 200), (5000, 200), (5001, 413)])
def test_D12_a_body_may_have_so_many_bytes(server, size, status):
    assert ask(server.port, of_size(size))[0] == status
    chunked = (of_size(size)[start : start + 1000] for start in range(0, size, 1000))
    assert ask(server.port, chunked, {"Transfer-Encoding": "chunked"})[0] == status


def test_D12_a_gigabyte_that_is_only_declared_is_refused_at_once(server):
    started = time.monotonic()
    answer = send(
        server.port, f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**30}\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 413")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("size", "status"), [(7999, 200), (8000, 200), (8001, 413)])
def test_D12_a_gzip_body_may_decompress_to_so_many_bytes(server, size, status):
    assert ask(server.port, gzip.compress(of_size(size)), {"Content-Encoding": "gzip"})[0] == status


@pytest.mark.parametrize("body", [b"no gzip", b"", gzip.compress(CANARY, mtime=0)[:-9]], ids=["none", "empty", "cut"])
def test_D12_a_broken_gzip_body_is_a_bad_request(server, body):
    status, text = ask(server.port, body, {"Content-Encoding": "gzip"})
    assert (status, "the gzip body cannot be decompressed" in text) == (400, True)


def test_D12_a_gzip_bomb_is_refused_by_its_ratio():
    with pytest.raises(StatusError, match="decompresses to more than 100 times its size") as caught:
        decompress(gzip.compress(bytes(50 * 2**20)), Limits())
    assert caught.value.http_status == 413
    assert len(decompress(gzip.compress(bytes(2**20)), Limits())) == 2**20  # so much is let pass: a black image


@pytest.mark.parametrize(("rows", "status"), [(39, 200), (40, 200), (41, 400)])
def test_D14_a_batch_may_have_so_many_rows(server, rows, status):
    assert ask(server.port, json.dumps({"instances": [1.5] * rows}))[0] == status
    assert ask(server.port, json.dumps({"inputs": [1.5] * rows}))[0] == status


def test_D14_a_tensor_may_have_so_many_elements():
    limits = Limits(max_elements=2**20)
    check_shape("x", [2**10, 2**10], limits)
    with pytest.raises(StatusError, match="x has 1048577 elements; at most 1048576 are allowed"):
        check_shape("x", [1, 2**20 + 1], limits)
    with pytest.raises(StatusError, match="no size may be negative"):
        check_shape("x", [-1, -1], limits)


def test_D15_an_empty_batch_is_answered_as_tf_serving_does(server):
    assert json.loads(ask(server.port, b'{"inputs": []}')[1]) == {"outputs": []}
    assert "No values in 'instances' array" in ask(server.port, b'{"instances": []}')[1]


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":' + b"[" * 4800,
        b'{"instances":[1],"instances":["x"]}',
        b"\xff",
        b'{"instances":[NaN]}',
        b"9" * 4900,
    ],
)
def test_D10_odd_json_is_answered_with_200_or_400(server, body):
    assert ask(server.port, body)[0] in (200, 400)


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "half_plus_two%00", "%2e%2e", "/etc/passwd", "%c3%28", "x" * 900]
)
def test_D19_a_path_in_a_model_name_leads_nowhere(server, name):
    assert ask(server.port, path=f"/v1/models/{name}:predict")[0] in (400, 404)
    assert ask(server.port, None, path=f"/v1/models/{name}", method="GET")[0] in (400, 404)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8501", "127.0.0.1.evil.example", ""])
def test_a_page_elsewhere_cannot_ask_under_its_own_name(server, host):
    assert ask(server.port, headers={"Host": host})[0] == 403
    assert ask(server.port, headers={"Host": "LocalHost:99"})[0] == 200


SMUGGLED = [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"Content-Length: -5\r\n\r\n",
    b"Content-Length: 1e3\r\n\r\n",
    b"Bad Header\r\n\r\n",
    b"X: " + b"a" * 3000 + b"\r\n\r\n",
    b"X: a\r\n" * 400 + b"\r\n",
    b"X: \x00\r\n\r\n",
]


@pytest.mark.parametrize("rest_of_it", SMUGGLED)
def test_D21_a_request_of_two_readings_is_refused_and_the_connection_closed(server, rest_of_it):
    answer = send(server.port, HEAD + rest_of_it)
    assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 408", b"HTTP/1.1 501")
    assert answer.count(b"HTTP/1.1") <= 1


def test_D17_a_client_that_sends_no_request_is_let_go(server):
    assert send(server.port, b"POST /v1/mod").startswith(b"HTTP/1.1 408")
    assert b"no request within 0.5 s" in send(server.port, b"")


def test_D17_a_body_that_does_not_come_is_let_go(server):
    answer = send(server.port, HEAD + b"Content-Length: 99\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")


def test_D17_slow_clients_make_room_for_others(server):
    with contextlib.ExitStack() as stack:
        for _ in range(60):  # three times as many as may be connected
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            raw.sendall(b"POST /v1")
        started = time.monotonic()
        assert ask(server.port)[0] == 200
        assert time.monotonic() - started < 5


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_D18_clients_that_leave_leave_nothing_behind(server, caplog):
    ask(server.port)
    before = descriptors()
    head = HEAD + f"Content-Length: {len(CANARY)}\r\n\r\n".encode()
    for content in [head, head + CANARY[:9], head + CANARY, b"", b"GET"] * 40:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a farewell
            raw.sendall(content)
    until = time.monotonic() + 10
    while descriptors() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert descriptors() <= before
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


class SlowSession:
    """A session whose calls wait for `go`."""

    def __init__(self, session, go):
        self.signatures, self.meta_graph, self._session, self._go = session.signatures, session.meta_graph, session, go
        self.close = session.close

    def run(self, *arguments, **named):
        self._go.wait(30)
        return self._session.run(*arguments, **named)


@pytest.fixture
def slow(half_plus_two):
    """(port, go): a server whose answers wait for the event `go`."""
    from keras_committee.tfserving.session import Session

    go = threading.Event()
    config = ModelConfig("half_plus_two", half_plus_two)
    with Manager([config], load=lambda folder: SlowSession(Session.load(folder), go)) as manager:
        manager.wait_until_available()
        with rest.start(manager, ("127.0.0.1", 0), SMALL) as server:
            yield server.port, go
            go.set()


def test_D16_what_the_queue_cannot_hold_is_told_to_come_later(slow):
    port, go = slow
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(ask, port) for _ in range(8)]
        refused = [next(concurrent.futures.as_completed(asked)).result()]
        go.set()
        answers = [each.result() for each in asked]
    assert refused[0][0] == 503
    assert "requests are waiting; try again later" in refused[0][1]
    assert sorted({status for status, _ in answers}) == [200, 503]
    assert sum(status == 200 for status, _ in answers) >= 3


def test_D16_an_answer_that_does_not_come_is_given_up(slow):
    started = time.monotonic()
    status, text = ask(slow[0])
    assert (status, "no answer within 3 s" in text) == (504, True)
    assert 2.5 < time.monotonic() - started < 15


def test_D06_D07_D16_clients_never_notice_that_versions_come_and_go(manager, server):
    base, answers, stop = manager.configs()[0].base_path, [], threading.Event()

    def loop():
        while not stop.is_set():
            answers.append(ask(server.port))

    clients = [threading.Thread(target=loop) for _ in range(2)]
    [client.start() for client in clients]
    (base / "125").mkdir()
    save_half_plus_two(base, 126)
    until = time.monotonic() + 20
    while manager.statuses("half_plus_two")[0].state != "AVAILABLE" and time.monotonic() < until:
        time.sleep(0.02)
    shutil.rmtree(base / "126")
    time.sleep(0.3)
    stop.set()
    [client.join() for client in clients]
    assert {status for status, _ in answers} == {200}
    assert {json.loads(body)["predictions"][2] for _, body in answers} == {4.5}
