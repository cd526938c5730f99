"""Checks before an export is published, and the output of the command."""

import json
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from committees import choose, small_member

from keras_committee.cli import main
from keras_committee.errors import ExportError, ResourceError
from keras_committee.export import export
from keras_committee.export.export import publish_committee
from keras_committee.export.predict import ExportedCommittee
from keras_committee.export.publish import taken_versions

pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture
def members():
    return [small_member(seed) for seed in range(2)]


def test_D04_an_export_with_other_outputs_is_not_published(members, tmp_path, monkeypatch):
    save = export.save_committee

    def perturbed(selection, models, *rest):
        models[1].layers[-1].bias.assign_add([0.0, 3e-4, 0.0])
        signatures = save(selection, models, *rest)
        models[1].layers[-1].bias.assign_sub([0.0, 3e-4, 0.0])
        return signatures

    monkeypatch.setattr(export, "save_committee", perturbed)
    with pytest.raises(ExportError, match=r"probabilities differs by .*e-0[45]; the tolerance is 1e-05"):
        publish_committee(choose(2), members, tmp_path / "small")
    assert taken_versions(tmp_path / "small") == []
    assert list((tmp_path / "small").glob(".staging-*")) == []


def test_D05_a_full_disk_reported_by_tensorflow_publishes_nothing(members, tmp_path, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "variables/variables.data; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        publish_committee(choose(2), members, tmp_path / "small")
    assert caught.value.exit_code == 7
    assert taken_versions(tmp_path / "small") == []


@pytest.mark.parametrize(
    ("name", "make", "problem"),
    [
        ("python", lambda x: tf.numpy_function(np.negative, [x], tf.float32), "PyFunc: Python runs only"),
        ("xla", tf.function(lambda x: x * 2, jit_compile=True), "jit_compile=True: XLA is off"),
        ("files", lambda x: tf.strings.to_number(tf.io.read_file("/etc/hostname")) * x, "ReadFile: a request could"),
    ],
)
def test_operations_that_a_server_does_not_run_are_named(tmp_path, name, make, problem):
    spec = tf.TensorSpec((None,), tf.float32, name="x")
    tf.saved_model.save(tf.Module(), str(tmp_path), signatures=tf.function(make, input_signature=[spec]))
    with pytest.raises(ExportError, match=problem):
        export.check_ops(tmp_path)


def test_devices_channels_first_unknown_operations_and_other_tags_are_named():
    saved_model = _saved_model()
    problems = "\n".join(export.find_problems(saved_model))
    assert "pinned is pinned to /device:GPU:0" in problems
    assert "Conv2D with channels first" in problems
    assert "Frobnicate: TensorFlow has no such operation" in problems
    assert "Received: [['gpu', 'serve']]" in problems


def _saved_model():
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel()
    graph = saved_model.meta_graphs.add()
    graph.meta_info_def.tags.extend(["serve", "gpu"])
    graph.graph_def.node.add(name="pinned", op="Relu", device="/device:GPU:0")
    graph.graph_def.node.add(name="first", op="Conv2D").attr["data_format"].s = b"NCHW"
    graph.graph_def.node.add(name="what", op="Frobnicate")
    return saved_model


def test_export_of_a_run_prints_the_version_and_how_to_try_it(trained, tmp_path, capsys):
    run, recipe = trained
    assert main(["export", str(run.path), "--out", str(tmp_path / "tiny")]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "tiny" / "1") in printed
    lines = printed.splitlines()
    assert lines[3].split()[:2] == ["keras-committee", "predict"]
    request = "\n".join(lines[4:6]).removesuffix("|")  # and curl, which sends it
    (tmp_path / "IMAGE").write_bytes(b"jpeg")
    document = json.loads(subprocess.check_output(["bash", "-c", request], cwd=tmp_path))
    assert document == {"signature_name": "predict_bytes", "instances": [{"b64": "anBlZw=="}]}
    assert lines[6].split()[:3] == ["curl", "-d", "@-"]
    assert printed.endswith(f"\nNext: keras-committee serve {tmp_path / 'tiny'}\n")
    assert run.events()[-1]["event"] == "exported"
    manifest = json.loads((tmp_path / "tiny" / "1" / "committee.json").read_text())
    assert len(manifest["members"]) == recipe.members
    assert manifest["head"] == "geometric_mean"
    assert manifest["labels"] == [str(digit) for digit in range(10)]


def test_A21_a_flipped_bit_of_the_graph_or_of_the_manifest_is_refused(members, tmp_path):
    version = publish_committee(choose(2), members, tmp_path / "small")
    ExportedCommittee.from_folder(version)
    for name in ("saved_model.pb", "committee.json"):
        content = (version / name).read_bytes()
        (version / name).write_bytes(content.replace(b"cicada", b"cibada"))
        with pytest.raises(ExportError, match=rf"{name} is damaged: its .*\n  Export again"):
            ExportedCommittee.from_folder(version)
