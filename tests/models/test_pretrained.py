"""Pretrained members: keras.applications against Keras' own preprocess_input, and backbones of keras-cv."""

import inspect
import math

import keras
import numpy as np
import pytest

from keras_committee.errors import DataError, VerificationError
from keras_committee.models import from_application, from_keras_cv, from_keras_file
from keras_committee.models.external import apply_input_scaling
from keras_committee.models.pretrained import application_names, application_normalization

# The smallest of each module: those of one module share its preprocess_input.
SMALLEST = (
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3",
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "VGG19",
    "Xception",
)  # fmt: skip
SMALL = {"alpha": 0.25, "image_size": (32, 32)}
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 16, 12, 3)).astype("float32")


def module_of(name):
    return inspect.getmodule(getattr(keras.applications, name))


def pixels(size, count=2):
    return np.random.default_rng(4).uniform(0, 255, (count, *size, 3)).astype("float32")


def randomized(model):
    """The model with weights under which logits differ from image to image: He's initialization in every layer."""
    rng = np.random.default_rng(6)
    for variable in model.trainable_variables:
        depthwise = len(variable.shape) == 4 and variable.shape[-1] == 1
        fan = math.prod(variable.shape[: 2 if depthwise else -1])
        vector = len(variable.shape) == 1
        values = rng.uniform(0.8, 1.6, variable.shape) if vector else rng.normal(size=variable.shape)
        variable.assign(values if variable.name == "gamma" else values * (0.1 if vector else (2 / fan) ** 0.5))
    return model


def test_keras_has_at_least_forty_networks():
    assert len(application_names()) >= 40
    assert {module_of(name) for name in application_names()} == {module_of(name) for name in SMALLEST}


@pytest.mark.parametrize("name", application_names())
def test_C04_the_normalization_of_a_network_is_its_preprocess_input(name):
    image = keras.Input((4, 3, 3))
    inside = keras.Model(image, keras.layers.Identity()(apply_input_scaling(image, application_normalization(name))))
    expected = module_of(name).preprocess_input(pixels((4, 3)).copy())
    np.testing.assert_allclose(inside(pixels((4, 3))), expected, rtol=1e-5, atol=2e-4)


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """Keras' smallest MobileNet with five classes, and the file with its weights."""
    source = randomized(keras.applications.MobileNet((32, 32, 3), weights=None, classes=5, alpha=0.25))
    file = tmp_path_factory.mktemp("mobilenet") / "a.weights.h5"
    source.save_weights(file)
    return source, file


def test_with_weights_from_a_file_raw_pixels_give_the_outputs_of_keras_for_preprocessed_ones(mobilenet):
    source, file = mobilenet
    member = from_application("MobileNet", weights=file, weights_classes=5, **SMALL)
    expected = source(keras.applications.mobilenet.preprocess_input(pixels((32, 32)).copy()))
    outputs = keras.ops.softmax(member(pixels((32, 32))))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01


def test_another_number_of_classes_gets_a_new_last_layer_and_keeps_the_rest(mobilenet):
    source, file = mobilenet
    options = {"weights": file, "weights_classes": 5, "alpha": 0.25}
    member = from_application("MobileNet", classes=3, image_size=(48, 32), **options)
    assert (member.input_shape, member.output_shape) == ((None, 48, 32, 3), (None, 3))
    layers = {layer.name: layer for layer in member._flatten_layers()}
    np.testing.assert_array_equal(layers["conv1"].kernel, source.get_layer("conv1").kernel)


def test_random_weights_take_size_and_classes():
    member = from_application("MobileNetV3Small", weights=None, classes=4, image_size=(32, 32), minimalistic=True)
    assert (member.input_shape, member.output_shape) == ((None, 32, 32, 3), (None, 4))
    assert member.outputs[0].dtype == "float32"


def test_unknown_networks_missing_files_and_wrong_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"keras.applications has no network 'ResNet49'. Networks: .*ResNet50"):
        from_application("ResNet49", weights=None)
    with pytest.raises(DataError, match="There is no weights file"):
        from_application("MobileNet", weights=tmp_path / "absent.h5", **SMALL)
    with pytest.raises(ValueError, match="include_preprocessing must be True for EfficientNetV2B0"):
        from_application("EfficientNetV2B0", weights=None, include_preprocessing=False)


def test_weights_of_another_number_of_classes_are_refused(mobilenet):
    with pytest.raises(
        DataError, match=r"does not hold the weights of MobileNet with 1,000 classes: [\s\S]*pass weights_classes"
    ):
        from_application("MobileNet", weights=mobilenet[1], alpha=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_C04_every_network_gives_for_raw_pixels_the_outputs_of_keras_for_preprocessed_ones(name):
    size = (75, 75)  # the smallest that the Inception networks take
    member = randomized(from_application(name, weights=None, classes=3, image_size=size))
    source = getattr(keras.applications, name)(
        weights=None, classes=3, input_shape=(*size, 3), classifier_activation=None
    )
    source.set_weights(member.get_weights())
    images = pixels(size)
    expected = keras.ops.convert_to_numpy(source(module_of(name).preprocess_input(images.copy()), training=False))
    actual = keras.ops.convert_to_numpy(member(images, training=False))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()


def backbone(shape=(16, 12, 3)):
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Conv2D(5, 3, kernel_initializer="random_normal")(image), name="backbone")


def pooled_logits(member, features):
    """Global average pooling and the member's dense layer, in NumPy."""
    logits = next(layer for layer in member._flatten_layers() if layer.name == "logits")
    return np.asarray(features).mean((1, 2)) @ np.asarray(logits.kernel) + np.asarray(logits.bias)


@pytest.mark.parametrize(("rescales", "factor"), [(True, 1), (False, 1 / 255)])
def test_C04_include_rescaling_selects_the_pixels_of_a_backbone(rescales, factor):
    network = backbone()
    network.include_rescaling = rescales
    member = from_keras_cv(network, 4, dropout=0.2)
    np.testing.assert_allclose(member(IMAGES), pooled_logits(member, network(IMAGES * factor)), rtol=1e-4, atol=1e-5)
    assert (member.name, member.output_shape) == ("backbone", (None, 4))


def test_a_backbone_without_include_rescaling_requires_an_input_scaling():
    with pytest.raises(VerificationError, match=r"'backbone' has no include_rescaling\. Pass the pixels"):
        from_keras_cv(backbone(), 4)
    member = from_keras_cv(backbone((None, None, 3)), 4, input_scaling="-1..1", image_size=(16, 12))
    assert member.input_shape == (None, 16, 12, 3)


def test_a_model_without_a_feature_map_is_refused():
    flat = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()], name="flat")
    with pytest.raises(VerificationError, match="'flat' is not a backbone"):
        from_keras_cv(flat, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from the imports of keras-cv
@pytest.mark.parametrize("rescales", [True, False])
def test_a_backbone_of_keras_cv_predicts_and_is_restored_from_its_file(rescales, tmp_path):
    keras_cv = pytest.importorskip("keras_cv")
    network = keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[4, 8], stackwise_blocks=[2, 2], stackwise_strides=[1, 2], include_rescaling=rescales,
    )  # fmt: skip
    member = from_keras_cv(network, 4, image_size=(16, 12))
    np.testing.assert_allclose(
        member(IMAGES), pooled_logits(member, network(IMAGES if rescales else IMAGES / 255)), rtol=1e-3, atol=1e-5
    )
    member.save(tmp_path / "member.keras")
    np.testing.assert_allclose(from_keras_file(tmp_path / "member.keras")(IMAGES), member(IMAGES), atol=1e-6)
