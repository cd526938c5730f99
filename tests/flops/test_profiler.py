"""Multiply-adds compared with TensorFlow's profiler and published figures."""

import math

import keras
import pytest

from keras_committee import flops
from keras_committee.models import Cascade, Ensemble, resnet, wide_resnet, with_input_size

COUNTED = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2")


def attention():
    image = keras.Input((16, 20, 3))
    x = keras.layers.Reshape((20, 12))(keras.layers.Conv2D(12, 4, strides=4)(image))
    x = keras.layers.MultiHeadAttention(3, 5, value_dim=7)(x, x)
    return keras.Model(image, keras.layers.Dense(7)(keras.layers.GlobalAveragePooling1D()(x)))


def published(name, size=32):
    make = getattr(keras.applications, name)
    return pytest.param(lambda: make(weights=None, input_shape=(size, size, 3), classes=7), id=name)


def einsum_flops(operation):
    """Twice the product of the sizes of all labels; the profiler does not count einsum."""
    terms = operation.get_attr("equation").decode().split("->")[0].split(",")
    sizes = {}
    for term, tensor in zip(terms, operation.inputs, strict=True):
        sizes.update(zip(term, tensor.shape.as_list(), strict=True))
    return 2 * math.prod(sizes.values())


def profiled(model):
    import tensorflow as tf

    image = tf.TensorSpec((1, *model.input_shape[1:]))
    graph = tf.function(lambda image: model(image, training=False)).get_concrete_function(image).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options = {**options, "output": "none", "account_type_regexes": [f"{kind}$" for kind in COUNTED]}
    einsums = [operation for operation in graph.get_operations() if operation.type == "Einsum"]
    total = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops
    return total + sum(einsum_flops(each) for each in einsums)


FAST = [
    pytest.param(lambda: wide_resnet(16, 2, classes=7), id="WRN-16-2"),
    pytest.param(lambda: resnet(14, classes=7), id="ResNet-14"),
    pytest.param(attention, id="attention"),
    published("MobileNet"),
]
SLOW = [
    *map(published, ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "VGG16")),
    *map(published, ("ResNet50", "ResNet50V2")),
    published("Xception", 71),
]
backend = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's profiler is TensorFlow's")


@backend
@pytest.mark.parametrize("make", FAST)
def test_the_profiler_agrees(make):
    model = make()
    assert profiled(model) == 2 * flops.multiply_adds(model)


@backend
@pytest.mark.slow
@pytest.mark.parametrize("make", SLOW)
def test_the_profiler_agrees_on_published_networks(make):
    model = make()
    assert profiled(model) == 2 * flops.multiply_adds(model)


@backend
def test_the_profiler_agrees_on_committees_and_cascades_of_several_resolutions():
    net = wide_resnet(10, 1, classes=7)
    small, members = with_input_size(net, (20, 24)), [with_input_size(net, (20, 24)), wide_resnet(10, 2, classes=7)]
    for model in (small, Ensemble(members, image_size="largest"), Cascade(members, (0.5,), image_size="largest")):
        assert profiled(model) == 2 * flops.multiply_adds(model)


@pytest.mark.parametrize(
    ("depth", "width", "parameters", "millions"),
    [(16, 1, 0.175, 26.7), (16, 2, 0.692, 101.1), (16, 4, 2.749, 392.6), (16, 8, 10.961, 1548.1)],
)
def test_wide_resnets_cost_what_the_table_says(depth, width, parameters, millions):
    model = wide_resnet(depth, width, classes=10)
    assert flops.parameters(model) / 1e6 == pytest.approx(parameters, abs=0.0005)
    assert flops.multiply_adds(model) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.slow
def test_resnet_110_costs_what_the_table_says():
    model = resnet(110, classes=10)
    assert flops.parameters(model) / 1e6 == pytest.approx(1.73, abs=0.005)
    assert flops.multiply_adds(model) / 1e6 == pytest.approx(252.9, abs=0.05)


def dense(units, shape=(6, 5, 3)):
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.Dense(units)(keras.layers.Flatten()(image))))


def test_the_average_cost_of_a_cascade_follows_its_exit_rates():
    cascade = Cascade([dense(2), dense(7), dense(5)], (0.5,), stages=(1, 3))
    one, two, three = (units * (90 + 4) for units in (2, 7, 5))
    assert flops.member_multiply_adds(cascade) == [one, two, three]
    average, worst = flops.cascade_multiply_adds(cascade, (0.7, 0.3))
    assert (average, worst) == (pytest.approx(one + 0.3 * (two + three)), one + two + three)
    average, worst = flops.cascade_multiply_adds(Ensemble([dense(2), dense(7)]), (0.2, 0.8))
    assert (average, worst) == (pytest.approx(one + 0.8 * two), one + two)


def test_a_network_at_two_resolutions_costs_both_and_the_resizing():
    image = keras.Input((8, 6, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 3, padding="same", use_bias=False)(image))
    net = keras.Model(image, pooled, name="net")
    cascade = Cascade([with_input_size(net, (4, 3)), net], (0.5,), image_size="largest")
    resize = 4 * 6 * 3 * 8 + 4 * 3 * 3 * 6
    assert flops.member_multiply_adds(cascade) == [resize + 4 * 3 * 27 * 5, 8 * 6 * 27 * 5]
    assert flops.multiply_adds(cascade) == sum(flops.member_multiply_adds(cascade))
    assert flops.parameters(cascade) == 27 * 5


@pytest.mark.parametrize("rates", [(0.5, 0.2), (1.0,), (1.2, -0.2)])
def test_rates_that_are_not_fractions_raise(rates):
    with pytest.raises(ValueError, match=r"exit_rates must be 2 fractions, one per stage, that sum to 1\. Received"):
        flops.cascade_multiply_adds(Ensemble([dense(2), dense(7)]), rates)
