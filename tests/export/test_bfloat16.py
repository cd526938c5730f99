"""Exports in bfloat16: what computes in it, how it is verified, and when it is published."""

import importlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from committees import SHAPE, choose, small_member, stir

from keras_committee import models
from keras_committee.cli import main
from keras_committee.data import Split
from keras_committee.data.images import InMemoryImages
from keras_committee.export import accuracy_loss, export
from keras_committee.export.accuracy_loss import AccuracyCheck, AccuracyLossError
from keras_committee.export.export import publish_committee
from keras_committee.export.inference_model import InferenceModel
from keras_committee.export.layer_precision import computing_in_bfloat16
from keras_committee.export.publish import taken_versions
from keras_committee.models import log_probabilities
from keras_committee.precision import Device

NO_BFLOAT16 = Device(True, False, "the CPU has neither AMX nor AVX512_BF16")


def trace(model):
    network = InferenceModel(model, "member", "bfloat16")
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)
    return tf.function(network.__call__, input_signature=[spec], autograph=False).get_concrete_function()


def assert_rounds_like_keras(model, images):
    """The export in bfloat16 is as close to float32 as Keras in the same precision; returns its operations."""
    function, batch = trace(model), images.astype(np.float32)
    exact = keras.ops.convert_to_numpy(model(batch, training=False))
    with computing_in_bfloat16([model]):
        in_keras = keras.ops.convert_to_numpy(keras.ops.cast(model(batch, training=False), "float32"))
    keras_error = np.abs(in_keras - exact).max()
    assert 0 < np.abs(function(tf.constant(batch)) - exact).max() < 4 * keras_error
    return function.graph.get_operations()


def test_convolutions_compute_in_bfloat16_and_the_logits_in_float32():
    model = models.wide_resnet(10, 1, classes=4, image_shape=(8, 8, 3))
    stir(model, 5)
    operations = assert_rounds_like_keras(model, np.random.default_rng(5).integers(0, 256, (3, 8, 8, 3)))
    dtypes = {(op.type, op.outputs[0].dtype.name) for op in operations if op.outputs}
    assert {pair for pair in dtypes if pair[0] in ("Conv2D", "BiasAdd", "Relu", "MatMul", "Mean")} == {
        ("Conv2D", "bfloat16"), ("BiasAdd", "bfloat16"), ("Relu", "bfloat16"),
        ("MatMul", "float32"), ("BiasAdd", "float32"), ("Mean", "float32"),
    }  # fmt: skip
    assert [op.type for op in operations].count("Cast") == 2  # before the first convolution and behind the last
    weights = [op.outputs[0].dtype.name for op in operations if op.type == "ReadVariableOp"]
    assert weights.count("bfloat16") == len(weights) - 2


def test_layers_of_every_kind_compute_the_outputs_of_keras():
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.BatchNormalization()(keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(x))
    x = keras.layers.ReLU(negative_slope=0.2)(keras.layers.BatchNormalization(axis=1)(x))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="silu")(x)
    x = keras.layers.MaxPooling2D(2)(keras.layers.Add()([x, keras.layers.Conv2D(4, 1)(x)]))
    x = x + keras.layers.SeparableConv2D(4, 3, padding="same")(x)
    x = keras.layers.Concatenate()([x, keras.layers.LayerNormalization()(x)])
    x = keras.layers.Dense(6, activation="relu")(keras.layers.Flatten()(x))
    model = keras.Model(image, keras.layers.Activation("linear")(keras.layers.Dense(3)(x)))
    stir(model, 3)
    operations = assert_rounds_like_keras(model, np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3)))
    assert [op.outputs[0].dtype.name for op in operations if op.type == "MatMul"] == ["bfloat16", "float32"]


@pytest.fixture(scope="module")
def members():
    return [small_member(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def validation(members):
    """2,000 images, whose labels are what the first member predicts."""
    coarse = np.random.default_rng(8).integers(0, 256, (2000, 2, 3, 3)).astype(np.uint8)
    images = coarse.repeat(4, axis=1).repeat(2, axis=2)
    labels = log_probabilities(members[0], [images.astype(np.float32)]).argmax(-1).astype(np.int32)
    return Split(images=InMemoryImages(images), labels=labels)


@pytest.mark.slow
@pytest.mark.usefixtures("verified_here")
def test_a_cascade_is_published_with_its_loss_and_changed_stops(members, validation, tmp_path):
    cascade = choose(2, thresholds=[0.6])
    check = AccuracyCheck(split=validation, source="runs/small", max_drop=2.0)
    version = publish_committee(
        cascade, members, tmp_path / "small", accuracy_check=check, precision_reason="requested"
    )
    manifest = json.loads((version / "committee.json").read_text())
    accuracy = manifest["precision"]["accuracy"]
    assert manifest["precision"]["compute"] == "bfloat16"
    assert "amx_bf16" in manifest["precision"]["hardware"]
    assert accuracy["examples"] == 2000
    assert accuracy["drop"]["value"] == pytest.approx(100 * (accuracy["float32_accuracy"] - accuracy["accuracy"]))
    assert accuracy["drop"]["low"] <= accuracy["drop"]["value"] < accuracy["drop"]["high"] < 2.0
    assert 0 <= accuracy["stops_changed"] < 0.05
    stored = tf.train.load_checkpoint(str(version / "variables" / "variables")).get_variable_to_dtype_map().values()
    assert [dtype for dtype in stored if dtype == tf.bfloat16] == [tf.bfloat16] * 4  # a kernel and a bias of each


@pytest.mark.slow
@pytest.mark.usefixtures("verified_here")
def test_an_export_with_other_outputs_is_not_published(members, validation, tmp_path, monkeypatch):
    save = export.save_committee

    def perturbed(selection, models, *rest):
        models[1].layers[-1].bias.assign_add([0.0, 0.2, 0.0])
        signatures = save(selection, models, *rest)
        models[1].layers[-1].bias.assign_sub([0.0, 0.2, 0.0])
        return signatures

    monkeypatch.setattr(export, "save_committee", perturbed)
    check = AccuracyCheck(split=validation, source="runs/small", max_drop=2.0)
    with pytest.raises(export.ExportError, match="predict_uint8: probabilities differs by"):
        publish_committee(choose(2), members, tmp_path / "small", accuracy_check=check)
    assert taken_versions(tmp_path / "small") == []


def predictions(exact, rounded, labels):
    """Member predictions by their classes `(examples, members)`, almost certain."""
    exact, rounded = (np.log(np.eye(3, dtype=np.float32)[np.transpose(each)] + 1e-3) for each in (exact, rounded))
    class_id = rounded.mean(1).argmax(-1)
    return accuracy_loss._Predictions(np.array(labels), exact, rounded, class_id, np.full(len(labels), 2))


def check_predicted(monkeypatch, predicted, max_drop=0.2):
    monkeypatch.setattr(accuracy_loss, "_predict", lambda *_: predicted)
    check = AccuracyCheck(split=None, source="runs/small", max_drop=max_drop)
    return accuracy_loss.check_accuracy(None, choose(2), [], [], SHAPE[:2], check)


def test_a_loss_of_accuracy_is_refused_with_its_interval_and_the_member_that_causes_it(monkeypatch):
    exact = np.zeros((2, 5000), int)
    rounded = exact.copy()
    rounded[1, :100] = 1
    exact_first, labels = exact.copy(), np.zeros(5000, int)
    predicted = predictions(exact_first, rounded, labels)
    predicted.class_id[:100] = 1
    with pytest.raises(AccuracyLossError) as caught:
        check_predicted(monkeypatch, predicted)
    message = str(caught.value)
    assert "the committee loses 2.00 points of accuracy on the 5,000 validation images of runs/small" in message
    assert "(95 % interval 1.6" in message
    assert "Member 1 of run (m1) causes the most: alone it loses 2.00 points" in message
    assert message.endswith("or allow this loss: --max-accuracy-drop 2.5.")


def test_few_images_are_refused_with_the_number_that_would_do(monkeypatch):
    same = np.zeros((2, 50), int)
    with pytest.raises(AccuracyLossError, match=r"too few to exclude one. About 1,84\d validation images would do"):
        check_predicted(monkeypatch, predictions(same, same, np.zeros(50, int)))


@pytest.mark.slow
@pytest.mark.usefixtures("verified_here")
def test_the_command_refuses_few_images_and_auto_then_exports_float32(trained, tmp_path, capsys, monkeypatch):
    run, _ = trained
    out = tmp_path / "tiny"
    assert main(["export", str(run.path), "--out", str(out), "--precision", "bfloat16"]) == 8
    assert "validation images would do" in capsys.readouterr().err
    assert taken_versions(out) == []
    monkeypatch.setattr(export, "training_device", lambda: NO_BFLOAT16)
    assert main(["export", str(run.path), "--out", str(out), "--precision", "auto"]) == 0
    assert "Computes in float32: the CPU has neither AMX nor AVX512_BF16." in capsys.readouterr().out


def test_auto_is_float32_where_bfloat16_loses_too_much(monkeypatch):
    monkeypatch.setattr(export, "training_device", lambda: Device(True, True, "the CPU has AMX"))

    def publish(accuracy_check=None, precision_reason=""):
        if accuracy_check:
            raise AccuracyLossError("in bfloat16 the committee loses 3 points. Nothing was published.\n  Use float32.")
        return precision_reason

    assert export._publish_in_precision("auto", lambda: "check", publish) == "in bfloat16 the committee loses 3 points"


def test_a_server_without_matrix_units_for_bfloat16_prints_a_warning(tmp_path, capsys, monkeypatch):
    serve = importlib.import_module("keras_committee.cli.serve")  # the package has the command of this name
    (tmp_path / "2").mkdir()
    precision = {"compute": "bfloat16", "hardware": "a CPU with AMX or AVX512_BF16"}
    (tmp_path / "2" / "committee.json").write_text(json.dumps({"precision": precision}))
    monkeypatch.setattr(serve, "cpu_device", lambda: NO_BFLOAT16)
    monkeypatch.setattr(serve, "tensorflow_device", lambda: NO_BFLOAT16)
    serve._warn_of_slow_precision(tmp_path)
    assert (
        "slow on this machine: the CPU has neither AMX nor AVX512_BF16. It needs a CPU with AMX or AVX512_BF16"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(serve, "cpu_device", lambda: Device(True, True, "the CPU has AMX"))
    serve._warn_of_slow_precision(tmp_path)
    assert capsys.readouterr().err == ""
