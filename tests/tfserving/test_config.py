"""Configuration files of TF Serving: what they contain, which mistakes are found, and the two steps of labels."""

import json
import re

import pytest

from keras_committee import cli
from keras_committee.errors import RecipeError
from keras_committee.tfserving import config
from keras_committee.tfserving.config import (
    BatchingConfig,
    ServedModel,
    ServerConfig,
    render_batching_config,
    write_config,
)

STABLE = ServedModel(name="digits", base_path="/models/digits", versions=(3,), labels={"stable": 3})


def model(text):
    return config.parse_models(f"model_config_list {{ config {{ {text} }} }}")


GOOD = 'name: "a" base_path: "/m" model_platform: "tensorflow"'


def test_the_official_proto_reads_the_config_that_was_written(tmp_path):
    write_config(ServerConfig(models=(STABLE,)), tmp_path)
    (read,) = config.parse_models((tmp_path / "models.labels.config").read_text()).model_config_list.config
    assert (read.name, read.base_path, read.model_platform) == ("digits", "/models/digits", "tensorflow")
    assert list(read.model_version_policy.specific.versions) == [3]
    assert dict(read.version_labels) == {"stable": 3}


def test_the_declared_messages_read_the_config_that_was_written():
    batching = config.parse_batching(
        render_batching_config(
            BatchingConfig(
                allowed_batch_sizes=(2, 7), batch_timeout_micros=0, num_batch_threads=3, max_enqueued_batches=5
            )
        )
    )
    assert (batching.max_batch_size.value, list(batching.allowed_batch_sizes)) == (7, [2, 7])
    assert (batching.num_batch_threads.value, batching.max_enqueued_batches.value) == (3, 5)
    assert batching.HasField("batch_timeout_micros")  # 0 is written, or the server uses its own default


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (config.parse_models, 'model_config_list { config { nam: "a" } }'),
        (config.parse_batching, "max_batch_size: 32"),
        (config.parse_batching, "max_batchsize { value: 32 }"),
        (config.parse_monitoring, 'prometheus_config { enable: "yes" }'),
    ],
)
def test_a_mistyped_file_is_rejected_with_line_and_column(parse, text):
    with pytest.raises(RecipeError, match=r"config is not a valid \w+ in text format: line:column 1:"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD.replace("/m", "models/a"), "base_path must be absolute"),
        (GOOD.replace("/m", "/m/../n"), "must not contain"),
        (GOOD.replace("tensorflow", "pytorch"), "model_platform must be 'tensorflow'"),
        (GOOD.replace('"a"', '".a"'), "no leading dot"),
        (GOOD.replace('"a"', '"a/b"'), "name must be 1 to 128"),
        (f"{GOOD} }} config {{ {GOOD}", "two models are named 'a'"),
        (f"{GOOD} model_version_policy {{ specific {{ }} }}", "names no version"),
        (f"{GOOD} model_version_policy {{ specific {{ versions: 3 versions: 3 }} }}", "must be distinct"),
        (f"{GOOD} model_version_policy {{ latest {{ }} }}", "num_versions of policy `latest` must be at least 1"),
        (f'{GOOD} version_labels {{ key: "s" value: 3 }}', "labels require the policy `specific`"),
        (
            f'{GOOD} model_version_policy {{ specific {{ versions: 3 }} }} version_labels {{ key: "s" value: 4 }}',
            r"label 's' names version 4, which is not loaded. Loaded versions: \[3\]",
        ),
        (
            f'{GOOD} model_version_policy {{ all {{ }} }} version_labels {{ key: "s/t" value: 4 }}',
            "label 's/t' must be 1 to 128",
        ),
    ],
)
def test_each_mistake_in_models_config_is_found(text, problem):
    (found,) = config.lint_models(model(text))
    assert re.search(problem, found)


def test_a_server_without_models_is_rejected():
    with pytest.raises(RecipeError, match="it lists no models"):
        ServerConfig(models=()).render()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 2",
            "the last of allowed_batch_sizes must equal max_batch_size, 8. Received: 2",
        ),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [9, 8]", "increasing"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [0, 8]", "must be positive"),
        ("max_batch_size { value: 0 }", "max_batch_size must be at least 1. Received: 0"),
        ("max_batch_size { value: 8 } num_batch_threads { value: 0 }", "num_batch_threads must be at least 1"),
        (
            "max_batch_size { value: 8 } batch_timeout_micros { value: -1 }",
            "batch_timeout_micros must be at least 0. Received: -1",
        ),
        ("num_batch_threads { value: 2 }", "max_batch_size is missing"),
        ("max_batch_size { value: 8 } max_execution_batch_size { value: 4 }", "requires enable_large_batch_splitting"),
        (
            "max_batch_size { value: 8 } max_execution_batch_size { value: 4 }"
            "enable_large_batch_splitting { value: true } allowed_batch_sizes: 8",
            "must equal max_execution_batch_size, 4. Received: 8",
        ),
    ],
)
def test_each_mistake_in_batching_config_is_found(text, problem):
    (found,) = config.lint_batching(config.parse_batching(text))
    assert problem in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('prometheus_config { path: "/metrics" }', "not enabled"),
        ('prometheus_config { enable: true path: "metrics" }', "must start with /"),
    ],
)
def test_each_mistake_in_monitoring_config_is_found(text, problem):
    (found,) = config.lint_monitoring(config.parse_monitoring(text))
    assert problem in found


def read(folder, name):
    (found,) = config.parse_models((folder / name).read_text()).model_config_list.config
    return sorted(found.model_version_policy.specific.versions), dict(found.version_labels)


def test_a_label_that_moves_takes_two_steps_and_is_never_without_a_version(tmp_path):
    write_config(ServerConfig(models=(STABLE,)), tmp_path)
    assert read(tmp_path, "models.config") == ([3], {})
    (tmp_path / "models.labels.config").rename(tmp_path / "models.config")
    moved = ServedModel(name="digits", base_path="/models/digits", versions=(4,), labels={"stable": 4})
    write_config(ServerConfig(models=(moved,)), tmp_path)
    assert read(tmp_path, "models.config") == ([3, 4], {"stable": 3})
    assert read(tmp_path, "models.labels.config") == ([4], {"stable": 4})


def test_removing_a_label_takes_one_step_and_removes_an_obsolete_second_step(tmp_path):
    (tmp_path / "models.config").write_text(ServerConfig(models=(STABLE,)).render()["models.config"])
    (tmp_path / "models.labels.config").write_text("left over")
    without = ServedModel(name="digits", base_path="/models/digits", versions=(2,))
    assert len(write_config(ServerConfig(models=(without,)), tmp_path)) == 3
    assert read(tmp_path, "models.config") == ([2], {})
    assert not (tmp_path / "models.labels.config").exists()


def test_the_command_writes_and_rolls_back(tmp_path, capsys):
    for version in ("3", "4"):
        (tmp_path / "digits" / version).mkdir(parents=True)
    out = tmp_path / "out"
    words = ["serving-config", str(tmp_path / "digits"), "--out", str(out), "--base-path", "/models/digits", "--json"]
    assert cli.main([*words, "--versions", "3", "--batch-sizes", "1,4"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    assert read(out, "models.config") == ([3], {})
    text = (out / "batching.config").read_text()
    assert config.parse_batching(text).max_batch_size.value == 4


def test_the_base_path_may_be_a_symbolic_link_that_is_kept(tmp_path, capsys):
    (tmp_path / "digits-2026" / "3").mkdir(parents=True)
    (tmp_path / "digits").symlink_to("digits-2026")
    (tmp_path / "x").mkdir()
    assert cli.main(["serving-config", str(tmp_path / "x" / ".." / "digits"), "--out", str(tmp_path / "out")]) == 0
    (written,) = config.parse_models((tmp_path / "out" / "models.config").read_text()).model_config_list.config
    assert (written.name, written.base_path) == ("digits", str(tmp_path / "digits"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--versions", "5"], "has no version 5"),
        (["--version-label", "stable"], "--version-label must be"),
        (["--version-label", "stable=4"], "has no version 4"),
        (["--versions", "3", "--version-label", "a b=3"], "label 'a b' must be 1 to 128"),
        (["--batch-sizes", "8,1"], "must be positive and increasing"),
        (["--base-path", "models/digits"], "base_path must be absolute"),
    ],
)
def test_the_command_rejects_a_mistake_and_writes_nothing(tmp_path, capsys, words, message):
    (tmp_path / "digits" / "3").mkdir(parents=True)
    assert cli.main(["serving-config", str(tmp_path / "digits"), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
