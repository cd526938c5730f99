"""Each member of an export receives the pixels, at its own size and transform, that its predictions are defined on."""

import json

import numpy as np
import pytest
import tensorflow as tf
from committees import choose, dense, small_member

from keras_committee.data import center_crop, decode_image, resize
from keras_committee.export import committee_graph
from keras_committee.export.export import publish_committee
from keras_committee.export.inference_model import InferenceModel
from keras_committee.models import Cascade, log_probabilities
from keras_committee.tfserving.session import Session

SMALL, LARGE = (8, 6), (14, 12)
TRANSFORMS = (resize(SMALL), center_crop(LARGE, padding=6), center_crop(SMALL, padding=3, method="bicubic"))
TEMPERATURES = [0.7, 1.0, 1.4]


@pytest.fixture(scope="module")
def members():
    return [small_member(seed, (*transform.size, 3)) for seed, transform in enumerate(TRANSFORMS)]


@pytest.fixture(scope="module")
def contents():
    """Encoded images of different sizes, none of them that of a member; every other a JPEG."""
    draw = np.random.default_rng(8)
    coarse = [draw.integers(0, 256, (3, 4, 3)).astype(np.uint8) for _ in range(30)]
    large = [image.repeat(7 + index % 3, axis=0).repeat(9, axis=1) for index, image in enumerate(coarse)]
    encoders = (tf.io.encode_jpeg, tf.io.encode_png)
    return np.array([encoders[index % 2](image).numpy() for index, image in enumerate(large)], object)


@pytest.fixture(scope="module")
def logits(members, contents):
    """Predictions by the definition, `(examples, members, classes)`: each member on the pixels of its transform."""
    images = [decode_image(content) for content in contents]
    seen = [np.stack([transform.apply(image) for image in images]).astype(np.float32) for transform in TRANSFORMS]
    return np.stack([log_probabilities(member, [pixels]) for member, pixels in zip(members, seen, strict=True)], axis=1)


def thresholds_of(logits):
    """Return slightly more than the median confidence of the first one and the first two members."""
    parts = [choose(count, temperatures=TEMPERATURES[:count]) for count in (1, 2)]
    return [float(np.median(dense(logits[:, : len(p.members)], p)["confidence"])) + 1e-3 for p in parts]


@pytest.fixture(scope="module")
def selection(logits):
    return choose(3, temperatures=TEMPERATURES, thresholds=thresholds_of(logits))


@pytest.fixture(scope="module")
def version(members, selection, tmp_path_factory, verified_here):
    base = tmp_path_factory.mktemp("saved_models") / "sizes"
    return publish_committee(selection, members, base, transforms=TRANSFORMS)


@pytest.fixture(scope="module")
def session(version):
    with Session.load(version) as session:
        yield session


@pytest.mark.slow
def test_a_cascade_of_resolutions_computes_the_definition_for_encoded_images(session, selection, contents, logits):
    outputs = session.run("predict_bytes", {"image_bytes": contents})
    expected = dense(logits, selection)
    assert set(expected["members_used"]) == {1, 2, 3}
    np.testing.assert_array_equal(outputs["members_used"], expected["members_used"])
    np.testing.assert_array_equal(outputs["class_id"], expected["class_id"])
    np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(outputs["confidence"], expected["confidence"], atol=1e-5)
    assert outputs["valid"].all()


@pytest.mark.slow
def test_pixels_have_the_largest_size_and_are_resized_as_by_the_keras_cascade(session, selection, members):
    images = np.random.default_rng(1).uniform(0, 255, (40, 2, 3, 3)).repeat(7, axis=1).repeat(4, axis=2)
    thresholds = [stage.threshold for stage in selection.stages[:-1]]
    cascade = Cascade(members, thresholds, temperatures=TEMPERATURES, image_size="largest")
    expected = cascade.predict(images.astype(np.float32), verbose=0)
    outputs = session.run("", {"image": images.astype(np.float32)})
    assert len(set(expected["members_used"])) > 1
    for name in ("members_used", "probabilities", "confidence"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5)
    all_members = session.run("predict_members", {"image": images.astype(np.float32)})
    assert all_members["member_probabilities"].shape == (40, 3, 3)


@pytest.mark.slow
def test_invalid_images_are_marked_at_every_stage_and_an_empty_batch_is_empty(session, contents):
    mixed = np.array([b"text", contents[0], b"", contents[1][:90]], object)
    outputs = session.run("predict_bytes", {"image_bytes": mixed})
    valid_only = session.run("predict_bytes", {"image_bytes": contents[:1]})
    assert outputs["valid"].tolist() == [False, True, False, False]
    assert outputs["members_used"][[0, 2, 3]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(outputs["probabilities"][1:2], valid_only["probabilities"], atol=1e-6)
    empty = session.run("predict_bytes", {"image_bytes": np.array([], object)})
    assert {len(value) for value in empty.values()} == {0}


@pytest.mark.slow
def test_the_manifest_lists_the_transform_of_each_member(version):
    manifest = json.loads((version / "committee.json").read_text())
    assert manifest["image"] == {"height": 14, "width": 12, "channels": 3, "dtype": "float32"}
    assert manifest["transforms"] == [
        {"size": [8, 6], "padding": None, "method": "bilinear"},
        {"size": [14, 12], "padding": 6, "method": "bilinear"},
        {"size": [8, 6], "padding": 3, "method": "bicubic"},
    ]
    assert manifest["verified"]["largest_difference"] < 1e-5
    assert manifest["warmup"]["requests"] == 5 * 2 * 3  # signatures, fewest and most members, batch sizes


@pytest.mark.slow
def test_a_later_stage_decodes_only_the_images_that_reach_it(members, selection, contents, logits, monkeypatch):
    decoded, decode = [], committee_graph._decode_images

    def watched(contents, transforms):
        tf.py_function(lambda rows: decoded.append((int(rows), len(transforms))), [tf.size(contents)], [])
        return decode(contents, transforms)

    monkeypatch.setattr(committee_graph, "_decode_images", watched)
    networks = [InferenceModel(model, f"m{index}") for index, model in enumerate(members)]
    committee_graph.ServingCommittee(networks, selection, (*LARGE, 3), TRANSFORMS).predict_encoded(
        tf.constant(contents)
    )
    used = dense(logits, selection)["members_used"]
    assert decoded == [(30, 1), (int((used > 1).sum()), 1), (int((used > 2).sum()), 1)]
    decoded.clear()
    committee_graph.ServingCommittee(networks, choose(3), (*LARGE, 3), TRANSFORMS).predict_encoded(
        tf.constant(contents)
    )
    assert decoded == [(30, 3)]  # a committee decodes each image once


def test_a_center_cropped_committee_of_one_size_sees_the_center(members, contents, logits):
    committee = committee_graph.ServingCommittee(
        [InferenceModel(members[1], "m")], choose(1), (*LARGE, 3), TRANSFORMS[1:2]
    )
    outputs = committee.predict_encoded(tf.constant(contents))
    np.testing.assert_allclose(outputs["probabilities"], dense(logits[:, 1:2], choose(1))["probabilities"], atol=1e-5)
