"""An exported version, loaded by TensorFlow's own loader: its signatures, outputs, variables and manifest."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from committees import CLASSES, SHAPE, choose, dense, small_member
from tensorflow.core.protobuf import saved_model_pb2

from keras_committee.data.preprocessing import decode_image, resize_image
from keras_committee.errors import ExportError
from keras_committee.export import export
from keras_committee.export.export import publish_committee, save_committee
from keras_committee.export.publish import publish, staging, taken_versions
from keras_committee.models import log_probabilities
from keras_committee.models.views import view_models
from keras_committee.selection import AcceptanceRule, Promise, SetRule, View
from keras_committee.tfserving import Client
from keras_committee.tfserving.server import grpc, rest
from keras_committee.tfserving.server.manager import Manager, ModelConfig
from keras_committee.tfserving.session import Session
from keras_committee.tfserving.tf_protocol import StatusError

OUTPUTS = {
    "probabilities": ("float32", (None, 3)),
    "class_id": ("int32", (None,)),
    "label": ("string", (None,)),
    "confidence": ("float32", (None,)),
    "mutual_information": ("float32", (None,)),
    "members_used": ("int32", (None,)),
}
PROMISED = {
    "prediction_set": ("bool", (None, 3)),
    "set_size": ("int32", (None,)),
    "accepted": ("bool", (None,)),
}
MEMBERS = 3


@pytest.fixture(scope="module")
def members():
    return [small_member(seed) for seed in range(MEMBERS)]


@pytest.fixture(scope="module")
def selection(members, images):
    """A cascade whose thresholds are the medians of the confidence of the first one and the first two members."""
    temperatures = [0.7, 1.0, 1.4]
    parts = [choose(count, temperatures=temperatures[:count]) for count in (1, 2)]
    logits = logits_of(members, images)
    thresholds = [float(np.median(dense(logits[:, : len(p.members)], p)["confidence"])) + 1e-3 for p in parts]
    promise = Promise(
        split="validation",
        examples=40,
        chosen_on=39,
        sets=SetRule(coverage=0.9, method="aps", thresholds=(0.45, 0.3, 0.6)),
        acceptance=AcceptanceRule(max_risk=0.1, certainty=0.95, threshold=thresholds[1] + 0.05),
    )
    return choose(MEMBERS, temperatures=temperatures, thresholds=thresholds, promise=promise)


@pytest.fixture(scope="module")
def version(members, selection, tmp_path_factory):
    return publish_committee(selection, members, tmp_path_factory.mktemp("saved_models") / "small")


@pytest.fixture(scope="module")
def session(version):
    with Session.load(version) as session:
        yield session


@pytest.fixture(scope="module")
def images():
    coarse = np.random.default_rng(8).integers(0, 256, (33, 2, 3, 3)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(2, axis=2)


def logits_of(members, images):
    return np.stack([log_probabilities(member, [images.astype(np.float32)]) for member in members], axis=1)


def contents(images):
    return np.array([tf.io.encode_png(image).numpy() for image in images], object)


def example(content):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature})).SerializeToString()


def test_the_signatures_are_the_six_with_named_batch_first_tensors(session):
    found = {
        name: [{n: (t.dtype, t.shape) for n, t in tensors.items()} for tensors in (signature.inputs, signature.outputs)]
        for name, signature in session.signatures.items()
    }
    image = {"image": ("float32", (None, *SHAPE))}
    assert found == {
        "serving_default": [image, OUTPUTS | PROMISED],
        "predict_uint8": [{"image": ("uint8", (None, *SHAPE))}, OUTPUTS | PROMISED],
        "predict_members": [image, {**OUTPUTS, "member_probabilities": ("float32", (None, MEMBERS, 3))}],
        "predict_bytes": [{"image_bytes": ("string", (None,))}, {**OUTPUTS, **PROMISED, "valid": ("bool", (None,))}],
        "predict_members_bytes": [
            {"image_bytes": ("string", (None,))},
            {
                **OUTPUTS,
                **PROMISED,
                "valid": ("bool", (None,)),
                "member_probabilities": ("float32", (None, MEMBERS, 3)),
            },
        ],
        "classify": [
            {"inputs": ("string", (None,))},
            {"classes": ("string", (None, 3)), "scores": ("float32", (None, 3))},
        ],
    }


def test_views_share_the_weights_of_their_network(members, images, tmp_path):
    views = [None, View(mirror=True), None, View(mirror=True, shift=1)]
    models = view_models([members[0], members[0], members[1], members[1]], views)
    shifted = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")[:, :-2, :-2]
    seen = [images, images[:, :, ::-1], images, shifted[:, :, ::-1]]
    logits = np.concatenate([logits_of([members[i // 2]], each) for i, each in enumerate(seen)], axis=1)
    temperatures = [0.7, 1.3, 1.0, 2.0]
    first = [dense(logits[:, :size], choose(size, temperatures=temperatures[:size])) for size in (1, 2, 3)]
    thresholds = [float(np.quantile(each["confidence"], 0.7)) + 1e-3 for each in first]
    selection = choose(4, thresholds=thresholds, temperatures=temperatures)
    save_committee(selection, models, tmp_path / "views")
    variables = tf.train.list_variables(str(tmp_path / "views" / "variables" / "variables"))
    kernels = [shape for name, shape in variables if "kernel" in name]
    assert sorted(kernels) == sorted(
        2 * [list(layer.kernel.shape) for layer in members[0].layers if hasattr(layer, "kernel")]
    )
    expected = dense(logits, selection)
    assert len(set(expected["members_used"])) >= 3
    with Session.load(tmp_path / "views") as session:
        for name, inputs in {
            "serving_default": {"image": images.astype(np.float32)},
            "predict_bytes": {"image_bytes": contents(images)},
        }.items():
            outputs = session.run(name, inputs)
            np.testing.assert_array_equal(outputs["members_used"], expected["members_used"])
            np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], atol=2e-6)


@pytest.mark.parametrize("rows", [1, 33])
def test_the_cascade_computes_the_definition(session, members, selection, images, rows):
    outputs = session.run("", {"image": images[:rows].astype(np.float32)})
    expected = dense(logits_of(members, images[:rows]), selection)
    np.testing.assert_array_equal(outputs["members_used"], expected["members_used"])
    np.testing.assert_array_equal(outputs["class_id"], expected["class_id"])
    np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(outputs["confidence"], expected["confidence"], atol=1e-5)
    assert [label.decode() for label in outputs["label"]] == [CLASSES[i] for i in expected["class_id"]]
    sets = [
        [1 - sum(p for p in row if p > row[k]) >= t for k, t in enumerate((0.45, 0.3, 0.6))]
        for row in expected["probabilities"]
    ]
    np.testing.assert_array_equal(outputs["prediction_set"], sets)
    np.testing.assert_array_equal(outputs["set_size"], np.sum(sets, axis=1))
    threshold = selection.promise.acceptance.threshold
    np.testing.assert_array_equal(outputs["accepted"], expected["confidence"] >= threshold)


def test_the_images_of_these_tests_need_all_stages(members, selection, images):
    assert set(dense(logits_of(members, images), selection)["members_used"]) == {1, 2, 3}


def test_predict_members_runs_all_members(session, members, images):
    outputs = session.run("predict_members", {"image": images.astype(np.float32)})
    logits = logits_of(members, images) / np.array([0.7, 1.0, 1.4])[:, None]
    np.testing.assert_allclose(outputs["member_probabilities"], tf.nn.softmax(logits), atol=1e-5)
    assert set(outputs["members_used"]) == {MEMBERS}


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_pixels_of_eight_bits_have_the_answers_of_floats_to_the_last_bit_over_both_protocols(
    version, session, images, scheme
):
    expected = session.run("", {"image": images.astype(np.float32)})
    with Manager([ModelConfig("small", version.parent)]) as manager:
        manager.wait_until_available()
        start = {"grpc": grpc.start, "http": rest.start}[scheme]
        with (
            start(manager, ("127.0.0.1", 0)) as server,
            Client(f"{scheme}://127.0.0.1:{server.port}", "small", timeout=20) as client,
        ):
            sent, send = [], client._transport.predict
            client._transport.predict = lambda request, timeout: sent.append(request) or send(request, timeout)
            for pixels in (images, images.astype(np.float32)):
                outputs = client.predict(pixels)
                assert set(outputs) == set(expected)
                for name, value in expected.items():
                    np.testing.assert_array_equal(outputs[name], value)
    assert [request.inputs["image"].nbytes for request in sent] == [33 * 8 * 6 * 3, 4 * 33 * 8 * 6 * 3]


def test_encoded_images_are_resized_as_in_training_and_others_are_marked_invalid(session, images):
    large = np.random.default_rng(4).integers(0, 256, (40, 31, 3)).astype(np.uint8)
    jpeg = tf.io.encode_jpeg(large).numpy()
    damaged = bytearray(tf.io.encode_png(large).numpy())
    damaged[60:200] = b"x" * 140
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (9000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + b"x" * 40
    gif = b"GIF89a" + b"\0" * 30
    good = [jpeg, tf.io.encode_png(images[0]).numpy()]
    bad = [b"", b"text", jpeg[:300], bytes(damaged), bomb, gif, b"\xff\xd8\xff" + b"z" * 50]
    outputs = session.run("predict_bytes", {"image_bytes": np.array([*good, *bad], object)})
    assert outputs["valid"].tolist() == [True] * 2 + [False] * 7
    pixels = tf.cast(tf.stack([resize_image(decode_image(content), SHAPE[:2]) for content in good]), tf.float32)
    expected = session.run("serving_default", {"image": pixels.numpy()})
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name][:2], value)
    np.testing.assert_allclose(outputs["probabilities"][2:], 1 / 3, atol=1e-7)
    assert set(outputs["class_id"][2:]) == {-1}
    assert set(outputs["label"][2:]) == {b""}
    with_members = session.run("predict_members_bytes", {"image_bytes": np.array([*good, *bad], object)})
    members = session.run("predict_members", {"image": pixels.numpy()})["member_probabilities"]
    np.testing.assert_allclose(with_members["member_probabilities"][:2], members, atol=1e-6)  # on the same pixels
    assert not with_members["member_probabilities"][2:].any()
    np.testing.assert_allclose(with_members["probabilities"], outputs["probabilities"], atol=1e-6)
    for name in ("class_id", "label", "members_used", "valid", *PROMISED):
        np.testing.assert_array_equal(with_members[name], outputs[name])
    for name in ("members_used", "set_size", "accepted", "prediction_set"):
        assert not outputs[name][2:].any()


def test_classify_scores_examples_and_gives_zeros_to_invalid_ones(session, images):
    examples = [example(content) for content in contents(images[:3])]
    outputs = session.run("classify", {"inputs": np.array([*examples, example(b"text"), b"no example"], object)})
    expected = session.run("serving_default", {"image": images[:3].astype(np.float32)})["probabilities"]
    np.testing.assert_array_equal(outputs["scores"], np.concatenate([expected, np.zeros((2, 3), np.float32)]))
    assert [row.tolist() for row in outputs["classes"]] == [[name.encode() for name in CLASSES]] * 5


def test_an_empty_batch_has_empty_outputs(session):
    outputs = session.run("predict_bytes", {"image_bytes": np.array([], object)})
    assert {name: len(value) for name, value in outputs.items()} == dict.fromkeys([*OUTPUTS, *PROMISED, "valid"], 0)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 8, 6, 1), (8, 6, 3)])
def test_another_shape_is_an_invalid_argument(session, shape):
    with pytest.raises(StatusError, match=r"not compatible with expected shape") as caught:
        session.run("serving_default", {"image": np.zeros(shape, np.float32)})
    assert caught.value.code == "INVALID_ARGUMENT"


def test_every_variable_is_stored_once(version):
    stored = dict(tf.train.list_variables(str(version / "variables" / "variables")))
    shapes = [shape for name, shape in stored.items() if ".ATTRIBUTES/VARIABLE_VALUE" in name]
    assert sorted(shapes) == sorted(MEMBERS * [[3, 3, 3, 4], [4], [4, 3], [3]])
    data = (version / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert data < 4 * sum(int(np.prod(shape)) for shape in shapes) + 8_000  # plus the object graph


def test_the_manifest_describes_the_committee(version):
    manifest = json.loads((version / "committee.json").read_text())
    assert manifest["labels"] == list(CLASSES)
    assert manifest["image"] == {"height": 8, "width": 6, "channels": 3, "dtype": "float32"}
    assert [member["temperature"] for member in manifest["members"]] == [0.7, 1.0, 1.4]
    assert manifest["kind"] == "cascade"
    promise = manifest["promise"]
    assert [promise[name] for name in ("split", "examples", "chosen_on")] == ["validation", 40, 39]
    assert (promise["sets"]["coverage"], promise["acceptance"]["max_risk"]) == (0.9, 0.1)
    assert manifest["verified"]["largest_difference"] <= 1e-5
    assert manifest["warmup"]["requests"] == 5 * 3 * 2  # signatures, batch sizes, fewest and most members
    assert set(manifest["versions"]) == {"keras-committee", "keras", "tensorflow"}


def test_a_stock_server_runs_every_operation_and_each_network_once(version):
    export.check_ops(version)
    saved_model = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    functions = saved_model.meta_graphs[0].graph_def.library.function
    names = [function.signature.name for function in functions]
    assert len(set(names)) == len(names)
    convolutions = [node for function in functions for node in function.node_def if node.op == "Conv2D"]
    assert len(convolutions) == MEMBERS  # one for each member, whatever the number of signatures


@pytest.mark.slow
def test_D02_readers_that_load_during_50_publications_see_complete_versions_only(version, tmp_path):
    base = tmp_path / "small"

    def publish_copy():
        with staging(base) as folder:
            shutil.copytree(version, folder / "version")
            return publish(base, folder / "version")

    image = {"image": np.full((1, *SHAPE), 77, np.float32)}
    with Session.load(publish_copy()) as session:
        expected = session.run("", image)["probabilities"]
    done, loaded, wrong = threading.Event(), [], []

    def read():
        while not done.is_set():
            newest = base / str(max(taken_versions(base)))
            try:
                with Session.load(newest) as session:
                    outputs = session.run("", image)["probabilities"]
                loaded.append(newest.name)
                wrong.extend([] if np.array_equal(outputs, expected) else [newest.name])
            except ExportError as error:
                wrong.append(f"{newest.name}: {error}")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(50):
        num_loads = len(loaded) + len(wrong)
        publish_copy()
        while len(loaded) + len(wrong) == num_loads:
            time.sleep(0.01)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert len(set(loaded)) > 10
    assert taken_versions(base)[-1] == 51
