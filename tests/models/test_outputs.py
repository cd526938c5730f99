"""What a network's outputs are, by structure and by values: logits, probabilities, or neither."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_committee.errors import VerificationError
from keras_committee.models import from_saved_model, wrap_model
from keras_committee.models.external import wrap_model_with_report
from keras_committee.models.outputs import classify_outputs, noise_images

SHAPE = (6, 5, 3)
IMAGES = np.random.default_rng(3).uniform(0, 255, (4, *SHAPE)).astype("float32")


def network(activation=None, last=None, dtype=None):
    """A network of three classes that ends with `activation` in `dtype`, then with the function `last`."""
    keras.utils.set_random_seed(4)
    image = keras.Input(SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 64, -2.0)(image))
    x = keras.layers.Dense(3, activation, dtype=dtype, bias_initializer="random_normal")(x)
    return keras.Model(image, last(x) if last else x)


def nested(model_of_inputs):
    """A network whose last layer is a model of its 15 features."""
    keras.utils.set_random_seed(4)
    image = keras.Input(SHAPE)
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    return keras.Model(image, model_of_inputs(features))


def sequential_with_softmax(features):
    return keras.Sequential([keras.Input((90,)), keras.layers.Dense(3), keras.layers.Softmax()])(features)


def two_nested_models(features):
    inputs = keras.Input((90,))
    inner = keras.Model(inputs, keras.layers.Dense(3, "softmax")(inputs))
    outer = keras.Model(inputs, keras.layers.Dropout(0.5)(inner(inputs)))
    return outer(features)


def fully_convolutional():
    keras.utils.set_random_seed(4)
    image = keras.Input(SHAPE)
    maps = keras.layers.Conv2D(3, SHAPE[:2], activation="softmax")(keras.layers.Rescaling(1 / 255)(image))
    return keras.Model(image, keras.layers.Flatten()(maps))


def softmax_by_hand(x):
    powers = ops.exp(x - ops.max(x, axis=-1, keepdims=True))
    return powers / ops.sum(powers, axis=-1, keepdims=True)


WITH_REMOVABLE_SOFTMAX = {
    "activation of a dense layer": lambda: network("softmax"),
    "layer": lambda: network(None, keras.layers.Softmax()),
    "activation layer": lambda: network(None, keras.layers.Activation("softmax")),
    "operation": lambda: network(None, ops.softmax),
    "cast": lambda: network("softmax", lambda x: ops.cast(ops.cast(x, "float16"), "float32")),
    "linear activation": lambda: network("softmax", keras.layers.Activation("linear", dtype="float32")),
    "reshape": lambda: network("softmax", lambda x: ops.reshape(keras.layers.Reshape((1, 3))(x), (-1, 3))),
    "dropout": lambda: network("softmax", keras.layers.Dropout(0.5)),
    "nested Sequential": lambda: nested(sequential_with_softmax),
    "two nested models": lambda: nested(two_nested_models),
    "convolution": fully_convolutional,
}
WITH_PROBABILITIES = {
    "by hand": lambda: network(None, softmax_by_hand),
    "mean of two": lambda: network("softmax", lambda x: (x + ops.flip(x, axis=-1)) / 2),
    "linear layer of the softmax": lambda: network(
        "softmax", keras.layers.Dense(3, kernel_initializer="identity", use_bias=False)
    ),
    "bfloat16": lambda: network("softmax", lambda x: ops.roll(x, 1, axis=-1), dtype="bfloat16"),
    "float16": lambda: network("softmax", lambda x: ops.roll(x, 1, axis=-1), dtype="float16"),
}


def conversion(model, **options):
    defaults = {"input_scaling": "0..255", **dict.fromkeys(("class_order", "image_size", "resized_from", "name"))}
    return wrap_model_with_report(model, **{**defaults, **options})


def cases(models, reported):
    return [pytest.param(make, reported, id=name) for name, make in models.items()]


@pytest.mark.parametrize(
    ("make", "reported"),
    [
        *cases(WITH_REMOVABLE_SOFTMAX, "softmax removed"),
        *cases(WITH_PROBABILITIES, "logarithms of its probabilities"),
    ],
)
def test_probabilities_in_any_form_become_logits_of_the_same_probabilities(make, reported):
    model = make()
    member, found = conversion(model)
    assert found == reported
    expected = ops.convert_to_numpy(ops.cast(model(IMAGES), "float32"))
    tolerance = 2**-8 if "bfloat16" in str(model.outputs[0].dtype) else 2**-11
    np.testing.assert_allclose(ops.softmax(member(IMAGES)), expected, atol=tolerance, rtol=0)


LOGITS = {
    "linear": lambda: network(),
    "log-softmax": lambda: network("log_softmax"),
    "ReLU": lambda: network("relu"),
    "capped at 30": lambda: network(None, lambda x: 30 * ops.tanh(x / 30)),
    "batch normalization": lambda: network(None, keras.layers.BatchNormalization()),
    "excluded classes": lambda: network(None, lambda x: x + ops.array([0.0, -np.inf, 0.0])),
}


@pytest.mark.parametrize("make", LOGITS.values(), ids=LOGITS)
def test_logits_stay_as_they_are(make):
    model = make()
    member, found = conversion(model)
    assert found == "logits"
    np.testing.assert_allclose(member(IMAGES), model(IMAGES), rtol=1e-5)
    assert classify_outputs(model, noise_images(SHAPE)).kind == "logits"


BOUNDED = {
    **{
        name: (lambda name=name: network(name), f"ends with a {name}")
        for name in (
            "sigmoid",
            "hard_sigmoid",
            "tanh",
            "hard_tanh",
            "softsign",
            "log_sigmoid",
            "sparse_sigmoid",
            "sparsemax",
        )
    },
    "operation": (lambda: network(None, ops.sigmoid), "ends with a sigmoid"),
    "cast": (lambda: network("sigmoid", lambda x: ops.cast(x, "float16")), "ends with a sigmoid"),
    "nested": (lambda: nested(keras.Sequential([keras.layers.Dense(3, "tanh")])), "ends with a tanh"),
    "by hand": (lambda: network(None, lambda x: 1 / (1 + ops.exp(-x))), "returns numbers from 0 to 1, however"),
    "tanh by hand": (lambda: network(None, lambda x: 2 * ops.sigmoid(2 * x) - 1), "returns numbers from -1 to 1"),
}


@pytest.mark.parametrize(("make", "words"), BOUNDED.values(), ids=BOUNDED)
def test_outputs_that_are_neither_logits_nor_probabilities_are_refused(make, words):
    with pytest.raises(VerificationError, match=rf"{words}(.|\n)*neither logits nor probabilities that sum to 1"):
        wrap_model(make())


def test_one_output_of_two_classes_is_refused_with_the_remedy():
    image = keras.Input(SHAPE)
    model = keras.Model(image, keras.layers.Dense(1, "sigmoid")(keras.layers.Flatten()(image)))
    with pytest.raises(VerificationError, match=r"one output for each class(.|\n)*concatenate\(\[1 - p, p\]"):
        wrap_model(model)
    p = model.outputs[0]
    member = wrap_model(keras.Model(image, ops.concatenate([1 - p, p], axis=-1)))
    np.testing.assert_allclose(ops.softmax(member(IMAGES))[:, 1:], model(IMAGES), atol=1e-5)


def test_a_softmax_over_another_axis_than_the_classes_is_not_one_of_the_classes():
    image = keras.Input(SHAPE)
    pairs = keras.layers.Reshape((2, 2))(keras.layers.Dense(4)(keras.layers.Flatten()(image)))
    for axis in (-1, 1):
        model = keras.Model(image, keras.layers.Flatten()(keras.layers.Softmax(axis)(pairs)))
        with pytest.raises(VerificationError, match="returns numbers from 0 to 1"):
            wrap_model(model)


def test_the_values_are_those_for_images_in_the_declared_scaling():
    image = keras.Input(SHAPE)
    brightness = keras.layers.GlobalAveragePooling2D()(image)[:, :1]  # a probability for pixels 0..1 only
    model = keras.Model(image, ops.concatenate([1 - brightness, brightness], axis=-1))
    assert conversion(model, input_scaling="0..1")[1] == "logarithms of its probabilities"
    assert conversion(model, input_scaling="0..255")[1] == "logits"


@pytest.mark.parametrize("bias", [(0.0, 0.0, 0.0), (-4.6, -4.6, -4.6), (0.5, 1.0, 2.0)])
def test_equal_outputs_for_every_image_are_accepted_of_an_untrained_model_only(bias):
    model = network("softmax")
    model.layers[-1].set_weights([np.zeros((3, 3)), np.array(bias)])
    if len(set(bias)) == 1:
        assert conversion(model)[1] == "softmax removed"
        return
    with pytest.raises(VerificationError, match=r"the same outputs for every image: \[0\.5, 1\.0, 2\.0\]"):
        wrap_model(model)


def test_the_model_itself_is_not_changed():
    for make in (*WITH_REMOVABLE_SOFTMAX.values(), *WITH_PROBABILITIES.values()):
        model = make()
        before, config = np.asarray(ops.cast(model(IMAGES), "float32")), model.get_config()
        wrap_model(model)
        np.testing.assert_array_equal(ops.cast(model(IMAGES), "float32"), before)
        assert model.get_config() == config


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModels run on TensorFlow only")
@pytest.mark.parametrize(
    ("make", "reported"),
    [
        (lambda: network("softmax"), "softmax removed"),
        (lambda: network("softmax", keras.layers.Reshape((3,))), "softmax removed"),
        (lambda: network("softmax", lambda x: ops.roll(x, 1, axis=-1)), "logarithms of its probabilities"),
        (lambda: network(), "logits"),
        (lambda: network("sigmoid", keras.layers.Reshape((3,))), "ends with a sigmoid"),
        (lambda: network("hard_sigmoid"), "returns numbers from 0 to 1"),
    ],
)
def test_a_saved_model_is_classified_by_the_operations_of_its_graph(make, reported, tmp_path):
    model = make()
    model.export(str(tmp_path), verbose=False)
    if reported.startswith(("ends", "returns")):
        with pytest.raises(VerificationError, match=reported):
            from_saved_model(tmp_path)
        return
    from keras_committee.models.saved_model import load_saved_model

    loaded = load_saved_model(tmp_path)
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), atol=1e-6)
    member, found = conversion(loaded)
    assert found == reported
    if found != "logits":
        np.testing.assert_allclose(ops.softmax(member(IMAGES)), model(IMAGES), atol=1e-6)
