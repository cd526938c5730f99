"""Does an export, in a folder or behind a URL, answer pictures by name?"""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_committee import cli
from keras_committee.export import predict
from keras_committee.tfserving.tf_protocol import StatusError


class Brightness(tf.Module):
    """Says "dark" or "bright" by the mean pixel, and "none" never."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def predict_bytes(self, image_bytes):
        valid = tf.strings.length(image_bytes) > 100  # "damaged" is what is short here
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
    """A model folder with two versions, of which the newer has another opinion, and two pictures."""
    folder = tmp_path_factory.mktemp("brightness")
    module = Brightness()
    both = {"predict_bytes": module.predict_bytes, "classify": module.classify}
    tf.saved_model.save(module, str(folder / "9"), signatures={"predict_bytes": module.predict_bytes})
    tf.saved_model.save(module, str(folder / "10"), signatures=both)
    (folder / "dark.png").write_bytes(PNG)
    (folder / "bright.png").write_bytes(png(230))
    (folder / "cut.png").write_bytes(PNG[:90])
    return folder


def answers(capsys, *words):
    code = cli.main(["predict", *map(str, words), "--top", "2", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_the_newest_version_answers_with_the_names_of_its_classes(export, capsys):
    code, document, _ = answers(capsys, export, export / "dark.png", export / "bright.png")
    assert code == 0
    tops = [[best["class"] for best in each["top"]] for each in document["answers"]]
    assert tops == [["dark", "none"], ["bright", "dark"]]
    first = document["answers"][0]
    assert (first["members_used"], first["agreement"]) == (2, None)
    assert first["confidence"] == pytest.approx(first["mutual_information"] / 0.2)


def test_one_version_may_be_named_and_without_names_there_are_numbers(export, capsys):
    _, document, _ = answers(capsys, export / "9", export / "bright.png")
    assert [best["class"] for best in document["answers"][0]["top"]] == ["class 2", "class 0"]


def test_a_picture_that_the_model_cannot_decode_is_named_and_the_other_answered(export, capsys):
    code, document, err = answers(capsys, export, export / "cut.png", export / "bright.png")
    assert code == 3
    assert [each["image"] for each in document["answers"]] == [str(export / "bright.png")]
    assert f"{export}/cut.png: damaged or cut off, it cannot be decoded" in err


def test_a_url_asks_the_server(export, capsys, monkeypatch):
    asked = []

    class Server:
        def __init__(self, url):
            asked.append(url)

        def predict(self, inputs, *, signature):
            asked.append((signature, list(inputs)))
            return session.run(signature, inputs)

    session = predict.load_session(export / "10")
    monkeypatch.setattr(predict, "Client", Server)
    _, document, _ = answers(capsys, export / "dark.png", "--url", "grpc://localhost:8500/brightness")
    assert document["source"] == asked[0] == "grpc://localhost:8500/brightness"
    assert asked[1:] == [("predict_bytes", ["image_bytes"]), ("classify", ["inputs"])]
    assert document["answers"][0]["top"][0]["class"] == "dark"


def test_an_export_takes_no_selection(export, capsys):
    assert cli.main(["predict", str(export), "a.png", "--selection", "s.json"]) == 2
    assert "is an exported committee: --selection and --allow-incomplete are those of a run" in capsys.readouterr().err


def test_a_model_that_is_no_committee_is_told(half_plus_two, export, capsys):
    assert cli.main(["predict", str(half_plus_two), str(export / "dark.png")]) == 8
    assert "predict_bytes" in capsys.readouterr().err


def test_another_failure_than_a_missing_signature_is_not_hidden():
    def fail(signature, inputs):
        raise StatusError("UNAVAILABLE", "the server is gone")

    with pytest.raises(StatusError, match="the server is gone"):
        predict.ExportedCommittee(fail, "here").class_names(b"x", 3)
