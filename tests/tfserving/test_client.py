"""The client returns the same outputs over gRPC and REST, and retries only what may be retried."""

import concurrent.futures
import contextlib
import http.server
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time

import grpc as grpc_library
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tiny_committee import NAMES, SIZE, expected

from keras_committee.errors import RecipeError
from keras_committee.tfserving import Client
from keras_committee.tfserving import client as client_module
from keras_committee.tfserving.client import RequestError, VersionStatus
from keras_committee.tfserving.server import grpc, rest
from keras_committee.tfserving.server.manager import Manager, ManagerOptions, ModelConfig, VersionPolicy
from keras_committee.tfserving.server.ports import listen

IMAGES = np.random.default_rng(3).uniform(0, 255, (5, SIZE, SIZE, 3)).round().astype(np.float32)


@pytest.fixture(scope="module")
def manager(tiny_committee, half_plus_two):
    configs = [
        ModelConfig("tiny", tiny_committee, VersionPolicy.specific(4), {"stable": 4}),
        ModelConfig("half", half_plus_two),
    ]
    with Manager(configs, ManagerOptions(allow_labels_for_unavailable=True)) as manager:
        manager.wait_until_available()
        yield manager


@pytest.fixture(scope="module")
def urls(manager):
    with grpc.start(manager, ("127.0.0.1", 0)) as one, rest.start(manager, ("127.0.0.1", 0)) as other:
        yield {"grpc": f"grpc://127.0.0.1:{one.port}", "http": f"http://127.0.0.1:{other.port}"}


@pytest.fixture(params=["grpc", "http"])
def client(urls, request):
    with Client(urls[request.param], "tiny", timeout=20) as client:
        yield client


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_give_typed_arrays(client):
    outputs = client.predict(IMAGES)
    mean = expected(IMAGES).mean(1)
    np.testing.assert_allclose(outputs["probabilities"], mean, atol=1e-6)
    np.testing.assert_array_equal(outputs["class_id"], mean.argmax(1))
    assert [label.decode() for label in outputs["label"]] == [NAMES[i] for i in mean.argmax(1)]
    assert [outputs[name].dtype.name for name in ("probabilities", "class_id", "label", "members_used")] == [
        *("float32", "int32", "object", "int32")
    ]


def test_pixels_of_eight_bits_are_sent_as_floats_where_the_model_has_no_signature_for_them(client):
    for _ in range(2):  # the second request goes there at once
        outputs = client.predict(IMAGES.astype(np.uint8), outputs=["class_id"])
        np.testing.assert_array_equal(outputs["class_id"], expected(IMAGES).mean(1).argmax(1))
    with pytest.raises(RequestError, match="predict_uint8"):
        client.predict(IMAGES.astype(np.uint8), signature="predict_uint8")


NUMBERS = np.random.default_rng(5).integers(0, 2**32, 1000, np.uint32).view(np.float32)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    "x",
    [
        NUMBERS[np.isfinite(NUMBERS)],
        NUMBERS[np.isfinite(NUMBERS)][::-2],
        np.float32([0.2, np.nan, -np.inf]),
        NUMBERS[:0],
    ],
    ids=["finite", "not contiguous", "not finite", "empty"],
)
def test_numbers_arrive_as_they_are(urls, protocol, x):
    with Client(urls[protocol], "half", timeout=20) as client:
        np.testing.assert_array_equal(client.predict({"x": x})["y"], np.float32(0.5) * x + np.float32(2))


def test_encoded_images_are_decoded_by_the_server(client):
    outputs = client.predict([png(IMAGES[0]), b"no image"])
    np.testing.assert_allclose(outputs["probabilities"][0], expected(IMAGES[:1])[0].mean(0), atol=1e-6)
    np.testing.assert_array_equal(outputs["valid"], np.array([True, False]))
    np.testing.assert_array_equal(client.predict(png(IMAGES[0]))["valid"], np.array([True]))


def test_signature_outputs_version_and_label_are_chosen(client):
    outputs = client.predict(
        {"image": IMAGES}, signature="predict_members", outputs=["member_probabilities"], version=4
    )
    assert list(outputs) == ["member_probabilities"]
    np.testing.assert_allclose(outputs["member_probabilities"], expected(IMAGES), atol=1e-6)
    assert client.predict(IMAGES, label="stable")["class_id"].shape == (5,)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ({"version": 9}, "NOT_FOUND", r"Specific\(tiny, 9\)\n  `Client.status\(\)` lists"),
        ({"label": "canary"}, "INVALID_ARGUMENT", "Unrecognized servable version label: canary"),
        ({"outputs": ["nope"]}, "INVALID_ARGUMENT", "output tensor alias not found in signature: nope"),
        ({"outputs": ["label", "label"]}, "INVALID_ARGUMENT", "duplicate output tensor alias: label"),
    ],
)
def test_D09_an_error_of_the_server_keeps_its_message(client, arguments, code, message):
    with pytest.raises(RequestError, match=f"127.0.0.1:[0-9]+, model 'tiny': {code}: .*{message}") as caught:
        client.predict(IMAGES, **arguments)
    assert caught.value.code == code


def test_a_wrong_shape_and_a_wrong_signature_are_rejected(client):
    with pytest.raises(RequestError, match="not compatible with expected shape"):
        client.predict(IMAGES[:, :5])
    with pytest.raises(RequestError, match='"nope" not found'):
        client.predict(IMAGES, signature="nope")


def test_the_status_lists_the_versions(client):
    assert client.status() == client.status(version=4) == [VersionStatus(4, "AVAILABLE")]
    with pytest.raises(RequestError, match="Could not find version 9 of model tiny"):
        client.status(version=9)


def test_a_single_output_has_its_name_over_both_protocols(urls):
    for url in urls.values():
        with Client(f"{url}/half") as client:
            np.testing.assert_array_equal(client.predict({"x": np.array([1, 5], np.float32)})["y"], [2.5, 4.5])


def test_grpc_messages_may_exceed_the_default_of_four_megabytes(urls):
    x = np.full((1024, 1500), 3, np.float32)  # 6 MB
    with Client(urls["grpc"], "half") as client:
        np.testing.assert_array_equal(client.predict({"x": x})["y"], x / 2 + 2)
    with (
        Client(urls["grpc"], "half", max_message_bytes=4 * 2**20) as client,
        pytest.raises(RequestError, match=r"RESOURCE_EXHAUSTED: .*\n  Send fewer images"),
    ):
        client.predict({"x": x})


@contextlib.contextmanager
def scripted(*responses):
    """Start a server that sends these (status, document or text), repeating the last; yield its URL and the paths."""
    paths, left = [], list(responses)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            paths.append(self.path)
            status, document = left.pop(0) if len(left) > 1 else left[0]
            content = json.dumps(document) if isinstance(document, dict) else document
            content = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BUSY = (503, {"error": "the queue is full"})
STATUS = (200, {"model_version_status": [{"version": "4", "state": "START", "status": {"error_message": ""}}]})


@pytest.mark.parametrize("failure", [BUSY, (499, {"error": "the server is stopping"})])
def test_unavailable_and_cancelled_are_retried_until_there_is_a_response(failure):
    with scripted(failure, failure, STATUS) as (url, paths), Client(url, "m") as client:
        assert client.status() == [VersionStatus(4, "START")]
    assert paths == ["/v1/models/m"] * 3


def test_a_grpc_request_that_a_stopping_server_cancelled_is_sent_again():
    calls = []

    def handle(content, context):
        calls.append(content)
        if len(calls) == 1:
            context.abort(grpc_library.StatusCode.CANCELLED, "the server is stopping")
        return b""

    handler = grpc_library.unary_unary_rpc_method_handler(handle)
    service = grpc_library.method_handlers_generic_handler(
        "tensorflow.serving.ModelService", {"GetModelStatus": handler}
    )
    server = grpc_library.server(concurrent.futures.ThreadPoolExecutor(1), [service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"grpc://127.0.0.1:{port}", "m") as client:
        assert client.status() == []
    assert len(calls) == 2
    server.stop(0).wait()


def metadata(version, output, dtype="DT_FLOAT"):
    signatures = {"serving_default": {"outputs": {output: {"dtype": dtype}}}}
    document = {"model_spec": {"version": version}, "metadata": {"signature_def": {"signature_def": signatures}}}
    return 200, document


def test_a_version_that_is_unloaded_before_the_prediction_is_replaced_by_the_next_one():
    gone = (404, {"error": "Servable not found for request: Specific(m, 4)"})
    with (
        scripted(metadata("4", "y"), gone, metadata("5", "z", "DT_INT32"), (200, {"outputs": [7]})) as (url, paths),
        Client(url, "m") as client,
    ):
        outputs = client.predict({"x": np.zeros(1)})
    assert (list(outputs), outputs["z"].dtype, outputs["z"].tolist()) == (["z"], np.int32, [7])
    newest, pinned = "/v1/models/m/metadata", "/v1/models/m/versions/{}:predict"
    assert paths == [newest, pinned.format(4), newest, pinned.format(5)]


def test_a_requested_version_that_is_unloaded_is_final():
    gone = (404, {"error": "Servable not found for request: Specific(m, 4)"})
    with (
        scripted(metadata("4", "y"), gone) as (url, _),
        Client(url, "m") as client,
        pytest.raises(RequestError, match=r"NOT_FOUND: .*Specific\(m, 4\)"),
    ):
        client.predict({"x": np.zeros(1)}, version=4)


@pytest.mark.parametrize(
    "document",
    [{}, {"outputs": ["text"]}, {"outputs": {"b64": 5}}, {"outputs": [[1], [2, 3]]}],
)
def test_a_response_that_does_not_fit_the_signature_is_an_error_with_a_message(document):
    with (
        scripted(metadata("4", "y"), (200, document)) as (url, _),
        Client(url, "m") as client,
        pytest.raises(RequestError, match="INTERNAL: this is not TF Serving: the response has other content"),
    ):
        client.predict({"x": np.zeros(1)})


def test_strings_that_are_not_utf_8_are_returned_as_they_are():
    with (
        scripted(metadata("4", "y", "DT_STRING"), (200, b'{"outputs": ["\xe9t\xe9"]}')) as (url, _),
        Client(url, "m") as client,
    ):
        assert client.predict({"x": np.zeros(1)})["y"].tolist() == [b"\xe9t\xe9"]


class OtherOutputs(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def predict(self, x):
        return {"double": 2 * x, "text": tf.strings.as_string(x, precision=1)}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_new_version_may_have_other_outputs(half_plus_two, tmp_path, protocol):
    shutil.copytree(half_plus_two, tmp_path / "half")
    config = ModelConfig("half", tmp_path / "half", VersionPolicy.all_versions())
    with Manager([config], ManagerOptions(poll_seconds=0.02)) as manager:
        manager.wait_until_available()
        start = {"grpc": grpc.start, "http": rest.start}[protocol]
        with start(manager, ("127.0.0.1", 0)) as server, Client(f"{protocol}://127.0.0.1:{server.port}/half") as client:
            x = {"x": np.array([3], np.float32)}
            assert client.predict(x)["y"].tolist() == [3.5]
            module = OtherOutputs()
            tf.saved_model.save(module, str(tmp_path / "staging"), signatures={"serving_default": module.predict})
            (tmp_path / "staging").rename(tmp_path / "half" / "124")
            deadline = time.monotonic() + 20
            while client.status()[0] != VersionStatus(124, "AVAILABLE") and time.monotonic() < deadline:
                time.sleep(0.02)
            outputs = client.predict(x)
            assert {name: array.tolist() for name, array in outputs.items()} == {"double": [6.0], "text": [b"3.0"]}
            assert client.predict(x, version=123)["y"].tolist() == [3.5]


@pytest.mark.parametrize(
    ("response", "code", "message"),
    [
        ((400, {"error": "Missing 'inputs'"}), "INVALID_ARGUMENT", "Missing 'inputs'"),
        ((404, "<html>gone</html>"), "NOT_FOUND", "HTTP 404 without a message"),
        ((429, {"error": "all in the queue are too late"}), "RESOURCE_EXHAUSTED", "too late"),
        ((504, {"error": "Timed out"}), "DEADLINE_EXCEEDED", r"Timed out\n  Increase `timeout=SECONDS`"),
        ((500, {"error": "a bug"}), "INTERNAL", "a bug"),
        ((200, "<html>hello</html>"), "INTERNAL", "this is not TF Serving"),
        ((200, "[" * 100_000), "INTERNAL", "this is not TF Serving"),
        ((200, {"status": "fine"}), "INTERNAL", "this is not TF Serving"),
    ],
)
def test_every_other_error_is_final(response, code, message):
    with (
        scripted(response) as (url, paths),
        Client(url, "m") as client,
        pytest.raises(RequestError, match=message) as caught,
    ):
        client.status()
    assert (caught.value.code, len(paths)) == (code, 1)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_unreachable_server_is_reported_at_the_deadline_with_the_number_of_attempts(scheme, caplog):
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    start = time.monotonic()
    with (
        Client(f"{scheme}://127.0.0.1:{port}", "m", connect_timeout=0.6) as client,
        pytest.raises(RequestError, match=r"no response in [2-9] attempts within 0.6 s: .*\n  Is the server running\?"),
    ):
        client.status()
    assert time.monotonic() - start < 5
    [first] = caplog.messages
    assert first.startswith(f"{scheme}://127.0.0.1:{port}: ")
    assert first.endswith("Connection refused; trying again for up to 0.6 s")


@pytest.fixture
def silent_address():
    """The address of a server whose queue of connections is full: it drops the packets of further ones."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_address_is_tried_again_and_reported_at_the_deadline(silent_address, monkeypatch, caplog):
    monkeypatch.setattr(client_module, "_CONNECT_TIMEOUT", 0.1)
    start = time.monotonic()
    with (
        Client(silent_address, "m", timeout=0.6) as client,
        pytest.raises(RequestError, match=r"no response in [2-9] attempts within 0.6 s: no connection within"),
    ):
        client.status()
    assert time.monotonic() - start < 2
    assert caplog.messages == [f"{silent_address}: no connection within 0.1 s; trying again for up to 0.6 s"]


WITHOUT_TENSORFLOW = """
import sys
from keras_committee.cli import main
codes = [main(["predict", sys.argv[1], "--url", url, "--json"]) for url in sys.argv[2:]]
print(codes, *sorted({"google.protobuf", "grpc", "urllib3", "keras", "sklearn", "tensorflow"} & set(sys.modules)))
"""


def test_predictions_of_a_server_load_no_tensorflow(urls, tmp_path):
    (tmp_path / "image.png").write_bytes(png(IMAGES[0]))
    addresses = [f"{url}/tiny" for url in urls.values()]
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path / "image.png"), *addresses]
    result = subprocess.run(command, capture_output=True, text=True)
    assert set(result.stderr.splitlines()) == {"classifying 1 image"}
    *documents, modules = result.stdout.splitlines()
    assert modules == "[0, 0] google.protobuf grpc urllib3"
    with Client(addresses[0]) as client:
        probabilities = client.predict(png(IMAGES[0]))["probabilities"][0]
    for document, address in zip(map(json.loads, documents), addresses, strict=True):
        [prediction] = document["predictions"]
        assert document["source"] == address
        for best in prediction["top"]:
            assert best["probability"] == probabilities[best["class_id"]]
            assert best["class"] == NAMES[best["class_id"]]


def test_a_server_that_comes_back_is_found_again(manager, urls):
    first = grpc.start(manager, ("127.0.0.1", 0))
    with Client(f"grpc://127.0.0.1:{first.port}", "half", timeout=20) as client:
        assert client.status()[0].version == 123
        first.close()
        later = threading.Timer(0.3, lambda: again.append(grpc.start(manager, ("127.0.0.1", first.port))))
        again = []
        later.start()
        np.testing.assert_array_equal(client.predict({"x": np.array([4], np.float32)})["y"], [4])
        later.join()
    again[0].close()


@pytest.mark.parametrize(
    ("url", "model", "message"),
    [
        ("ftp://host:1", "m", "a server URL must be grpc://host:port or http://host:port. Received: 'ftp://host:1'"),
        ("http://host", "m", "a server URL must be grpc://"),
        ("http://host:99999", "m", "a server URL must be grpc://"),
        ("http://host:1", None, "name one model: model=NAME or http://host:port/NAME"),
        ("http://host:1/one", "two", "name one model"),
        ("http://host:1/v1/models/one/versions/3", None, "name one model"),
    ],
)
def test_an_invalid_address_is_reported_before_anything_is_sent(url, model, message):
    with pytest.raises(RecipeError, match=message):
        Client(url, model)


@pytest.mark.parametrize(
    "url", ["http://[::1]:8501/v1/models/digits", "grpc://host:8500/digits", "https://host:1/digits"]
)
def test_the_address_may_name_the_model(url):
    with Client(url) as client:
        assert client.model == "digits"


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (IMAGES[0], r"an array float32\[8, 8, 3\]"),
        ([], "list"),
        (["a.png"], "list"),
        ("a.png", "str"),
    ],
)
def test_other_inputs_are_rejected(client, inputs, got):
    with pytest.raises(RecipeError, match=f"arrays by input name. Received: {got}"):
        client.predict(inputs)


def test_a_version_and_a_label_at_once_are_rejected(client):
    with pytest.raises(RecipeError, match=r"give a version or a label, not both. Received: version=4, label='stable'"):
        client.predict(IMAGES, version=4, label="stable")
