"""What happens where an export must not be?"""

import dataclasses
import json
import shutil
import threading
import time
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from committees import SHAPE, choose, small_member

from keras_committee.cli import main
from keras_committee.data import center_crop, resize
from keras_committee.errors import ExportError, IncompleteError, ResourceError
from keras_committee.export import export, verify
from keras_committee.export import export as exporting
from keras_committee.export.export import publish_committee
from keras_committee.export.export_members import all_members, image_shape, load_exportable, resolve_transforms
from keras_committee.export.publish import publish, staging, taken_versions
from keras_committee.layers import WeightedGeometricMean
from keras_committee.run import Run
from keras_committee.tfserving.session import Session

pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture
def members():
    return [small_member(seed) for seed in range(2)]


def test_D04_an_export_that_answers_otherwise_is_not_published(members, tmp_path, monkeypatch):
    save = exporting.save_committee

    def perturbed(selection, models, *rest):
        models[1].layers[-1].bias.assign_add([0.0, 3e-4, 0.0])
        signatures = save(selection, models, *rest)
        models[1].layers[-1].bias.assign_sub([0.0, 3e-4, 0.0])
        return signatures

    monkeypatch.setattr(exporting, "save_committee", perturbed)
    with pytest.raises(ExportError, match=r"probabilities differs by .*e-0[45]; 1e-05 is allowed"):
        publish_committee(choose(2), members, tmp_path / "small")
    assert taken_versions(tmp_path / "small") == []
    assert list((tmp_path / "small").glob(".staging-*")) == []


def test_D05_a_disk_that_is_full_for_tensorflow_publishes_nothing(members, tmp_path, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "variables/variables.data; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        publish_committee(choose(2), members, tmp_path / "small")
    assert caught.value.exit_code == 7
    assert taken_versions(tmp_path / "small") == []


def lambda_member(path):
    image = keras.Input(SHAPE, name="image")
    x = keras.layers.Lambda(lambda x: x / 2, name="sneaky")(image)
    keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x))).save(path)


def gadget_member(path):
    """A `.keras` file whose activation is `os.system`."""
    small_member(0).save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    dense = config["config"]["layers"][-1]["config"]
    dense["name"] = "gadget"
    dense["activation"] = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "config.json": json.dumps(config).encode()}.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(("make", "layer"), [(lambda_member, "sneaky"), (gadget_member, "gadget")])
def test_D20_a_member_that_holds_code_is_refused_by_the_name_of_its_layer(tmp_path, make, layer):
    make(tmp_path / "model.keras")
    with pytest.raises(ExportError, match=f"holds code of whoever wrote it, in layer '{layer}'") as caught:
        load_exportable(tmp_path / "model.keras")
    assert caught.value.exit_code == 8


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


def test_a_device_channels_first_an_unknown_operation_and_other_tags_are_named():
    saved_model = _saved_model()
    problems = "\n".join(export.find_problems(saved_model))
    assert "away is pinned to /device:GPU:0" in problems
    assert "Conv2D with channels first" in problems
    assert "Frobnicate: there is no such operation" in problems
    assert "it has [['gpu', 'serve']]" in problems


def _saved_model():
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel()
    graph = saved_model.meta_graphs.add()
    graph.meta_info_def.tags.extend(["serve", "gpu"])
    graph.graph_def.node.add(name="away", op="Relu", device="/device:GPU:0")
    graph.graph_def.node.add(name="first", op="Conv2D").attr["data_format"].s = b"NCHW"
    graph.graph_def.node.add(name="what", op="Frobnicate")
    return saved_model


def test_the_size_of_the_data_or_of_the_others_holds_for_members_that_leave_it_open(members):
    free = keras.Input((None, None, 3))
    free = keras.Model(free, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(free)))
    assert [each.size for each in resolve_transforms([free, members[0]], [None, None])] == [SHAPE[:2], SHAPE[:2]]
    assert [each.size for each in resolve_transforms([free, members[0]], [None, None], (10, 12))] == [
        (10, 12),
        SHAPE[:2],
    ]
    recorded = {"size": [9, 9], "padding": 3, "method": "bicubic"}
    assert resolve_transforms([free], [recorded]) == [center_crop(9, padding=3, method="bicubic")]
    with pytest.raises(ExportError, match="leave the image size open"):
        resolve_transforms([free], [None])
    with pytest.raises(ExportError, match=r"take images of 8x6. Received: image_size=\(10, 12\)"):
        resolve_transforms(members[:1], [None], (10, 12))
    assert image_shape([free, members[0]], [resize((10, 12)), resize(SHAPE[:2])]) == (10, 12, 3)


def test_export_of_a_run_prints_the_version_and_how_to_try_it(trained, tmp_path, capsys):
    run, recipe = trained
    assert main(["export", str(run.path), "--out", str(tmp_path / "tiny")]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "tiny" / "1") in printed
    assert [line.split()[:2] for line in printed.splitlines()[2:-1]] == [
        ["keras-committee", "predict"],
        ["curl", "-d"],
    ]
    assert printed.endswith(f"\nNext: keras-committee serve {tmp_path / 'tiny'}\n")
    assert run.events()[-1]["event"] == "exported"
    record = json.loads((tmp_path / "tiny" / "1" / "committee.json").read_text())
    assert len(record["members"]) == recipe.members
    assert record["head"] == "geometric_mean"
    assert record["labels"] == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_D02_of_50_publishes_four_loading_readers_see_whole_versions_only(members, tmp_path):
    base = tmp_path / "small"
    first = publish_committee(choose(2), members, base)
    image = {"image": np.full((1, *SHAPE), 77, np.float32)}
    with Session.load(first) as session:
        expected = session.run("", image)["probabilities"]
    done, seen, wrong = threading.Event(), [], []

    def read():
        while not done.is_set():
            version = base / str(max(taken_versions(base)))
            try:
                with Session.load(version) as session:
                    got = session.run("", image)["probabilities"]
                seen.append(version.name)
                wrong.extend([] if np.array_equal(got, expected) else [version.name])
            except ExportError as error:
                wrong.append(f"{version.name}: {error}")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(50):
        loads = len(seen) + len(wrong)
        with staging(base) as folder:
            shutil.copytree(first, folder / "version")
            publish(base, folder / "version")
        while len(seen) + len(wrong) == loads:
            time.sleep(0.01)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert len(set(seen)) > 10
    assert taken_versions(base)[-1] == 51


def test_differences_and_shapes_and_what_is_not_finite_are_told():
    ones = np.ones((2, 3), np.float32)
    assert verify.compare(ones, ones + np.float32(5e-6)) == (pytest.approx(5e-6, rel=0.1), "")
    assert "differs by 2.0e-05" in verify.compare(ones, ones + np.float32(2e-5))[1]
    assert "shape (2, 3) instead of (3, 2)" in verify.compare(ones, ones.T)[1]
    assert "not finite" in verify.compare(ones * np.nan, ones)[1]
    assert "differs in 1 of 2 values" in verify.compare(np.array([1, 2]), np.array([1, 3]))[1]


def test_what_is_there_of_a_weighted_committee_is_exported_in_its_proportions(trained, monkeypatch):
    run, recipe = trained
    weighted = dataclasses.replace(recipe, members=4, head=WeightedGeometricMean((0.1, 0.2, 0.3, 0.4)))
    monkeypatch.setattr(Run, "recipe", lambda run: weighted)
    with pytest.raises(IncompleteError, match=r"has 3 of 4 members; not trained yet: 3[\s\S]*--allow-incomplete 3"):
        all_members([run])
    selection, models, _ = all_members([run], min_members=3)
    assert len(models) == len(selection.members) == 3
    assert selection.weights == pytest.approx((1 / 6, 2 / 6, 3 / 6))
