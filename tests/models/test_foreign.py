"""Networks from elsewhere as members: scale, softmax, order, size; and what is refused."""

import keras
import numpy as np
import pytest

from keras_committee.errors import VerificationError
from keras_committee.models import INPUT_SCALINGS, InputNormalization, from_keras_file, wrap_model
from keras_committee.models.external import parse_input_scaling, wrap_model_with_report

IMAGES = np.random.default_rng(3).uniform(0, 255, (4, 6, 5, 3)).astype("float32")


def network(last="linear", shape=(6, 5, 3), classes=3):
    image = keras.Input(shape)
    x = keras.layers.Conv2D(4, 3, kernel_initializer="random_normal", name="conv")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(classes, activation=last, name="top")(x), name="stranger")


def log_softmax(logits):
    return keras.ops.convert_to_numpy(keras.ops.log_softmax(logits))


@pytest.mark.parametrize(
    ("scale", "seen"),
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
def test_C04_a_member_sees_the_pixels_that_were_declared(scale, seen):
    model = network()
    np.testing.assert_allclose(wrap_model(model, input_scaling=scale)(IMAGES), model(seen.astype("float32")), atol=2e-4)


def test_a_scale_is_named_or_given_as_numbers():
    assert parse_input_scaling("0..1") == "0..1"
    assert parse_input_scaling("1,2,3/4.5") == InputNormalization((1.0, 2.0, 3.0), 4.5)
    assert set(INPUT_SCALINGS) == {"0..255", "0..1", "-1..1", "torch", "caffe"}
    with pytest.raises(ValueError, match=r"expected 0\.\.255, .* or MEAN/STD on 0\.\.255. Received: '0-1'"):
        parse_input_scaling("0-1")
    with pytest.raises(ValueError, match="scale must be one of"):
        wrap_model(network(), input_scaling="0-1")
    with pytest.raises(ValueError, match="one for each of the 3 channels"):
        wrap_model(network(), input_scaling=InputNormalization((1.0, 2.0), 1.0))


def with_softmax_layer():
    model = network()
    return keras.Model(model.inputs[0], keras.layers.Softmax()(model.outputs[0]))


def with_activation_layer():
    model = network()
    return keras.Model(model.inputs[0], keras.layers.Activation("softmax")(model.outputs[0]))


def with_softmax_deep_inside():
    model = network("softmax")
    return keras.Model(model.inputs[0], keras.layers.Reshape((3,))(model.outputs[0]))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (network, "logits"),
        (lambda: network("softmax"), "softmax removed"),
        (with_softmax_layer, "softmax removed"),
        (with_activation_layer, "softmax removed"),
        (with_softmax_deep_inside, "logarithms of its probabilities"),
    ],
)
def test_C08_probabilities_become_logits_and_it_is_said(make, told):
    model = make()
    before = model.outputs[0]
    member, outputs = wrap_model_with_report(model)
    assert outputs == told
    rows = keras.ops.convert_to_numpy(model(IMAGES))
    expected = log_softmax(rows) if told == "logits" else np.log(rows)
    np.testing.assert_allclose(log_softmax(member(IMAGES)), expected, atol=1e-5)
    assert model.outputs[0] is before


def test_a_network_that_wants_its_image_in_a_list_or_a_dict_gets_it():
    model = network()
    for wanted in (model.inputs, {model.inputs[0].name: model.inputs[0]}):
        listed = keras.Model(wanted, [model.outputs[0]])
        np.testing.assert_allclose(wrap_model(listed)(IMAGES), model(IMAGES), rtol=1e-5)


def test_C08_rows_are_probabilities_if_they_sum_to_one_within_a_thousandth():
    from keras_committee.models.external import are_probabilities

    assert are_probabilities(np.array([[0.2, 0.7, 0.1009]]))
    assert not are_probabilities(np.array([[0.2, 0.7, 0.1011]]))
    assert not are_probabilities(np.array([[-0.2, 0.7, 0.5]]))


def test_C02_logits_are_reordered_and_the_order_survives_the_file(tmp_path):
    model = network()
    member = wrap_model(model, class_order=[2, 0, 1], input_scaling="caffe")
    member.save(tmp_path / "member.keras")
    seen = (IMAGES[..., ::-1] - [103.939, 116.779, 123.68]).astype("float32")
    expected = keras.ops.convert_to_numpy(model(seen))[:, [2, 0, 1]]
    np.testing.assert_allclose(from_keras_file(tmp_path / "member.keras")(IMAGES), expected, atol=2e-4)
    with pytest.raises(ValueError, match=r"each place 0 to 2 once. Received: \[0, 0, 1\]"):
        wrap_model(model, class_order=[0, 0, 1])


def test_C03_another_size_is_resized_if_asked():
    model = network()
    large = np.repeat(np.repeat(IMAGES, 2, axis=1), 2, axis=2)
    member = wrap_model(model, resized_from=(12, 10))
    resized = keras.layers.Resizing(6, 5, antialias=True)(large)
    np.testing.assert_allclose(member(large), model(resized), rtol=1e-4, atol=1e-3)
    assert member.input_shape == (None, 12, 10, 3)


def test_C03_a_network_of_any_size_needs_one():
    model = network(shape=(None, None, 3))
    assert wrap_model(model, image_size=(6, 5)).input_shape == (None, 6, 5, 3)
    with pytest.raises(VerificationError, match=r"takes images of NonexNone \(None is any\); image_size=None"):
        wrap_model(model)
    with pytest.raises(VerificationError, match=r"takes images of 6x5 .*image_size=\(8, 8\)"):
        wrap_model(network(), image_size=(8, 8))


def two_inputs():
    first, second = keras.Input((6, 5, 3)), keras.Input((6, 5, 3))
    return keras.Model([first, second], keras.layers.Flatten()(first + second))


def channels_first():
    image = keras.Input((3, 6, 5))
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image)))


def a_map():
    image = keras.Input((6, 5, 3))
    return keras.Model(image, keras.layers.Conv2D(2, 1)(image))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (two_inputs, "one input and one output. It has 2, 1"),
        (channels_first, "Channels first: convert it to channels last"),
        (a_map, r"must return \(batch, classes\). It returns \(None, 6, 5, 2\)"),
        (lambda: keras.layers.Dense(3), "no functional or built Sequential Keras model"),
    ],
)
def test_C03_what_is_no_image_to_logits_is_refused(make, words):
    with pytest.raises(VerificationError, match=words):
        wrap_model(make())


def test_C07_a_network_that_gives_no_numbers_is_refused():
    model = network()
    model.get_layer("top").bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(VerificationError, match="'stranger' gives values that are not finite"):
        wrap_model(model)


def test_D20_code_in_a_file_is_not_run(tmp_path):
    image = keras.Input((6, 5, 3))
    path = tmp_path / "evil.keras"
    keras.Model(image, keras.layers.Lambda(lambda x: x[:, 0, 0])(image)).save(path)
    words = r"evil.keras holds code of whoever wrote it, in layer .lambda.(.|\n)*Nothing of it was run"
    with pytest.raises(VerificationError, match=words):
        from_keras_file(path)


@pytest.mark.parametrize(("name", "words"), [("model.h5", "is no .keras file"), ("absent.keras", "there is no file")])
def test_other_files_are_refused(name, words, tmp_path):
    with pytest.raises(VerificationError, match=words):
        from_keras_file(tmp_path / name)


def test_a_file_that_is_no_archive_is_told(tmp_path):
    (tmp_path / "torn.keras").write_bytes(b"PK torn")
    with pytest.raises(VerificationError, match=r"torn\.keras cannot be loaded"):
        from_keras_file(tmp_path / "torn.keras")
