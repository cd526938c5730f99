"""Counts compared with explicit loops."""

import keras
import numpy as np
import pytest

from keras_committee import flops
from keras_committee.layers import StochasticDepth
from keras_committee.models import Ensemble

L = keras.layers


def macs(layer, shape):
    """Multiply-adds of one layer on one input of this shape."""
    image = keras.Input(shape)
    return flops.multiply_adds(keras.Model(image, layer(image)))


def products_of_a_convolution(out, kernel, channels, filters, groups=1):
    """Count one at a time: output positions, kernel positions, channels of the group, filters."""
    return sum(1 for _ in np.ndindex(*out, *kernel, channels // groups, filters))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (L.Conv1D(5, 3), (9, 4), products_of_a_convolution((7,), (3,), 4, 5)),
        (L.Conv2D(6, (3, 2), strides=2, padding="same"), (7, 5, 4), products_of_a_convolution((4, 3), (3, 2), 4, 6)),
        (L.Conv2D(6, 3, groups=2), (7, 5, 4), products_of_a_convolution((5, 3), (3, 3), 4, 6, groups=2)),
        (L.Conv2D(6, 3, dilation_rate=2), (7, 6, 4), products_of_a_convolution((3, 2), (3, 3), 4, 6)),
        (L.Conv3D(2, 2), (3, 4, 5, 3), products_of_a_convolution((2, 3, 4), (2, 2, 2), 3, 2)),
        (L.DepthwiseConv1D(3, depth_multiplier=2), (9, 4), products_of_a_convolution((7,), (3,), 1, 8)),
        (L.DepthwiseConv2D((3, 2)), (7, 5, 4), products_of_a_convolution((5, 4), (3, 2), 1, 4)),
        (
            L.SeparableConv2D(6, 3, depth_multiplier=2),
            (7, 5, 4),
            products_of_a_convolution((5, 3), (3, 3), 1, 8) + products_of_a_convolution((5, 3), (1, 1), 8, 6),
        ),
        (L.Conv2DTranspose(6, 3, strides=2), (3, 2, 4), products_of_a_convolution((3, 2), (3, 3), 4, 6)),
        (L.Dense(6), (4,), 4 * 6),
        (L.Dense(6), (5, 3, 4), 5 * 3 * 4 * 6),
        (L.EinsumDense("abc,cd->abd", (5, 6)), (5, 4), 5 * 4 * 6),
        (L.EinsumDense("abc,bcd->abd", (5, 6)), (5, 4), 5 * 4 * 6),
        (L.EinsumDense("...xc,cde->...xde", (5, 6, 2)), (7, 5, 4), 7 * 5 * 4 * 6 * 2),
        (L.BatchNormalization(), (5, 3, 4), 0),
        (L.LayerNormalization(axis=(1, 2)), (5, 4), 0),
        (L.PReLU(), (5, 4), 0),
        (L.Embedding(11, 3), (5,), 0),
        (L.MaxPooling2D(), (6, 4, 3), 0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_layer_costs_as_much_as_its_loop(layer, shape, expected):
    assert macs(layer, shape) == expected


def attention_by_hand(t, s, query, key, value, heads, key_dim, value_dim, out):
    projections = heads * (t * query * key_dim + s * key * key_dim + s * value * value_dim)
    return projections + heads * t * s * (key_dim + value_dim) + t * heads * value_dim * out


def test_attention_counts_projections_scores_and_their_use():
    layer = L.MultiHeadAttention(3, 5, value_dim=7, output_shape=11)
    query, value, key = keras.Input((4, 8)), keras.Input((6, 10)), keras.Input((6, 9))
    model = keras.Model([query, value, key], layer(value=value, key=key, query=query))
    assert flops.multiply_adds(model) == attention_by_hand(4, 6, 8, 9, 10, 3, 5, 7, 11)
    assert flops.parameters(model) == layer.count_params()


def test_attention_over_one_axis_of_two():
    layer, image = L.MultiHeadAttention(3, 5, attention_axes=(2,)), keras.Input((4, 6, 8))
    row = attention_by_hand(6, 6, 8, 8, 8, 3, 5, 5, 8)
    assert flops.multiply_adds(keras.Model(image, layer(image, image))) == 4 * row


def conv_net(size=8, shape=None):
    image = keras.Input(shape or (size, size, 3))
    x = L.Conv2D(4, 3, padding="same", name="conv")(image)
    x = L.BatchNormalization(name="norm")(x)
    return keras.Model(image, L.Dense(5, name="logits")(L.GlobalAveragePooling2D(name="pool")(x)), name="net")


CONV_NET = 8 * 8 * 3 * 3 * 3 * 4 + 4 * 5


def test_layers_are_listed_in_execution_order():
    rows = {cost.name: (cost.kind, cost.parameters, cost.multiply_adds) for cost in flops.count(conv_net())}
    assert rows["conv"] == ("Conv2D", 3 * 3 * 3 * 4 + 4, 8 * 8 * 3 * 3 * 3 * 4)
    assert rows["norm"] == ("BatchNormalization", 4 + 4, 0)
    assert rows["pool"] == ("GlobalAveragePooling2D", 0, 0)
    assert rows["logits"] == ("Dense", 4 * 5 + 5, 4 * 5)


def test_mflops_count_a_multiply_add_as_two():
    assert flops.mflops(conv_net()) == pytest.approx(2 * CONV_NET / 1e6)


def test_a_layer_called_twice_costs_twice_and_weighs_once():
    image, layer = keras.Input((6, 4)), L.Dense(4)
    model = keras.Model(image, layer(layer(image)))
    layer(keras.Input((100, 4)))  # a call outside of the model
    (cost,) = [cost for cost in flops.count(model) if cost.kind == "Dense"]
    assert (cost.parameters, cost.multiply_adds) == (4 * 4 + 4, 2 * 6 * 4 * 4)


def test_nested_models_prefix_the_names_of_their_layers():
    inner = keras.Sequential([keras.Input((8, 8, 3)), conv_net()], name="inner")
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, L.Dense(2, name="top")(inner(image)))
    assert flops.multiply_adds(model) == CONV_NET + 5 * 2
    assert "inner/net/conv" in [cost.name for cost in flops.count(model)]


def test_a_nested_model_of_any_size_counts_at_the_size_it_is_called_with():
    image = keras.Input((8, 8, 3))
    assert flops.multiply_adds(keras.Model(image, conv_net(shape=(None, None, 3))(image))) == CONV_NET


def test_a_committee_costs_the_sum_of_its_members():
    members = [conv_net(), conv_net()]
    assert flops.multiply_adds(Ensemble(members)) == 2 * CONV_NET
    assert flops.parameters(Ensemble(members)) == 2 * flops.parameters(conv_net())
    twice = Ensemble([members[0], members[0]])
    assert (flops.multiply_adds(twice), flops.parameters(twice)) == (2 * CONV_NET, flops.parameters(conv_net()))


def test_frozen_weights_count():
    model = conv_net()
    before = flops.parameters(model)
    model.trainable = False
    assert flops.parameters(model) == before == 3 * 3 * 3 * 4 + 4 + 8 + 25


def test_counting_does_not_modify_the_model():
    model = conv_net()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    flops.count(model)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes


class Bilinear(keras.layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], shape[-1]), name="matrix")

    def call(self, inputs):
        return inputs @ self.matrix


class Counted(Bilinear):
    def multiply_adds(self, input_shape, output_shape):
        assert input_shape == output_shape == (1, 5, 4)
        return 5 * 4 * 4


class Branched(keras.layers.Layer):
    """A layer around one branch, like StochasticDepth."""

    def __init__(self, branch):
        super().__init__(name="block")
        self.branch = branch

    def call(self, inputs, shortcut):
        return shortcut + self.branch(inputs)


class Subclassed(keras.Model):
    """A model without a graph."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.dense = L.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


class Undecided(Bilinear):
    def multiply_adds(self, input_shape, output_shape):
        raise ValueError("its shapes are unknown")


@pytest.mark.parametrize(
    ("layer", "name", "parameters"),
    [
        (Bilinear(name="odd"), "'odd' (Bilinear)", 4 * 4),
        (Undecided(name="odd"), "'odd' (Undecided)", 4 * 4),
        (L.LSTM(4, return_sequences=True, name="rows"), "'rows' (LSTM)", 4 * (4 * 4 + 4 * 4 + 4)),
        (L.SpectralNormalization(L.Dense(4), name="norm"), "'norm' (SpectralNormalization)", 4 * 4 + 4),
        (Subclassed(), "'subclassed' (Subclassed)", 4 * 4 + 4),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_cost_of_an_unknown_layer_with_a_weight_matrix_is_unknown(layer, name, parameters):
    image = keras.Input((5, 4))
    model = keras.Model(image, L.Dense(3)(layer(image)))
    assert flops.uncounted_layers(model) == [name]
    assert flops.parameters(model) == parameters + 4 * 3 + 3
    assert [cost.multiply_adds for cost in flops.count(model)] == [None, 5 * 4 * 3]
    totals = (flops.multiply_adds, flops.mflops, flops.expected_multiply_adds, flops.expected_flops_reduction)
    assert [total(model) for total in totals] == [None] * 4
    assert flops.inference_memory(model) > 0


def test_a_committee_with_a_member_of_unknown_cost_has_the_costs_of_the_others():
    image = keras.Input((8, 8, 3))
    unknown = keras.Model(image, L.Dense(5)(L.LSTM(4, name="rows")(L.Reshape((8, 24))(image))))
    ensemble = Ensemble([conv_net(), unknown])
    assert flops.member_multiply_adds(ensemble) == [CONV_NET, None]
    assert flops.multiply_adds(ensemble) is None
    with pytest.raises(ValueError, match=r"Cannot count '.*/rows' \(LSTM\)\. Define `multiply_adds\(input_shape"):
        flops.cascade_multiply_adds(ensemble, [0.7, 0.3], [1, 2])


def test_a_call_with_a_training_mode_is_counted():
    image = keras.Input((7, 5, 4))
    model = keras.Model(image, L.Conv2D(6, 3)(L.BatchNormalization()(image, training=False), training=False))
    assert flops.multiply_adds(model) == products_of_a_convolution((5, 3), (3, 3), 4, 6)


def test_a_layer_may_count_itself():
    assert macs(Counted(), (5, 4)) == 5 * 4 * 4


def test_a_layer_around_a_branch_costs_its_branch():
    branch = keras.Sequential([keras.Input((5, 4)), L.Dense(3), L.Dense(4)], name="branch")
    image = keras.Input((5, 4))
    costs = flops.count(keras.Model(image, Branched(branch)(image, image)))
    assert sum(cost.multiply_adds for cost in costs) == 5 * (4 * 3 + 3 * 4)
    assert sum(cost.parameters for cost in costs) == branch.count_params()


def test_an_unknown_image_shape_raises():
    with pytest.raises(ValueError, match=r"known image shape\. Received: \(None, None, None, 3\)"):
        flops.count(conv_net(shape=(None, None, 3)))


def test_a_model_without_a_graph_raises():
    with pytest.raises(ValueError, match="Cannot count 'unbuilt': the model has no graph"):
        flops.count(keras.Sequential([L.Dense(3)], name="unbuilt"))


@pytest.mark.parametrize(
    ("name", "least", "most"), [("EfficientNetB0", 0.385e9, 0.405e9), ("MobileNet", 0.565e9, 0.575e9)]
)
def test_published_networks_cost_what_their_papers_say(name, least, most):
    model = getattr(keras.applications, name)(weights=None)
    assert least < flops.multiply_adds(model) < most
    assert flops.parameters(model) == sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's profiler is TensorFlow's")
def test_tensorflows_profiler_agrees_on_convolutions_and_matrix_products():
    import tensorflow as tf

    model = conv_net()
    graph = tf.function(model).get_concrete_function(tf.TensorSpec((1, 8, 8, 3))).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options = {**options, "output": "none", "account_type_regexes": ["Conv2D", "MatMul"]}
    profiled = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops
    assert profiled == 2 * flops.multiply_adds(model)


def test_a_block_that_is_skipped_costs_its_survival_in_training():
    def block(mode):
        image = keras.Input((4, 4, 3), name="image")
        branch = keras.Sequential([keras.layers.Conv2D(3, 3, padding="same", use_bias=False)])
        x = StochasticDepth(branch, survival=0.2, mode=mode)(image)
        return keras.Model(image, keras.layers.Dense(7, use_bias=False)(keras.layers.Flatten()(x)))

    convolution, dense = 4 * 4 * 3 * 3 * 3 * 3, 4 * 4 * 3 * 7
    for mode in ("batch", "subset"):
        assert flops.multiply_adds(block(mode)) == convolution + dense
        assert flops.expected_multiply_adds(block(mode)) == pytest.approx(0.2 * convolution + dense)
        assert flops.expected_flops_reduction(block(mode)) == pytest.approx(0.8 * convolution / (convolution + dense))
    assert flops.expected_flops_reduction(block("sample")) == 0.0


def test_blocks_within_blocks_multiply_their_survival():
    inner = keras.Sequential([StochasticDepth(keras.layers.Dense(5, use_bias=False), survival=0.7)])
    image = keras.Input((5,), name="image")
    model = keras.Model(image, StochasticDepth(inner, survival=0.2)(image))
    assert flops.expected_multiply_adds(model) == pytest.approx(0.2 * 0.7 * 25)
