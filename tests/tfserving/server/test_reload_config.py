"""New configurations while serving, by the file models.config and by gRPC, with the rules of TF Serving for labels.

Sources: model_servers/server_core.cc (ReloadConfig), model_service_impl.cc and server.cc of TensorFlow Serving.
"""

import contextlib
import shutil
import time
import types

import pytest
from google.protobuf import text_format

from keras_committee.errors import CommitteeError
from keras_committee.tfserving.config import parse_models
from keras_committee.tfserving.server.grpc import PredictionServicer
from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.server.local_server import LocalServer, ServerOptions, read_config_file
from keras_committee.tfserving.server.manager import (
    Manager,
    ManagerOptions,
    ModelConfig,
    VersionPolicy,
    configs_from_proto,
)
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.tf_protocol import StatusError


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def load(folder):
    if (folder / "broken").exists():
        raise StatusError("NOT_FOUND", "Could not find SavedModel .pb or .pbtxt")
    return types.SimpleNamespace(close=lambda: None)


@pytest.fixture
def base(tmp_path):
    for path in ("a/1", "a/2", "b/7", "broken/3", "empty"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "broken/3/broken").touch()
    return tmp_path


@contextlib.contextmanager
def managed(*configs, allow_labels=False):
    with Manager(configs, ManagerOptions(0.02, 0, 0.02, allow_labels), load) as manager:
        manager.wait_until_available()
        yield manager


def borrowed(manager, name, label=None):
    with manager.borrow(name, None, label) as servable:
        return servable.version


def error_of(call):
    with pytest.raises(StatusError) as caught:
        call()
    return caught.value.code, caught.value.message


def test_models_come_and_go(base):
    a, b = ModelConfig("a", base / "a"), ModelConfig("b", base / "b")
    with managed(a) as manager:
        manager.reload([b], timeout=20)
        assert (manager.names(), borrowed(manager, "b")) == (["b"], 7)
        wait_for(lambda: [status.state for status in manager.statuses("a")] == ["END"])
        assert error_of(lambda: borrowed(manager, "a")) == ("NOT_FOUND", "Servable not found for request: Latest(a)")
        manager.reload([a, b], timeout=20)
        assert borrowed(manager, "a") == 2


def test_a_policy_rolls_back_and_an_empty_one_unloads(base):
    with managed(ModelConfig("a", base / "a")) as manager:
        for policy, versions in [
            (VersionPolicy.specific(1), {1}),
            (VersionPolicy.all_versions(), {1, 2}),
            (VersionPolicy.specific(), set()),
        ]:
            manager.reload([ModelConfig("a", base / "a", policy)])
            wait_for(
                lambda versions=versions: (
                    {status.version for status in manager.statuses("a") if status.state == "AVAILABLE"} == versions
                )
            )


def unavailable(version):
    message = f"Request to assign label to version {version} of model a, which is not currently available for inference"
    return "FAILED_PRECONDITION", message


def test_a_label_of_a_version_that_is_not_loaded_is_rejected_and_nothing_changes(base):
    def config(*versions, **labels):
        return ModelConfig("a", base / "a", VersionPolicy.specific(*versions), labels)

    with managed(config(1)) as manager:
        manager.reload([config(1, stable=1)])
        assert borrowed(manager, "a", "stable") == 1
        assert error_of(lambda: manager.reload([config(2, stable=2), ModelConfig("b", base / "b")])) == unavailable(2)
        assert (manager.names(), borrowed(manager, "a", "stable"), borrowed(manager, "a")) == (["a"], 1, 1)
        manager.reload([config(1, 2, stable=1)])  # the two steps of a rollout
        wait_for(lambda: borrowed(manager, "a") == 2)
        manager.reload([config(1, 2, stable=2, canary=1)])
        assert (borrowed(manager, "a", "stable"), borrowed(manager, "a", "canary")) == (2, 1)
        manager.reload([config(1, 2)])
        assert error_of(lambda: borrowed(manager, "a", "stable"))[1] == "Unrecognized servable version label: stable"


def test_with_the_flag_a_new_label_may_precede_its_version_but_a_label_may_not_move_to_it(base):
    def config(**labels):
        return ModelConfig("a", base / "a", VersionPolicy.specific(1), labels)

    with managed(config(stable=1), allow_labels=True) as manager:
        manager.reload([config(stable=1, canary=2)])
        assert error_of(lambda: borrowed(manager, "a", "canary"))[1] == "Servable not found for request: Specific(a, 2)"
        manager.reload([config(stable=1, canary=2)])
        assert error_of(lambda: manager.reload([config(stable=2, canary=2)])) == unavailable(2)
        manager.reload([config(stable=1, canary=1)])
        assert borrowed(manager, "a", "canary") == 1


def test_a_new_model_that_cannot_be_loaded_is_reported_and_the_others_are_served(base):
    a = ModelConfig("a", base / "a")
    with managed(a) as manager:
        assert error_of(lambda: manager.reload([a, ModelConfig("m", base / "broken")], timeout=20)) == (
            "UNKNOWN",
            "1 model(s) did not become available: "
            "{{{name: m version: 3} due to error: NOT_FOUND: Could not find SavedModel .pb or .pbtxt}, }",
        )
        assert borrowed(manager, "a") == 2
        code, _ = error_of(lambda: manager.reload([a, ModelConfig("e", base / "empty")], timeout=0.05))
        assert code == "DEADLINE_EXCEEDED"


PLATFORM = 'model_platform: "tensorflow"'


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (PLATFORM, VersionPolicy.latest()),
        ("model_type: TENSORFLOW", VersionPolicy.latest()),
        (f"{PLATFORM} model_version_policy {{ latest {{ }} }}", VersionPolicy.latest(1)),
        (f"{PLATFORM} model_version_policy {{ latest {{ num_versions: 3 }} }}", VersionPolicy.latest(3)),
        (f"{PLATFORM} model_version_policy {{ all {{ }} }}", VersionPolicy.all_versions()),
        (f"{PLATFORM} model_version_policy {{ specific {{ versions: [4, 5] }} }}", VersionPolicy.specific(4, 5)),
        (f"{PLATFORM} model_version_policy {{ specific {{ }} }}", VersionPolicy.specific()),
    ],
)
def test_the_policies_are_those_of_tf_serving(text, policy):
    (config,) = configs_from_proto(
        parse_models(f'model_config_list {{ config {{ name: "a" base_path: "/m" {text} }} }}')
    )
    assert config == ModelConfig("a", "/m", policy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Illegal setting neither ModelServerConfig::model_type (deprecated) nor"),
        (f"{PLATFORM} model_type: TENSORFLOW", "Illegal setting both ModelServerConfig::model_type (deprecated) and"),
        ("model_type: OTHER", "ModelServerConfig::model_type choice 2 not supported."),
        ('model_platform: "pytorch"', "Model a requests unsupported platform pytorch"),
    ],
)
def test_a_model_of_another_platform_is_rejected(text, message):
    config = parse_models(f'model_config_list {{ config {{ name: "a" base_path: "/m" {text} }} }}')
    code, received = error_of(lambda: configs_from_proto(config))
    assert (code, message in received) == ("INVALID_ARGUMENT", True)


def reload_by_grpc(manager, text, enabled=True):
    """Send HandleReloadConfigRequest in text format; return its response."""
    from tensorflow_serving.apis import model_management_pb2

    servicer = PredictionServicer(manager, Limits(), Metrics(), enabled)
    method = servicer.methods()["tensorflow.serving.ModelService"]["HandleReloadConfigRequest"]
    request = text_format.Parse(text, model_management_pb2.ReloadConfigRequest())
    return model_management_pb2.ReloadConfigResponse.FromString(method(request.SerializeToString(), 20))


def test_clients_replace_the_models_only_if_that_is_enabled(base):
    entry = f'name: "b" base_path: "{base / "b"}" {PLATFORM} version_labels {{ key: "stable" value: 7 }}'
    request = f"config {{ model_config_list {{ config {{ {entry} }} }} }}"
    with managed(ModelConfig("a", base / "a"), allow_labels=True) as manager:
        code, message = error_of(lambda: reload_by_grpc(manager, request, enabled=False))
        assert (code, "--enable-reload-config enables it" in message) == ("PERMISSION_DENIED", True)
        assert manager.names() == ["a"]
        response = reload_by_grpc(manager, f'{request} metric_names: "/tensorflow/serving/request_count"')
        assert response.status.error_code == 0
        assert [(metric.name, metric.int64_value_increase) for metric in response.metric] == [
            ("/tensorflow/serving/request_count", 0)
        ]
        assert borrowed(manager, "b", "stable") == 7


@pytest.mark.parametrize("request_text", ["", "config { }", "config { custom_model_config { } }"])
def test_a_request_without_a_list_of_models_is_rejected(base, request_text):
    with managed(ModelConfig("a", base / "a")) as manager:
        code, message = error_of(lambda: reload_by_grpc(manager, request_text))
    assert (code, "Only ModelConfigList is currently supported" in message) == ("INVALID_ARGUMENT", True)


def test_a_file_is_read_again_and_a_broken_one_changes_nothing(half_plus_two, tmp_path, caplog):
    shutil.copytree(half_plus_two, tmp_path / "half")
    file = tmp_path / "models.config"

    def write(*names, labels=""):
        entries = (
            f'config {{ name: "{name}" base_path: "{tmp_path / "half"}" {PLATFORM} {labels} }}' for name in names
        )
        file.write_text(f"model_config_list {{ {' '.join(entries)} }}")

    write("one")
    options = ServerOptions(
        rest_port=0,
        grpc_port=None,
        manager_options=ManagerOptions(0.05),
        model_config_file=file,
        model_config_poll_seconds=0.05,
    )
    with LocalServer(read_config_file(file), options) as server:
        manager = server.manager
        assert borrowed(manager, "one") == 123
        for text in ("model_config_list {", "", '\xff model_config_list { config { name: "x" } }'):
            caplog.clear()
            file.write_text(text, encoding="latin-1")
            time.sleep(0.15)
            assert (manager.names(), borrowed(manager, "one")) == (["one"], 123)
            assert caplog.text.count("is not reloaded, and the models before are served") == (text != "")
        write("one", "two", labels='version_labels { key: "stable" value: 123 }')
        time.sleep(0.15)
        assert "Request to assign label to version 123 of model two" in caplog.text  # two steps, as TF Serving
        assert manager.names() == ["one"]
        write("one", "two")
        wait_for(lambda: manager.names() == ["one", "two"])
        write("one", "two", labels='version_labels { key: "stable" value: 123 }')
        wait_for(lambda: manager.configs()[1].labels == {"stable": 123})
        assert borrowed(manager, "two", "stable") == 123


def test_mistakes_that_tf_serving_accepts_are_logged(tmp_path, caplog):
    file = tmp_path / "models.config"
    label = 'version_labels { key: "s" value: 4 }'
    file.write_text(f'model_config_list {{ config {{ name: "a" base_path: "/m" {PLATFORM} {label} }} }}')
    assert [config.labels for config in read_config_file(file)] == [{"s": 4}]
    assert "labels require the policy `specific`" in caplog.text


@pytest.mark.parametrize("content", [b"\xff", b"model_config_list {"])
def test_a_file_that_cannot_be_read_is_reported(tmp_path, content):
    (tmp_path / "models.config").write_bytes(content)
    with pytest.raises(CommitteeError, match=r"models\.config"):
        read_config_file(tmp_path / "models.config")
    with pytest.raises(CommitteeError, match=r"cannot read .*nowhere"):
        read_config_file(tmp_path / "nowhere")
