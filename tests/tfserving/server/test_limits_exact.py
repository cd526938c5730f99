"""Is each limit of the stand-in met exactly: one less passes, the limit passes, one more does not?"""

import asyncio
import contextlib
import gzip
import http.client
import socket
import struct
import threading
import time

import numpy as np
import pytest

from keras_committee.tfserving.server import rest
from keras_committee.tfserving.server.json_input import parse_object
from keras_committee.tfserving.server.limits import Limits, check_body, check_image_sizes, check_shape
from keras_committee.tfserving.server.manager import Manager, ModelConfig
from keras_committee.tfserving.server.rest import decompress
from keras_committee.tfserving.server.rest_handlers import LOOPBACK_HOSTS, HostCheckMiddleware
from keras_committee.tfserving.server.worker_pool import BoundedExecutor
from keras_committee.tfserving.tf_protocol import StatusError

PASSES = contextlib.nullcontext()
PREDICT = "/v1/models/half_plus_two:predict"


def refuses(words):
    return pytest.raises(StatusError, match=words)


@pytest.mark.parametrize(("size", "met"), [(699, PASSES), (700, PASSES), (701, refuses("exceeds 700 bytes"))])
def test_D12_the_bytes_of_a_body(size, met):
    with met:
        check_body(size, Limits(max_body_bytes=700))


@pytest.mark.parametrize(
    ("compressed", "met"), [(21_001, PASSES), (21_000, PASSES), (20_999, refuses("more than 100 times its size"))]
)
def test_D12_the_ratio_of_a_gzip_body(compressed, met):
    plain = gzip.compress(bytes(2_100_000), mtime=0)
    name = b"x" * (compressed - len(plain) - 1) + b"\0"  # a gzip header may name a file: bytes that hold nothing
    padded = plain[:3] + bytes([plain[3] | 8]) + plain[4:10] + name + plain[10:]
    assert len(padded) == compressed
    with met:
        assert len(decompress(padded, Limits())) == 2_100_000


@pytest.mark.parametrize(("depth", "met"), [(6, PASSES), (7, PASSES), (8, refuses("at most 7 levels"))])
def test_D10_the_depth_of_json(depth, met):
    with met:
        parse_object(b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}", Limits(max_json_depth=7))


@pytest.mark.parametrize(
    ("shape", "met"),
    [
        ([1, 699], PASSES),
        ([2, 350], PASSES),
        ([1, 701], refuses("x has 701 elements; at most 700 are allowed")),
        ([2**40, 2**40], refuses("elements; at most 700 are allowed")),
    ],
)
def test_D11_the_elements_of_a_tensor(shape, met):
    with met:
        check_shape("x", shape, Limits(max_elements=700))


@pytest.mark.parametrize(("rows", "met"), [(6, PASSES), (7, PASSES), (8, refuses("a batch of 8; at most 7"))])
def test_D14_the_rows_of_a_batch(rows, met):
    with met:
        check_shape("x", [rows, 3], Limits(max_batch_size=7))


@pytest.mark.parametrize(("width", "met"), [(99, PASSES), (100, PASSES), (101, refuses("101 x 7 pixels; at most 700"))])
def test_D13_the_pixels_of_an_image(width, met):
    content = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, 7) + b"\x08\x02\0\0\0"
    with met:
        check_image_sizes(np.array([content], object), Limits(max_pixels=700), "image_bytes")


@pytest.mark.parametrize(("waiting", "met"), [(1, PASSES), (2, PASSES), (3, refuses("3 requests are waiting"))])
def test_D16_the_length_of_the_queue(waiting, met):
    work, go = BoundedExecutor(Limits(max_queue_size=3), num_threads=1), threading.Event()
    try:
        for _ in range(waiting):
            work.submit(lambda _deadline: go.wait(10), 0)
        with met:
            work.submit(lambda _deadline: None, 0)
    finally:
        go.set()
        work.close()


def through_the_gate(headers, limits, path=b"/"):
    """The HTTP status of a request with these headers."""

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask():
        answers = []

        async def send(message):
            answers.append(message)

        scope = {"headers": headers, "raw_path": path, "method": "GET", "path": "/"}
        await HostCheckMiddleware(app, LOOPBACK_HOSTS, limits)(scope, None, send)
        return answers

    answers = asyncio.run(ask())
    return answers[0]["status"], dict(answers[0]["headers"])


@pytest.mark.parametrize(("size", "status"), [(699, 200), (700, 200), (701, 431)])
def test_D21_the_bytes_of_the_headers(size, status):
    header = (b"x", b"a" * (size - 1 - 4 - len(b"/path")))  # a colon, a blank and the end of the line count
    assert through_the_gate([header], Limits(max_header_bytes=700), b"/path")[0] == status


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
def test_a_name_that_was_rebound_to_loopback_is_refused(host, status):
    assert through_the_gate([(b"host", host)], Limits())[0] == status


@pytest.fixture(scope="module")
def server(half_plus_two):
    limits = Limits(max_connections=5, read_timeout=0.8)
    with Manager([ModelConfig("half_plus_two", half_plus_two)]) as manager:
        manager.wait_until_available()
        with rest.start(manager, ("127.0.0.1", 0), limits) as server:
            yield server


def test_no_other_page_may_read_an_answer(server):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        for method in ("OPTIONS", "GET", "POST"):
            connection.request(method, PREDICT, b"{}", {"Origin": "https://elsewhere.example"})
            response = connection.getresponse()
            response.read()
            assert [name for name in response.headers if name.lower().startswith("access-control")] == []


@pytest.mark.parametrize(("more", "dropped"), [(-1, 0), (0, 0), (1, 1)])
def test_D17_the_number_of_connections(server, more, dropped):
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        waiting = [stack.enter_context(socket.create_connection(address)) for _ in range(5 + more)]
        time.sleep(0.2)
        closed = [each for each in waiting if _is_closed(each)]
    time.sleep(0.1)
    assert len(closed) == dropped


def _is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(("seconds", "status"), [(0.3, b"HTTP/1.1 200"), (1.6, b"HTTP/1.1 408")])
def test_D17_the_seconds_in_which_a_body_must_come(server, seconds, status):
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 19\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head.encode())
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            raw.sendall(b'{"instances":[1.0]}')
        assert raw.recv(12) == status
