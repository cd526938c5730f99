"""Networks from elsewhere as members: input scaling, softmax, class order, size, and refused models."""

import keras
import numpy as np
import pytest

from keras_committee.errors import VerificationError
from keras_committee.input_scaling import parse_input_scaling
from keras_committee.models import INPUT_SCALINGS, InputNormalization, from_keras_file, wrap_model
from keras_committee.models.external import wrap_model_with_report

IMAGES = np.random.default_rng(3).uniform(0, 255, (4, 6, 5, 3)).astype("float32")


def network(last="linear", shape=(6, 5, 3), classes=3):
    image = keras.Input(shape)
    x = keras.layers.Conv2D(4, 3, kernel_initializer="random_normal", name="conv")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(classes, activation=last, name="top")(x), name="outside")


def log_softmax(logits):
    return keras.ops.convert_to_numpy(keras.ops.log_softmax(logits))


@pytest.mark.parametrize(
    ("scaling", "pixels"),
    [
        ("0..255", IMAGES),
        ("0..1", IMAGES / 255),
        ("-1..1", IMAGES / 127.5 - 1),
        ("torch", (IMAGES / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("caffe", IMAGES[..., ::-1] - [103.939, 116.779, 123.68]),
        (InputNormalization((10.0, 20.0, 30.0), 7.0), (IMAGES - [10, 20, 30]) / 7),
    ],
    ids=("raw", "unit", "symmetric", "torch", "caffe", "numbers"),
)
def test_C04_a_member_passes_on_pixels_in_the_declared_scaling(scaling, pixels):
    model = network()
    member = wrap_model(model, input_scaling=scaling)
    np.testing.assert_allclose(member(IMAGES), model(pixels.astype("float32")), atol=2e-4)


def test_an_input_scaling_is_a_name_or_numbers():
    assert parse_input_scaling("0..1") == "0..1"
    assert parse_input_scaling("1,2,3/4.5") == InputNormalization((1.0, 2.0, 3.0), 4.5)
    assert set(INPUT_SCALINGS) == {"0..255", "0..1", "-1..1", "torch", "caffe"}
    with pytest.raises(ValueError, match=r"expected 0\.\.255, .* or MEAN/STD on 0\.\.255. Received: '0-1'"):
        parse_input_scaling("0-1")
    with pytest.raises(ValueError, match=r"input_scaling must be one of .*InputNormalization. Received: '0-1'"):
        wrap_model(network(), input_scaling="0-1")
    with pytest.raises(ValueError, match="one for each of the 3 channels"):
        wrap_model(network(), input_scaling=InputNormalization((1.0, 2.0), 1.0))


def with_softmax_layer():
    model = network()
    return keras.Model(model.inputs[0], keras.layers.Softmax()(model.outputs[0]))


def with_activation_layer():
    model = network()
    return keras.Model(model.inputs[0], keras.layers.Activation("softmax")(model.outputs[0]))


@pytest.mark.parametrize(
    ("make", "conversion"),
    [
        (network, "logits"),
        (lambda: network("softmax"), "softmax removed"),
        (with_softmax_layer, "softmax removed"),
        (with_activation_layer, "softmax removed"),
    ],
)
def test_C08_probabilities_become_logits_and_the_conversion_is_reported(make, conversion):
    model = make()
    before = model.outputs[0]
    options = dict.fromkeys(("class_order", "image_size", "resized_from", "name"))
    member, reported = wrap_model_with_report(model, input_scaling="0..255", **options)
    assert reported == conversion
    rows = keras.ops.convert_to_numpy(model(IMAGES))
    expected = log_softmax(rows) if conversion == "logits" else np.log(rows)
    np.testing.assert_allclose(log_softmax(member(IMAGES)), expected, atol=1e-5)
    assert model.outputs[0] is before


def test_a_network_may_take_its_image_in_a_list_or_a_dictionary():
    model = network()
    for inputs in (model.inputs, {model.inputs[0].name: model.inputs[0]}):
        listed = keras.Model(inputs, [model.outputs[0]])
        np.testing.assert_allclose(wrap_model(listed)(IMAGES), model(IMAGES), rtol=1e-5)


def test_C02_logits_are_reordered_and_the_file_keeps_the_order(tmp_path):
    model = network()
    member = wrap_model(model, class_order=[2, 0, 1], input_scaling="caffe")
    member.save(tmp_path / "member.keras")
    pixels = (IMAGES[..., ::-1] - [103.939, 116.779, 123.68]).astype("float32")
    expected = keras.ops.convert_to_numpy(model(pixels))[:, [2, 0, 1]]
    np.testing.assert_allclose(from_keras_file(tmp_path / "member.keras")(IMAGES), expected, atol=2e-4)
    with pytest.raises(ValueError, match=r"class_order must hold each index from 0 to 2 once. Received: \[0, 0, 1\]"):
        wrap_model(model, class_order=[0, 0, 1])


def test_C03_images_of_another_size_are_resized():
    model = network()
    large = np.repeat(np.repeat(IMAGES, 2, axis=1), 2, axis=2)
    member = wrap_model(model, resized_from=(12, 10))
    resized = keras.layers.Resizing(6, 5, antialias=True)(large)
    np.testing.assert_allclose(member(large), model(resized), rtol=1e-4, atol=1e-3)
    assert member.input_shape == (None, 12, 10, 3)


def test_C03_a_network_of_any_size_requires_one():
    model = network(shape=(None, None, 3))
    assert wrap_model(model, image_size=(6, 5)).input_shape == (None, 6, 5, 3)
    with pytest.raises(VerificationError, match=r"takes: NonexNone, where None is any. Received: image_size=None"):
        wrap_model(model)
    with pytest.raises(VerificationError, match=r"takes: 6x5, .*image_size=\(8, 8\)"):
        wrap_model(network(), image_size=(8, 8))


def two_inputs():
    first, second = keras.Input((6, 5, 3)), keras.Input((6, 5, 3))
    return keras.Model([first, second], keras.layers.Flatten()(first + second))


def channels_first():
    image = keras.Input((3, 6, 5))
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image)))


def feature_map():
    image = keras.Input((6, 5, 3))
    return keras.Model(image, keras.layers.Conv2D(2, 1)(image))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (two_inputs, "one input and one output. Received: 2 and 1"),
        (channels_first, "The model is channels first. Convert it to channels last"),
        (feature_map, r"must return \(batch, classes\). Received: shape=\(None, 6, 5, 2\)"),
        (lambda: keras.layers.Dense(3), "must be a functional or a built Sequential keras.Model"),
    ],
)
def test_C03_a_model_that_does_not_map_an_image_to_logits_is_refused(make, words):
    with pytest.raises(VerificationError, match=words):
        wrap_model(make())


def test_C07_a_network_with_outputs_that_are_not_finite_is_refused():
    model = network()
    model.get_layer("top").bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(VerificationError, match="The outputs of 'outside' are not finite"):
        wrap_model(model)


def test_D20_code_in_a_file_is_not_run(tmp_path):
    image = keras.Input((6, 5, 3))
    path = tmp_path / "evil.keras"
    keras.Model(image, keras.layers.Lambda(lambda x: x[:, 0, 0])(image)).save(path)
    words = r"evil.keras contains code, in layer .lambda.(.|\n)*No code in it was run"
    with pytest.raises(VerificationError, match=words):
        from_keras_file(path)


@pytest.mark.parametrize(
    ("name", "words"), [("model.h5", "is not a .keras file"), ("absent.keras", "There is no file")]
)
def test_other_files_are_refused(name, words, tmp_path):
    with pytest.raises(VerificationError, match=words):
        from_keras_file(tmp_path / name)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "damaged.keras").write_bytes(b"PK damaged")
    with pytest.raises(VerificationError, match=r"damaged\.keras cannot be loaded"):
        from_keras_file(tmp_path / "damaged.keras")
