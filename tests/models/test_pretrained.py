"""Pretrained members: keras.applications against Keras' own preprocess_input, and backbones of keras-cv."""

import inspect
import math
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import flops
from keras_committee.errors import DataError, RecipeError, VerificationError
from keras_committee.export.inference_model import InferenceModel
from keras_committee.input_scaling import IMAGENET_MEAN, IMAGENET_STD
from keras_committee.models import from_keras_cv, from_keras_file, pretrained
from keras_committee.models.external import apply_input_scaling
from keras_committee.models.member_check import MemberCheck
from keras_committee.models.pretrained import application_names, application_normalization
from keras_committee.training.freezing import LayerFreezer

pretrained_module = sys.modules["keras_committee.models.pretrained"]  # the package has a function of this name

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
    member = pretrained("MobileNet", weights=file, weights_classes=5, **SMALL)
    expected = source(keras.applications.mobilenet.preprocess_input(pixels((32, 32)).copy()))
    outputs = keras.ops.softmax(member(pixels((32, 32))))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01


def test_another_number_of_classes_gets_a_new_last_layer_and_keeps_the_rest(mobilenet):
    source, file = mobilenet
    options = {"weights": file, "weights_classes": 5, "alpha": 0.25}
    member = pretrained("MobileNet", classes=3, image_size=(48, 32), **options)
    assert (member.input_shape, member.output_shape) == ((None, 48, 32, 3), (None, 3))
    layers = {layer.name: layer for layer in member._flatten_layers()}
    np.testing.assert_array_equal(layers["conv1"].kernel, source.get_layer("conv1").kernel)


def test_the_last_layer_is_called_logits_and_may_have_dropout_in_front(mobilenet):
    options = {"weights": mobilenet[1], "weights_classes": 5, **SMALL}
    member = pretrained("MobileNet", classes=3, dropout=0.75, resized_from=(20, 24), **options)
    assert (member.input_shape, member.output_shape) == ((None, 20, 24, 3), (None, 3))
    names = [layer.name for layer in member._flatten_layers()]
    assert {"logits", "logits_dropout"} <= set(names)
    LayerFreezer(member, lambda epoch: ["logits"], 1).begin_epoch(0)
    assert [variable.name for variable in member.trainable_variables] == ["kernel", "bias"]
    assert member.trainable_variables[0].shape[-1] == 3
    large = keras.ops.image.resize(pixels((20, 24)), (32, 32))
    inner = pretrained("MobileNet", classes=3, **options)
    inner.set_weights(member.get_weights())
    np.testing.assert_allclose(member(pixels((20, 24))), inner(large), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("deviation", [True, False])
def test_a_published_file_of_an_efficientnet_is_normalized_as_in_training(deviation):
    """The files hold the standard deviation of pixels where the variance belongs."""
    image = keras.Input((4, 3, 3))
    norm = keras.layers.Normalization()
    network = keras.Model(image, norm(keras.layers.Rescaling(1 / 255)(image)))
    mean, std = np.array(IMAGENET_MEAN) / 255, np.array(IMAGENET_STD) / 255
    norm.set_weights([mean, std if deviation else std**2, np.zeros((), np.int64)])
    norm.finalize_state()
    pretrained_module._correct_normalization(network)
    images = pixels((4, 3))
    np.testing.assert_allclose(network(images), (images / 255 - mean) / std, rtol=1e-4, atol=1e-5)


def test_random_weights_take_size_and_classes():
    member = pretrained("MobileNetV3Small", weights=None, classes=4, image_size=(32, 32), minimalistic=True)
    assert (member.input_shape, member.output_shape) == ((None, 32, 32, 3), (None, 4))
    assert member.outputs[0].dtype == "float32"


def test_unknown_networks_missing_files_and_wrong_options_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained_module, "_hub_presets", list)  # as without KerasHub, whose import takes seconds
    monkeypatch.setattr(pretrained_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no published network 'ResNet49'. Did you mean 'ResNet50'") as caught:
        pretrained("ResNet49", weights=None)
    assert 'pip install "keras-committee[kerashub]"' in str(caught.value)
    with pytest.raises(RecipeError, match=r"requires KerasHub, which is not installed.\n  pip install"):
        pretrained(tmp_path)
    with pytest.raises(DataError, match="There is no weights file"):
        pretrained("MobileNet", weights=tmp_path / "absent.h5", **SMALL)
    with pytest.raises(ValueError, match="include_preprocessing must be True for EfficientNetV2B0"):
        pretrained("EfficientNetV2B0", weights=None, include_preprocessing=False)
    with pytest.raises(ValueError, match="include_top must be True for MobileNet"):
        pretrained("MobileNet", weights=None, include_top=False)


def test_weights_of_another_number_of_classes_are_refused(mobilenet):
    with pytest.raises(
        DataError, match=r"does not hold the weights of MobileNet with 1,000 classes: [\s\S]*pass weights_classes"
    ):
        pretrained("MobileNet", weights=mobilenet[1], alpha=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_C04_every_network_gives_for_raw_pixels_the_outputs_of_keras_for_preprocessed_ones(name):
    size = (75, 75)  # the smallest that the Inception networks take
    member = randomized(pretrained(name, weights=None, classes=3, image_size=size))
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


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A classifier of KerasHub with five classes and the folder of its preset."""
    keras_hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(3)
    converter = keras_hub.layers.DenseNetImageConverter(
        image_size=(24, 20), scale=[1 / 50, 1 / 60, 1 / 70], offset=[-2.0, -1.8, -1.5], crop_to_aspect_ratio=True
    )
    task = keras_hub.models.DenseNetImageClassifier(
        backbone=keras_hub.models.DenseNetBackbone([1, 1, 1], compression_ratio=0.5, growth_rate=4),
        preprocessor=keras_hub.models.DenseNetImageClassifierPreprocessor(image_converter=converter),
        num_classes=5,
    )
    folder = tmp_path_factory.mktemp("presets") / "small"
    randomized(task).save_to_preset(folder)
    task.save_weights(folder.parent / "a.weights.h5")
    return task, folder


@pytest.mark.slow
def test_a_preset_of_keras_hub_predicts_as_its_own_task_resizing_included(preset, tmp_path):
    task, folder = preset
    images = pixels((40, 44), 3)
    member = pretrained(folder, resized_from=(40, 44))
    expected = task.predict(images, verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(member(images), expected, rtol=1e-4, atol=1e-5)
    exact = images[:, 8:32, 10:30]  # of the size of the preset: nothing is resized
    plain = pretrained(folder)
    np.testing.assert_allclose(plain(exact), task.predict(exact, verbose=0), rtol=1e-4, atol=1e-5)
    plain.save(tmp_path / "member.keras")
    loaded = from_keras_file(tmp_path / "member.keras")
    np.testing.assert_allclose(loaded(exact), plain(exact), atol=1e-6)
    inference = tf.function(InferenceModel(loaded, "member"), input_signature=[tf.TensorSpec((None, 24, 20, 3))])
    np.testing.assert_allclose(inference(exact), plain(exact), rtol=1e-4, atol=1e-5)
    assert flops.mflops(loaded) > 1
    larger = pretrained(folder, image_size=(48, 40))
    scaled = (pixels((48, 40)) / [50, 60, 70] + [-2.0, -1.8, -1.5]).astype("float32")
    np.testing.assert_allclose(larger(pixels((48, 40))), task(scaled), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_preset_gets_a_new_last_layer_or_weights_from_a_file(preset, tmp_path):
    task, folder = preset
    member = pretrained(folder, classes=4, dropout=0.2)
    layers = {layer.name: layer for layer in member._flatten_layers()}
    backbone = next(layer for layer in layers.values() if type(layer) is type(task.backbone))
    for ours, theirs in zip(backbone.get_weights(), task.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert layers["logits"].kernel.shape[-1] == 4
    MemberCheck()(member, 0, [])  # as a later command that has not imported KerasHub
    file = folder.parent / "a.weights.h5"
    from_file, random = pretrained(folder, weights=file), pretrained(folder, weights=None, image_size=(24, 20))
    images = pixels((24, 20))
    np.testing.assert_allclose(from_file(images), task.predict(images, verbose=0), rtol=1e-4, atol=1e-5)
    assert np.abs(random(images) - from_file(images)).max() > 0.1
    with pytest.raises(DataError, match=r"cannot be loaded: [\s\S]*pass the path of its folder"):
        pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Did you mean 'resnet_18_imagenet'\?"):
        pretrained("resnet_18_imagnet")
