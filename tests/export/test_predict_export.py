"""Predictions of an export for image files, from its folder or through a server."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_committee import cli
from keras_committee.errors import ExportError
from keras_committee.export import predict
from keras_committee.tfserving.tf_protocol import StatusError


class Brightness(tf.Module):
    """A model that predicts "dark" or "bright" from the mean pixel, and "none" with probability 0.1."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def predict_bytes(self, image_bytes):
        valid = tf.strings.length(image_bytes) > 100  # short contents count as damaged
        means = tf.map_fn(self._mean, tf.where(valid, image_bytes, PNG), fn_output_signature=tf.float32)
        return {
            "probabilities": tf.stack([0.9 - 0.8 * means, 0.1 * tf.ones_like(means), 0.8 * means], axis=1),
            "confidence": means,
            "mutual_information": 0.2 * means,
            "members_used": tf.fill(tf.shape(means), 2),
            "valid": valid,
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        tf.io.parse_example(inputs, {"image/encoded": tf.io.FixedLenFeature([], tf.string)})
        return {"classes": tf.tile([["dark", "none", "bright"]], [tf.size(inputs), 1])}

    def _mean(self, content):
        return tf.reduce_mean(tf.cast(tf.io.decode_png(content, channels=3), tf.float32)) / 255.0


def png(value):
    content = io.BytesIO()
    noise = np.random.default_rng(1).integers(-9, 9, (8, 8, 3))
    Image.fromarray((value + noise).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


PNG = png(20)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A model folder with two versions, of which only the newer has class names, and three image files."""
    folder = tmp_path_factory.mktemp("brightness")
    module = Brightness()
    both = {"predict_bytes": module.predict_bytes, "classify": module.classify}
    tf.saved_model.save(module, str(folder / "9"), signatures={"predict_bytes": module.predict_bytes})
    tf.saved_model.save(module, str(folder / "10"), signatures=both)
    (folder / "dark.png").write_bytes(PNG)
    (folder / "bright.png").write_bytes(png(230))
    (folder / "cut.png").write_bytes(PNG[:90])
    return folder


def predictions(capsys, *arguments):
    code = cli.main(["predict", *map(str, arguments), "--top", "2", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_the_newest_version_predicts_with_class_names(export, capsys):
    code, document, _ = predictions(capsys, export, export / "dark.png", export / "bright.png")
    assert code == 0
    tops = [[top["class"] for top in prediction["top"]] for prediction in document["predictions"]]
    assert tops == [["dark", "none"], ["bright", "dark"]]
    first = document["predictions"][0]
    assert (first["members_used"], first["agreement"]) == (2, None)
    assert first["confidence"] == pytest.approx(first["mutual_information"] / 0.2)


def test_a_version_can_be_given_and_classes_without_names_have_numbers(export, capsys):
    _, document, _ = predictions(capsys, export / "9", export / "bright.png")
    assert [best["class"] for best in document["predictions"][0]["top"]] == ["class 2", "class 0"]


def test_an_image_that_cannot_be_decoded_is_reported_and_the_other_predicted(export, capsys):
    code, document, err = predictions(capsys, export, export / "cut.png", export / "bright.png")
    assert code == 3
    assert [prediction["image"] for prediction in document["predictions"]] == [str(export / "bright.png")]
    assert f"{export}/cut.png: damaged or cut off, it cannot be decoded" in err


def test_a_url_sends_requests_to_the_server(export, capsys, monkeypatch):
    calls = []

    class Server:
        def __init__(self, url, **timeouts):
            calls.append((url, timeouts))

        def predict(self, inputs, *, signature):
            calls.append((signature, list(inputs)))
            return session.run(signature, inputs)

    session = predict.load_session(export / "10")
    monkeypatch.setattr(predict, "Client", Server)
    _, document, _ = predictions(capsys, export / "dark.png", "--url", "grpc://localhost:8500/brightness")
    assert document["source"] == "grpc://localhost:8500/brightness"
    assert calls.pop(0) == (document["source"], {"timeout": 30.0, "connect_timeout": 5.0})
    assert calls == [("predict_bytes", ["image_bytes"]), ("classify", ["inputs"])]
    calls.clear()
    predictions(capsys, export / "dark.png", "--url", "grpc://localhost:8500/brightness", "--timeout", "70")
    assert calls[0][1] == {"timeout": 70.0, "connect_timeout": 70.0}
    assert document["predictions"][0]["top"][0]["class"] == "dark"


def test_an_export_accepts_no_selection(export, capsys):
    assert cli.main(["predict", str(export), "a.png", "--selection", "s.json"]) == 2
    assert "is an exported committee; --selection and --allow-incomplete apply to runs only" in capsys.readouterr().err


def test_a_model_without_the_signature_is_rejected(export, tmp_path, capsys):
    tf.saved_model.save(Brightness(), str(tmp_path / "1"), signatures={"classify": Brightness().classify})
    assert cli.main(["predict", str(tmp_path), str(export / "dark.png")]) == 8
    assert '"predict_bytes" not found' in capsys.readouterr().err


def test_a_model_with_other_outputs_is_rejected():
    with pytest.raises(ExportError, match=r"here was not exported by .* does not return probabilities, confidence,"):
        predict.ExportedCommittee(lambda signature, inputs: {"valid": np.ones(1)}, "here").predict([b"x"])


def test_a_folder_without_versions_is_rejected(tmp_path):
    with pytest.raises(ExportError, match=r"contains no version.*`keras-committee export RUN`"):
        predict.ExportedCommittee.from_folder(tmp_path)


def test_other_errors_than_a_missing_signature_are_raised():
    def fail(signature, inputs):
        raise StatusError("UNAVAILABLE", "the server is gone")

    with pytest.raises(StatusError, match="the server is gone"):
        predict.ExportedCommittee(fail, "here").class_names(b"x", 3)
