"""Networks of keras.applications as members, against Keras' own preprocess_input."""

import inspect
import math

import keras
import numpy as np
import pytest

from keras_committee.errors import DataError
from keras_committee.models import from_application
from keras_committee.models.external import apply_input_scaling
from keras_committee.models.pretrained import application_names, application_normalization

# The smallest of each module: those of one module share its preprocess_input.
SMALLEST = (
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3",
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "VGG19",
    "Xception",
)  # fmt: skip
SMALL = {"alpha": 0.25, "image_size": (32, 32)}


def module_of(name):
    return inspect.getmodule(getattr(keras.applications, name))


def pixels(size, count=2):
    return np.random.default_rng(4).uniform(0, 255, (count, *size, 3)).astype("float32")


def stirred(model):
    """Weights under which logits differ from image to image, whatever the initialisers gave: He's, of every layer."""
    draw = np.random.default_rng(6)
    for variable in model.trainable_variables:
        depthwise = len(variable.shape) == 4 and variable.shape[-1] == 1
        fan = math.prod(variable.shape[: 2 if depthwise else -1])
        vector = len(variable.shape) == 1
        drawn = draw.uniform(0.8, 1.6, variable.shape) if vector else draw.normal(size=variable.shape)
        variable.assign(drawn if variable.name == "gamma" else drawn * (0.1 if vector else (2 / fan) ** 0.5))
    return model


def test_there_are_forty_of_them():
    assert len(application_names()) >= 40
    assert {module_of(name) for name in application_names()} == {module_of(name) for name in SMALLEST}


@pytest.mark.parametrize("name", application_names())
def test_C04_the_layers_before_a_network_do_what_its_preprocess_input_does(name):
    image = keras.Input((4, 3, 3))
    inside = keras.Model(image, keras.layers.Identity()(apply_input_scaling(image, application_normalization(name))))
    expected = module_of(name).preprocess_input(pixels((4, 3)).copy())
    np.testing.assert_allclose(inside(pixels((4, 3))), expected, rtol=1e-5, atol=2e-4)


def test_weights_from_a_file_answer_raw_pixels_as_keras_answers_preprocessed_ones(tmp_path):
    source = stirred(keras.applications.MobileNet((32, 32, 3), weights=None, classes=5, alpha=0.25))
    source.save_weights(tmp_path / "a.weights.h5")
    member = from_application("MobileNet", weights=tmp_path / "a.weights.h5", weights_classes=5, alpha=0.25,
                              image_size=(32, 32))  # fmt: skip
    expected = source(keras.applications.mobilenet.preprocess_input(pixels((32, 32)).copy()))
    answers = keras.ops.softmax(member(pixels((32, 32))))
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01


def test_another_number_of_classes_gets_a_new_last_layer_and_keeps_the_rest(tmp_path):
    source = stirred(keras.applications.MobileNet((32, 32, 3), weights=None, classes=5, alpha=0.25))
    source.save_weights(tmp_path / "a.weights.h5")
    options = {"weights": tmp_path / "a.weights.h5", "weights_classes": 5, "alpha": 0.25}
    member = from_application("MobileNet", classes=3, image_size=(48, 32), **options)
    assert (member.input_shape, member.output_shape) == ((None, 48, 32, 3), (None, 3))
    layers = {layer.name: layer for layer in member._flatten_layers()}
    np.testing.assert_array_equal(layers["conv1"].kernel, source.get_layer("conv1").kernel)


def test_random_weights_take_size_and_classes():
    member = from_application("MobileNetV3Small", weights=None, classes=4, image_size=(32, 32), minimalistic=True)
    assert (member.input_shape, member.output_shape) == ((None, 32, 32, 3), (None, 4))
    assert member.outputs[0].dtype == "float32"


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"keras.applications has no 'ResNet49'. It has: .*ResNet50"):
        from_application("ResNet49", weights=None)
    with pytest.raises(DataError, match="there is no file of weights"):
        from_application("MobileNet", weights=tmp_path / "absent.h5", **SMALL)
    with pytest.raises(ValueError, match="leave include_preprocessing to EfficientNetV2B0"):
        from_application("EfficientNetV2B0", weights=None, include_preprocessing=False)


def test_weights_of_another_network_are_told(tmp_path):
    source = keras.applications.MobileNet((32, 32, 3), weights=None, classes=5, alpha=0.25)
    source.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(DataError, match=r"gives no weights of MobileNet with 1000 classes"):
        from_application("MobileNet", weights=tmp_path / "a.weights.h5", alpha=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_C04_every_network_answers_raw_pixels_as_keras_answers_preprocessed_ones(name):
    size = (75, 75)  # the least that the Inception networks take
    member = stirred(from_application(name, weights=None, classes=3, image_size=size))
    source = getattr(keras.applications, name)(
        weights=None, classes=3, input_shape=(*size, 3), classifier_activation=None
    )
    source.set_weights(member.get_weights())
    images = pixels(size)
    expected = keras.ops.convert_to_numpy(source(module_of(name).preprocess_input(images.copy()), training=False))
    found = keras.ops.convert_to_numpy(member(images, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()
