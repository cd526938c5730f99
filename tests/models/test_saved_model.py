"""SavedModels as frozen members."""

import keras
import numpy as np
import pytest

from keras_committee import flops
from keras_committee.errors import VerificationError
from keras_committee.models import Ensemble, from_keras_file, from_saved_model

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it runs on TensorFlow only")

IMAGES = np.random.default_rng(3).uniform(0, 255, (4, 8, 6, 3)).astype("float32")


def network(last="softmax"):
    image = keras.Input((8, 6, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(image)
    x = keras.layers.Conv2D(4, 3, use_bias=False, kernel_initializer="random_normal")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.SeparableConv2D(5, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(3, activation=last, kernel_initializer="random_normal")(x))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A SavedModel of a network with a softmax as a member, and that network."""
    keras.utils.set_random_seed(1)
    folder, model = tmp_path_factory.mktemp("external") / "birds" / "7", network()
    model.export(str(folder), verbose=False)
    return from_saved_model(folder), model


def test_a_saved_model_predicts_as_before_and_its_member_file_does_not_need_it(exported, tmp_path):
    member, model = exported
    assert (member.name, member.input_shape, member.output_shape) == ("birds", (None, 8, 6, 3), (None, 3))
    member.save(tmp_path / "member.keras")
    loaded = from_keras_file(tmp_path / "member.keras")
    expected = keras.ops.convert_to_numpy(model(IMAGES))
    for network in (member, loaded):
        np.testing.assert_allclose(keras.ops.softmax(network(IMAGES)), expected, atol=1e-6)
    assert np.asarray(member(IMAGES)).min() < 0  # the logits before the softmax, not its probabilities


def test_it_costs_as_much_as_its_layers(exported):
    member, model = exported
    assert flops.multiply_adds(member) == flops.multiply_adds(model)
    assert flops.parameters(member) == flops.parameters(model)
    assert len(member.weights) == len(model.weights)


def test_an_ensemble_with_it_can_be_saved(exported, tmp_path):
    committee = Ensemble([exported[0], network(None)])
    committee.save(tmp_path / "committee.keras")
    loaded = keras.saving.load_model(tmp_path / "committee.keras")
    predictions = [model(IMAGES)["member_probabilities"] for model in (loaded, committee)]
    np.testing.assert_allclose(*predictions, atol=1e-6)


class Module(tf.Module):
    def __init__(self):
        self.kernel = tf.Variable(np.arange(9, dtype="float32").reshape(3, 3))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, "image_in")])
    def bytes_of_any_size(self, image_in):
        rows = tf.reduce_mean(tf.cast(image_in, tf.float32), (1, 2)) @ self.kernel
        return {"rows": rows, "sums": tf.reduce_sum(rows, -1)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "image_in")])
    def files(self, image_in):
        return {"rows": tf.zeros((1, 3))}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A SavedModel that Keras did not write."""
    folder, module = tmp_path_factory.mktemp("odd"), Module()
    names = ("bytes_of_any_size", "files")
    tf.saved_model.save(module, str(folder), signatures={name: getattr(module, name) for name in names})
    return folder


def test_a_signature_of_bytes_and_any_size_can_be_a_member(odd):
    member = from_saved_model(odd, signature="bytes_of_any_size", output="rows", image_size=(8, 6), name="odd")
    expected = IMAGES.astype("uint8").mean((1, 2)) @ np.arange(9).reshape(3, 3)
    np.testing.assert_allclose(member(IMAGES), expected, rtol=1e-5)
    assert (member.name, member.input_shape) == ("odd", (None, 8, 6, 3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"has no signature 'serving_default'. Signatures: bytes_of_any_size, files\."),
        ({"signature": "bytes_of_any_size"}, r"has several outputs. Pass output, one of: rows, sums\."),
        (
            {"signature": "bytes_of_any_size", "output": "row"},
            r"has no output 'row'. Pass output, one of: rows, sums\.",
        ),
        (
            {"signature": "bytes_of_any_size", "output": "sums"},
            r"must return \(batch, classes\). The shape of 'sums' is \(None,\)",
        ),
        (
            {"signature": "bytes_of_any_size", "output": "rows"},
            r"Pass a matching image_size. Received: image_size=None",
        ),
        ({"signature": "files"}, r"must take one image .* Received: image_in: string \(None,\)"),
    ],
)
def test_C03_a_signature_that_does_not_fit_is_refused(odd, options, words):
    with pytest.raises(VerificationError, match=words):
        from_saved_model(odd, **options)


def test_a_graph_with_control_flow_is_refused_with_the_names_of_its_operations(tmp_path):
    module = Module()

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 3), tf.float32, "image_in")])
    def loop(image_in):
        rows = tf.reduce_mean(image_in, (1, 2)) @ module.kernel
        return {"rows": tf.while_loop(lambda x: tf.reduce_sum(x) < 10, lambda x: (x + 1,), (rows,))[0]}

    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": loop})
    with pytest.raises(VerificationError, match=r"has operations that are not allowed in a network: .*LoopCond"):
        from_saved_model(tmp_path)


def test_a_folder_that_is_not_a_saved_model_is_refused(tmp_path):
    with pytest.raises(VerificationError, match=r"is not a SavedModel: it has no saved_model\.pb"):
        from_saved_model(tmp_path)


@pytest.mark.slow
def test_a_backbone_of_model_garden_is_a_member(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    resnet = pytest.importorskip("official.vision.modeling.backbones.resnet")
    from official.vision.modeling.classification_model import ClassificationModel

    specs = tf_keras.layers.InputSpec(shape=[None, 32, 32, 3])
    model = ClassificationModel(resnet.ResNet(10, input_specs=specs), num_classes=5, input_specs=specs)
    model.export(str(tmp_path / "garden"))
    member = from_saved_model(tmp_path / "garden", input_scaling="torch")
    images = np.random.default_rng(3).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    pixels = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(member(images), model(pixels.astype("float32"), training=False), rtol=1e-3, atol=1e-4)
    assert flops.multiply_adds(member) > 16 * 16 * 64 * 7 * 7 * 3  # the first convolution alone
    assert flops.parameters(member) == sum(int(np.prod(w.shape)) for w in model.trainable_weights)
