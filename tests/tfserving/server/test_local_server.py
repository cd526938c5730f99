"""Does `keras-committee serve` start, say what it is, and end?"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys

import pytest

from keras_committee.cli import main
from keras_committee.errors import ResourceError
from keras_committee.tfserving.server.local_server import (
    LocalServer,
    ServerOptions,
    config_from_folder,
    tf_serving_command,
)
from keras_committee.tfserving.server.ports import listen, owner_of


def connected(port):
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20))


def test_D22_a_port_in_use_ends_with_exit_code_7(half_plus_two, capfd):
    with contextlib.closing(listen("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(half_plus_two), "--rest-port", str(port), "--grpc-port", "0"]) == 7
    assert f"port {port} in use" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either MODEL_DIR or --model-config-file"),
        (["{base}", "--batching-parameters-file", __file__], "does nothing without --enable-batching"),
        (["{base}/nowhere"], "there is no folder"),
        (["{base}/123"], "is one version of a model. Name the folder that holds it: {base}"),
    ],
)
def test_a_wrong_command_is_refused_with_exit_code_2(half_plus_two, capfd, arguments, message):
    base = half_plus_two.resolve()
    assert main(["serve", *(each.format(base=base) for each in arguments)]) == 2
    assert message.format(base=base) in capfd.readouterr().err


def test_the_real_server_is_named_where_it_is_missing(half_plus_two, capfd, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["serve", str(half_plus_two), "--use-tf-serving"]) == 7
    assert "tensorflow_model_server is not installed here" in capfd.readouterr().err


def test_the_real_server_gets_the_same_arguments(half_plus_two, tmp_path, monkeypatch):
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
    files = ("models.config", "monitoring.config", "batching.config")
    assert tf_serving_command(None, (8501, 8500), *files) == [
        *ports,
        "--model_config_file=models.config",
        "--monitoring_config_file=monitoring.config",
        "--enable_batching",
        "--batching_parameters_file=batching.config",
    ]


def test_the_stand_in_says_what_it_is(half_plus_two, caplog):
    caplog.set_level("INFO")
    options = ServerOptions(rest_port=0, grpc_port=None)
    with LocalServer(config_from_folder(half_plus_two), options) as server, connected(server.rest_port) as connection:
        connection.request("GET", "/v1/models/half_plus_two/metadata")
        response = connection.getresponse()
        assert "not TensorFlow Serving" in response.headers["server"]
        assert "not TensorFlow Serving" in json.loads(response.read())["server"]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "not TensorFlow Serving" in said
    assert "max_body_bytes 33,554,432" in said


def test_a_host_that_others_reach_is_warned_of(half_plus_two, caplog):
    with LocalServer(config_from_folder(half_plus_two), ServerOptions(host="0.0.0.0", rest_port=0, grpc_port=None)):
        pass
    assert "listening on 0.0.0.0: whoever reaches this machine may ask" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_ends_with_0(half_plus_two, number):
    words = [sys.executable, "-m", "keras_committee.cli", "serve", str(half_plus_two), "--json"]
    words += ["--rest-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            started = json.loads(process.stdout.readline())
            port = int(started["rest"].rpartition(":")[2])
            with connected(port) as connection:
                connection.request("POST", "/v1/models/half_plus_two:predict", '{"instances": [3.0]}')
                assert json.loads(connection.getresponse().read()) == {"predictions": [3.5]}
            process.send_signal(number)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert started["models"] == ["half_plus_two"]


def test_D22_a_port_in_use_is_told_with_its_owner():
    with contextlib.closing(listen("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert owner_of(port) == os.getpid()
        with pytest.raises(ResourceError, match=rf"port {port} in use \(pid {os.getpid()}\)") as caught:
            listen("127.0.0.1", port)
    assert caught.value.exit_code == 7


def test_D22_an_address_that_cannot_be_had_is_told():
    with pytest.raises(ResourceError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        listen("192.0.2.1", 0)
