"""Limits of the local server: one less passes, the limit passes, one more is rejected, and other clients are served."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import gzip
import http.client
import json
import os
import resource
import shutil
import socket
import struct
import threading
import time

import numpy as np
import pytest
from half_plus_two import save_half_plus_two

from keras_committee.errors import ResourceError
from keras_committee.tfserving.server import json_reader, rest
from keras_committee.tfserving.server.json_input import read_predict
from keras_committee.tfserving.server.limits import Limits, check_body, check_image_sizes, check_shape
from keras_committee.tfserving.server.manager import Manager, ManagerOptions, ModelConfig
from keras_committee.tfserving.server.ports import allow_open_files
from keras_committee.tfserving.server.rest import LOOPBACK_HOSTS, RequestCheckMiddleware, decompress
from keras_committee.tfserving.server.worker_pool import BoundedExecutor
from keras_committee.tfserving.session import Session
from keras_committee.tfserving.tf_protocol import StatusError, TensorInfo

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
PASSES = contextlib.nullcontext()


def rejects(message):
    return pytest.raises(StatusError, match=message)


# The checks themselves.


@pytest.mark.parametrize(("size", "outcome"), [(699, PASSES), (700, PASSES), (701, rejects("exceeds 700 bytes"))])
def test_D12_the_bytes_of_a_body(size, outcome):
    with outcome:
        check_body(size, Limits(max_body_bytes=700))


@pytest.mark.parametrize(
    ("compressed", "outcome"), [(21_001, PASSES), (21_000, PASSES), (20_999, rejects("more than 100 times its size"))]
)
def test_D12_the_ratio_of_a_gzip_body(compressed, outcome):
    plain = gzip.compress(bytes(2_100_000), mtime=0)
    name = b"x" * (compressed - len(plain) - 1) + b"\0"  # the header can hold the name of a file, which adds bytes
    padded = plain[:3] + bytes([plain[3] | 8]) + plain[4:10] + name + plain[10:]
    assert len(padded) == compressed
    with outcome:
        assert len(decompress(padded, Limits())) == 2_100_000


def test_D12_a_gzip_bomb_is_rejected_by_its_ratio_with_http_413():
    with rejects("decompresses to more than 100 times its size") as caught:
        decompress(gzip.compress(bytes(50 * 2**20)), Limits())
    assert caught.value.http_status == 413
    assert len(decompress(gzip.compress(bytes(2**20)), Limits())) == 2**20  # exempt: a black image


@pytest.mark.parametrize(("lists", "outcome"), [(5, PASSES), (6, PASSES), (7, rejects("at most 6 lists"))])
def test_D10_the_depth_of_a_tensor_in_json(lists, outcome):
    infos = {"x": TensorInfo("float32", None, "x:0", 1, np.dtype(np.float32))}
    body = b'{"unused":' + b"[" * 2000 + b"]" * 2000 + b',"inputs":' + b"[" * lists + b"]" * lists + b"}"
    with outcome:
        read_predict(body, lambda _: infos, Limits(max_json_depth=7))


@pytest.mark.parametrize(("lists", "outcome"), [(699, PASSES), (700, PASSES), (701, rejects("at most 700 levels"))])
def test_D10_the_depth_of_json(lists, outcome, monkeypatch):
    monkeypatch.setattr(json_reader, "_MAX_DEPTH", 700)
    with outcome:
        json_reader.read_exactly(b"[" * lists + b"]" * lists)


@pytest.mark.parametrize(
    ("shape", "outcome"),
    [
        ([1, 699], PASSES),
        ([2, 350], PASSES),
        ([1, 701], rejects("x has 701 elements; at most 700 are allowed")),
        ([2**40, 2**40], rejects("elements; at most 700 are allowed")),
        ([-1, -1], rejects("no size may be negative")),
    ],
)
def test_D11_the_elements_of_a_tensor(shape, outcome):
    with outcome:
        check_shape("x", shape, Limits(max_elements=700))


@pytest.mark.parametrize(("rows", "outcome"), [(6, PASSES), (7, PASSES), (8, rejects("a batch of 8; at most 7"))])
def test_D14_the_rows_of_a_batch(rows, outcome):
    with outcome:
        check_shape("x", [rows, 3], Limits(max_batch_size=7))


@pytest.mark.parametrize(
    ("width", "outcome"), [(99, PASSES), (100, PASSES), (101, rejects("101 x 7 pixels; at most 700"))]
)
def test_D13_the_pixels_of_an_image(width, outcome):
    content = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, 7) + b"\x08\x02\0\0\0"
    with outcome:
        check_image_sizes(np.array([content], object), Limits(max_pixels=700))


@pytest.mark.parametrize(("waiting", "outcome"), [(1, PASSES), (2, PASSES), (3, rejects("3 requests are waiting"))])
def test_D16_the_length_of_the_queue(waiting, outcome):
    executor, go = BoundedExecutor(Limits(max_queue_size=3), num_threads=1), threading.Event()
    try:
        for _ in range(waiting):
            executor.submit(lambda _deadline: go.wait(10), 0)
        with outcome:
            executor.submit(lambda _deadline: None, 0)
    finally:
        go.set()
        executor.close()


def checked_status(headers, limits, path=b"/"):
    """Return the HTTP status of a request with these headers behind RequestCheckMiddleware."""
    messages = []

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "headers": headers, "raw_path": path, "method": "GET", "path": "/"}
    asyncio.run(RequestCheckMiddleware(app, LOOPBACK_HOSTS, limits, threading.Event())(scope, None, send))
    return messages[0]["status"]


@pytest.mark.parametrize(("size", "status"), [(699, 200), (700, 200), (701, 431)])
def test_D21_the_bytes_of_the_headers(size, status):
    header = (b"x", b"a" * (size - 1 - 4 - len(b"/path")))  # a colon, a space and the end of the line count
    assert checked_status([header], Limits(max_header_bytes=700), b"/path") == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"127.0.0.1:8501", 200),
        (b"[::1]:8501", 200),
        (b"LOCALHOST", 200),
        (b"rebound.example", 403),
        (b"localhost.rebound.example", 403),
        (b"127.0.0.1@rebound.example", 403),
        (b"2130706433", 403),
        (b"0.0.0.0", 403),
        (b"", 403),
    ],
)
def test_a_host_name_rebound_to_loopback_is_rejected(host, status):
    assert checked_status([(b"host", host)], Limits()) == status


# A server with these limits.


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


def post(port, body=CANARY, headers=None, path=PREDICT, method="POST"):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body, headers or {}, encode_chunked=True)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")


def send_raw(port, content):
    """Send raw bytes and return the response, until the server closes; b"" if it only closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(content)
        response = b""
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                response += chunk
        return response


@pytest.fixture(autouse=True)
def canary(request):
    """After each test with a server, it still responds to others."""
    yield
    if "server" in request.fixturenames:
        port, deadline = request.getfixturevalue("server").port, time.monotonic() + 10
        while (response := post(port))[0] == 503 and time.monotonic() < deadline:
            time.sleep(0.05)  # the requests of clients who have left are still in the queue
        assert (response[0], json.loads(response[1])) == (200, {"predictions": [2.5, 3.0, 4.5]})


def padded_body(size):
    return CANARY + b" " * (size - len(CANARY))


@pytest.mark.parametrize(("size", "status"), [(5000, 200), (5001, 413)])
def test_D12_a_body_beyond_the_limit_is_rejected_also_in_chunks(server, size, status):
    assert post(server.port, padded_body(size))[0] == status
    chunks = (padded_body(size)[start : start + 1000] for start in range(0, size, 1000))
    assert post(server.port, chunks, {"Transfer-Encoding": "chunked"})[0] == status


def test_D12_a_gigabyte_that_is_only_declared_is_rejected_at_once(server):
    started = time.monotonic()
    assert send_raw(server.port, HEAD + f"Content-Length: {2**30}\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("size", "status"), [(7999, 200), (8000, 200), (8001, 413)])
def test_D12_the_bytes_of_a_decompressed_body(server, size, status):
    assert post(server.port, gzip.compress(padded_body(size)), {"Content-Encoding": "gzip"})[0] == status


@pytest.mark.parametrize("body", [b"no gzip", b"", gzip.compress(CANARY, mtime=0)[:-9]], ids=["none", "empty", "cut"])
def test_D12_a_broken_gzip_body_is_a_bad_request(server, body):
    status, text = post(server.port, body, {"Content-Encoding": "gzip"})
    assert (status, "JSON Parse error: The document is empty" in text) == (400, True)


def test_a_gzip_body_of_two_members_is_read_in_full(server):
    body = padded_body(100)
    members = gzip.compress(body[:50]) + gzip.compress(body[50:])
    assert decompress(members, Limits()) == body
    assert decompress(members + b"rest", Limits()) == b""
    assert post(server.port, members, {"Content-Encoding": "gzip"})[0] == 200


@pytest.mark.parametrize(("rows", "status"), [(40, 200), (41, 400)])
def test_D14_a_batch_beyond_the_limit_is_rejected_in_both_formats(server, rows, status):
    assert post(server.port, json.dumps({"instances": [1.5] * rows}))[0] == status
    assert post(server.port, json.dumps({"inputs": [1.5] * rows}))[0] == status


def test_D15_an_empty_batch_is_answered_as_tf_serving_does(server):
    assert json.loads(post(server.port, b'{"inputs": []}')[1]) == {"outputs": []}
    assert "No values in 'instances' array" in post(server.port, b'{"instances": []}')[1]


@pytest.mark.parametrize("body", [b'{"instances":' + b"[" * 4800, b'{"instances":[NaN]}', b"9" * 4900])
def test_D10_odd_json_is_answered_with_200_or_400(server, body):
    assert post(server.port, body)[0] in (200, 400)


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "half_plus_two%00", "%2e%2e", "/etc/passwd", "%c3%28", "x" * 900]
)
def test_D19_a_path_in_a_model_name_leads_nowhere(server, name):
    assert post(server.port, path=f"/v1/models/{name}:predict")[0] in (400, 404)
    assert post(server.port, None, path=f"/v1/models/{name}", method="GET")[0] in (400, 404)


@pytest.mark.parametrize(
    ("target", "status"), [("http://localhost", 200), ("HTTP://127.0.0.1:1", 200), ("http://evil.example", 403)]
)
def test_a_target_in_absolute_form_is_read_as_its_path(server, target, status):
    request = f"GET {target}/v1/models/half_plus_two HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert send_raw(server.port, request.encode()).startswith(f"HTTP/1.1 {status}".encode())


@pytest.mark.parametrize(("enabled", "origin"), [(True, "*"), (False, None)])
def test_cors_headers_are_sent_if_enabled(half_plus_two, enabled, origin):
    with (
        Manager([ModelConfig("half_plus_two", half_plus_two)]) as manager,
        rest.start(manager, ("127.0.0.1", 0), enable_cors_support=enabled) as running,
    ):
        for method, path in [("OPTIONS", "/v1/a"), ("GET", "/v1/models/nope"), ("GET", "/v1/models/half_plus_two")]:
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
            with contextlib.closing(connection):
                connection.request(method, path, headers={"Origin": "https://a.example"})
                assert connection.getresponse().getheader("Access-Control-Allow-Origin") == origin


def test_a_request_for_another_host_is_rejected(server):
    assert post(server.port, headers={"Host": "localhost.evil.example:8501"})[0] == 403
    assert post(server.port, headers={"Host": "LocalHost:99"})[0] == 200


def test_no_page_of_another_origin_may_read_a_response(server):
    for method in ("OPTIONS", "GET", "POST"):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
            connection.request(method, PREDICT, b"{}", {"Origin": "https://elsewhere.example"})
            headers = connection.getresponse().headers
        assert [name for name in headers if name.lower().startswith("access-control")] == []


AMBIGUOUS = [
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


@pytest.mark.parametrize("content", AMBIGUOUS)
def test_D21_an_ambiguous_request_is_rejected_and_the_connection_closed(server, content):
    response = send_raw(server.port, HEAD + content)
    assert response[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 408", b"HTTP/1.1 501")
    assert response.count(b"HTTP/1.1") <= 1


def test_D17_a_client_that_sends_no_request_is_timed_out(server):
    assert send_raw(server.port, b"POST /v1/mod").startswith(b"HTTP/1.1 408")
    assert b"no request within 0.5 s" in send_raw(server.port, b"")


@pytest.mark.parametrize(("seconds", "status"), [(0.2, b"HTTP/1.1 200"), (1.0, b"HTTP/1.1 408")])
def test_D17_the_seconds_in_which_a_body_must_arrive(server, seconds, status):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Content-Length: 19\r\nConnection: close\r\n\r\n")
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            connection.sendall(b'{"instances":[1.0]}')
        assert connection.recv(12) == status


def test_D17_slow_clients_make_room_for_others(server):
    with contextlib.ExitStack() as stack:
        for _ in range(60):  # three times the limit
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            connection.sendall(b"POST /v1")
        started = time.monotonic()
        while (status := post(server.port)[0]) == 503 and time.monotonic() - started < 5:
            time.sleep(0.05)
        assert status == 200


@pytest.fixture
def connect(manager):
    """Return a function that opens a connection to a server with at most five."""
    limits = Limits(max_connections=5, read_timeout=20)
    with rest.start(manager, ("127.0.0.1", 0), limits) as server, contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))


@pytest.mark.parametrize(("connections", "num_closed"), [(4, 0), (5, 0), (6, 1)])
def test_D17_beyond_the_number_of_connections_the_oldest_is_closed(connect, monkeypatch, connections, num_closed):
    monkeypatch.setattr(rest, "_MIN_WAIT_SECONDS", 0.1)
    waiting = []
    for _ in range(connections):
        waiting.append(connect())
        time.sleep(0.05)
    assert list(map(is_closed, waiting)) == [i < num_closed for i in range(connections)]


REQUEST = HEAD + f"Content-Length: {len(CANARY)}\r\n\r\n".encode() + CANARY


def exchange(connection, request=REQUEST):
    """Send a request; return the status of the response and what it says about the connection."""
    connection.sendall(request)
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status, response.getheader("connection")


def test_D16_clients_that_keep_their_connection_are_all_served_and_the_one_too_many_receives_503(connect):
    kept = [connect() for _ in range(5)]
    for _ in range(3):  # the connections are idle between the requests, and none is closed
        assert [exchange(connection) for connection in kept] == [(200, None)] * 5
        assert exchange(connect()) == (503, "close")
    kept[0].close()
    time.sleep(0.1)
    assert exchange(connect()) == (200, None)


def test_D16_two_hundred_clients_that_keep_their_connection_are_served(manager):
    def run(port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            return [exchange(connection) for _ in range(3)]

    with (
        rest.start(manager, ("127.0.0.1", 0)) as server,
        concurrent.futures.ThreadPoolExecutor(200) as clients,
    ):
        assert list(clients.map(run, [server.port] * 200)) == [[(200, None)] * 3] * 200


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_closes_its_sending_side_receives_its_responses(server, requests):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(REQUEST * requests)
        connection.shutdown(socket.SHUT_WR)
        content = b"".join(iter(lambda: connection.recv(65536), b""))
    assert content.count(b"HTTP/1.1 200 OK") == content.count(b"[2.5, 3.0, 4.5") == requests


def test_a_client_that_closes_its_sending_side_within_a_request_is_disconnected(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(REQUEST[:-3])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536) == b""


def test_D12_the_response_to_a_body_that_is_too_large_is_not_lost(server):
    head = HEAD + f"Content-Length: {10**7}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        assert exchange(connection, head + b" " * 10**7) == (413, "close")


def test_a_request_in_progress_at_the_end_is_answered_and_its_connection_closed(half_plus_two):
    go = threading.Event()
    config = ModelConfig("half_plus_two", half_plus_two)
    with Manager([config], load=lambda folder: SlowSession(Session.load(folder), go)) as manager:
        manager.wait_until_available()
        server = rest.start(manager, ("127.0.0.1", 0))
        with (
            concurrent.futures.ThreadPoolExecutor(2) as threads,
            socket.create_connection(("127.0.0.1", server.port)) as connection,
        ):
            answer = threads.submit(exchange, connection)
            time.sleep(0.1)
            stopped = threads.submit(server.close)
            time.sleep(0.2)
            go.set()
            assert answer.result(10) == (200, "close")
            stopped.result(10)


def test_more_connections_than_open_files_are_a_resource_error(manager, monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, values: limits.append(values))
    allow_open_files(4096)
    allow_open_files(200)
    assert limits == [(4096, 4096)]
    with pytest.raises(ResourceError, match="open files are needed, but this process may have only 4096"):
        rest.start(manager, ("127.0.0.1", 0), Limits(max_connections=4096))


def is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_D18_clients_that_disconnect_leak_nothing(server, caplog):
    def num_descriptors():
        return len(os.listdir("/proc/self/fd"))

    post(server.port)
    before = num_descriptors()
    head = HEAD + f"Content-Length: {len(CANARY)}\r\n\r\n".encode()
    for content in [head, head + CANARY[:9], head + CANARY, b"", b"GET"] * 40:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            connection.sendall(content)
    deadline = time.monotonic() + 10
    while num_descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert num_descriptors() <= before
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_D06_D07_D16_clients_are_served_while_versions_come_and_go(manager, server):
    base, responses, stop = manager.configs()[0].base_path, [], threading.Event()

    def loop():
        while not stop.is_set():
            responses.append(post(server.port))

    clients = [threading.Thread(target=loop) for _ in range(2)]
    [client.start() for client in clients]
    (base / "125").mkdir()
    save_half_plus_two(base, 126)
    deadline = time.monotonic() + 20
    while manager.statuses("half_plus_two")[0].state != "AVAILABLE" and time.monotonic() < deadline:
        time.sleep(0.02)
    shutil.rmtree(base / "126")
    time.sleep(0.3)
    stop.set()
    [client.join() for client in clients]
    assert {status for status, _ in responses} == {200}
    assert {json.loads(body)["predictions"][2] for _, body in responses} == {4.5}


class SlowSession:
    """A session whose calls wait for `go`."""

    def __init__(self, session, go):
        self.signatures, self.meta_graph, self._session, self._go = session.signatures, session.meta_graph, session, go
        self.close = session.close

    def run(self, *arguments, **options):
        self._go.wait(30)
        return self._session.run(*arguments, **options)


@pytest.fixture
def slow(half_plus_two):
    """(port, go): a server whose responses wait for the event `go`."""
    go = threading.Event()
    config, limits = ModelConfig("half_plus_two", half_plus_two), dataclasses.replace(SMALL, response_timeout=1)
    with Manager([config], load=lambda folder: SlowSession(Session.load(folder), go)) as manager:
        manager.wait_until_available()
        with rest.start(manager, ("127.0.0.1", 0), limits) as server:
            yield server.port, go
            go.set()


def test_D16_requests_beyond_the_queue_are_rejected_until_it_has_room(slow):
    port, go = slow
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        requests = [clients.submit(post, port) for _ in range(8)]
        status, text = next(concurrent.futures.as_completed(requests)).result()
        go.set()
        statuses = [request.result()[0] for request in requests]
    assert (status, "requests are waiting; try again later" in text) == (503, True)
    assert sorted(set(statuses)) == [200, 503]
    assert statuses.count(200) >= 3


def test_D16_a_response_that_takes_too_long_is_cancelled(slow):
    started = time.monotonic()
    status, text = post(slow[0])
    assert (status, "no answer within 1 s" in text) == (504, True)
    assert 0.9 < time.monotonic() - started < 15
