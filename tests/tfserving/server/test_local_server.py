"""The local server and `keras-committee serve`: start, warnings and end."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_committee.cli import main
from keras_committee.errors import ResourceError
from keras_committee.tfserving.server.batching import BatchingParameters
from keras_committee.tfserving.server.local_server import (
    LocalServer,
    ServerOptions,
    config_from_folder,
    tf_serving_command,
)
from keras_committee.tfserving.server.ports import listen, owner_of


def connect(port):
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20))


def test_D22_a_port_in_use_ends_with_exit_code_7(half_plus_two, capfd):
    with contextlib.closing(listen("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert main(["serve", str(half_plus_two), "--rest-port", str(port), "--grpc-port", "0"]) == 7
    assert f"port {port} in use" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either MODEL_DIR or --model-config-file"),
        (["{base}", "--batching-parameters-file", __file__], "requires --enable-batching"),
        (["{base}", "--model-config-file-poll-wait-seconds", "5"], "requires --model-config-file"),
        (["{base}/nowhere"], "there is no such folder. Did you mean '{base}'?"),
        (["{base}/123"], "it is one version of an exported model. Did you mean '{base}'?\n  No server was started."),
        (["{base}/.."], "is not a model folder: "),
    ],
)
def test_an_invalid_command_is_rejected_with_exit_code_2(half_plus_two, capfd, arguments, message):
    base = half_plus_two.resolve()
    assert main(["serve", *(argument.format(base=base) for argument in arguments)]) == 2
    assert message.format(base=base) in capfd.readouterr().err


def test_a_symbolic_link_to_the_model_gives_it_its_name(half_plus_two, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(half_plus_two)
    (config,) = config_from_folder(link)
    assert (config.name, config.base_path) == ("current", link)


def test_a_missing_binary_of_tf_serving_is_reported(half_plus_two, capfd, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["serve", str(half_plus_two), "--use-tf-serving"]) == 7
    assert "tensorflow_model_server is not installed" in capfd.readouterr().err


def test_tf_serving_gets_the_same_arguments(half_plus_two, tmp_path, monkeypatch):
    binary = tmp_path / "tensorflow_model_server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    ports = [str(binary), "--rest_api_port=8501", "--port=8500"]
    assert tf_serving_command(half_plus_two, (8501, 8500)) == [
        *ports,
        "--model_name=half_plus_two",
        f"--model_base_path={half_plus_two}",
    ]
    assert tf_serving_command(half_plus_two, (8501, 8500), batching_config=True)[-1] == "--enable_batching"
    flags = {"enable_cors_support": True, "model_config_poll_seconds": 10, "allow_labels_for_unavailable": True}
    assert tf_serving_command(None, (8501, 8500), "models.config", **flags)[3:] == [
        "--model_config_file=models.config",
        "--rest_api_enable_cors_support",
        "--model_config_file_poll_wait_seconds=10",
        "--allow_version_labels_for_unavailable_models",
    ]
    files = ("models.config", "monitoring.config", "batching.config")
    assert tf_serving_command(None, (8501, 8500), *files) == [
        *ports,
        "--model_config_file=models.config",
        "--monitoring_config_file=monitoring.config",
        "--enable_batching",
        "--batching_parameters_file=batching.config",
    ]


def test_every_response_and_the_log_name_the_local_server(half_plus_two, caplog):
    caplog.set_level("INFO")
    options = ServerOptions(rest_port=0, grpc_port=None)
    with LocalServer(config_from_folder(half_plus_two), options) as server, connect(server.rest_port) as connection:
        connection.request("GET", "/v1/models/half_plus_two/metadata")
        response = connection.getresponse()
        assert "not TensorFlow Serving" in response.headers["server"]
        assert "not TensorFlow Serving" in json.loads(response.read())["server"]
    log = " ".join(record.getMessage() for record in caplog.records)
    assert "not TensorFlow Serving" in log
    assert "max_body_bytes=33,554,432" in log


def test_requests_that_wait_for_a_batch_do_not_block_others(half_plus_two):
    batching = BatchingParameters(max_batch_size=12, batch_timeout_micros=10_000_000, num_batch_threads=1)
    options = ServerOptions(rest_port=0, grpc_port=None, batching=batching)

    def predict(port):
        with connect(port) as connection:
            connection.request("POST", "/v1/models/half_plus_two:predict", '{"instances": [3.0]}')
            return json.loads(connection.getresponse().read())

    with LocalServer(config_from_folder(half_plus_two), options) as server, ThreadPoolExecutor(12) as clients:
        started = time.monotonic()
        responses = list(clients.map(predict, [server.rest_port] * 12))
        assert time.monotonic() - started < 8  # the batch is full before its timeout
    assert responses == [{"predictions": [3.5]}] * 12


def test_a_host_that_others_can_reach_causes_a_warning(half_plus_two, caplog):
    with LocalServer(config_from_folder(half_plus_two), ServerOptions(host="0.0.0.0", rest_port=0, grpc_port=None)):
        pass
    assert "listening on 0.0.0.0: any client that reaches it can send requests" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_ends_with_0(half_plus_two, signal_number, fork_server):
    popen = subprocess.Popen if signal_number == signal.SIGTERM else fork_server.popen  # a real start takes seconds
    command = [sys.executable, "-m", "keras_committee.cli", "serve", str(half_plus_two), "--json"]
    command += ["--rest-port", "0", "--grpc-port", "0"]
    with popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            started = json.loads(process.stdout.readline())
            port = int(started["rest"].rpartition(":")[2])
            with connect(port) as connection:
                connection.request("POST", "/v1/models/half_plus_two:predict", '{"instances": [3.0]}')
                assert json.loads(connection.getresponse().read()) == {"predictions": [3.5]}
            process.send_signal(signal_number)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert started["models"] == ["half_plus_two"]


def test_D22_a_port_in_use_is_reported_with_its_owner():
    with contextlib.closing(listen("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert owner_of(port) == os.getpid()
        with pytest.raises(ResourceError, match=rf"port {port} in use \(pid {os.getpid()}\)") as caught:
            listen("127.0.0.1", port)
    assert caught.value.exit_code == 7


def test_D22_an_unavailable_address_is_reported():
    with pytest.raises(ResourceError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        listen("192.0.2.1", 0)
