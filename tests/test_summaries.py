"""TensorBoard summaries, read with TensorBoard's own parsers."""

import io

import keras
import numpy as np
from matplotlib.figure import Figure
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.types_pb2 import DT_BFLOAT16, DT_FLOAT
from tensorboard.plugins.hparams import metadata

from keras_committee import layers
from keras_committee.summaries import hparams_summary, image_summary, network_graph


def test_hparams_are_numbers_strings_and_booleans_and_json_of_other_values():
    parameters = {"rate": 0.7, "members": 3, "mode": "batch", "pre": True, "drops": (0.3, 0.6), "data_dir": None}
    [value] = hparams_summary(parameters, "first").value
    info = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
    assert info.group_name == "first"
    hparams = {name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()}
    assert hparams == {
        "rate": 0.7,
        "members": 3.0,
        "mode": "batch",
        "pre": True,
        "drops": "[0.3, 0.6]",
        "data_dir": "null",
    }


def test_an_image_summary_has_the_bytes_and_the_size_of_the_png():
    png = io.BytesIO()
    Figure((3, 2)).savefig(png, format="png", dpi=50)
    [value] = image_summary("confusion", png.getvalue()).value
    assert (value.tag, value.image.width, value.image.height) == ("confusion", 150, 100)
    assert value.image.encoded_image_string == png.getvalue()


def network():
    """Return a network with a shortcut around a block, and a nested network."""
    image = keras.Input((4,), name="image")
    x = keras.layers.Dense(3, name="stem")(image)
    skipped = layers.StochasticDepth(keras.layers.Dense(3), survival=0.7, name="block_1")(x, x)
    inside = keras.Input((3,), name="inside")
    head = keras.Model(inside, keras.layers.Dense(2, name="logits")(inside), name="head")
    return keras.Model(image, head(keras.layers.Add(name="sum")([skipped, x])), name="network")


def test_the_graph_has_a_node_for_each_layer_and_its_inputs():
    graph = GraphDef.FromString(network_graph(network().to_json()))
    assert {node.name: set(node.input) for node in graph.node} == {
        "image": set(),
        "stem": {"image"},
        "block_1": {"stem"},
        "sum": {"block_1", "stem"},
        "head/inside": {"sum"},
        "head/logits": {"head/inside"},
    }
    assert {node.attr["keras_class"].s for node in graph.node} >= {b"StochasticDepth", b"Dense", b"Add"}


def test_the_graph_of_a_deep_network_is_complete():
    image = x = keras.Input((4,), name="image")
    for number in range(60):
        x = keras.layers.Dense(4, name=f"dense_{number}")(x)
    graph = GraphDef.FromString(network_graph(keras.Model(image, x).to_json()))
    assert np.all(
        [node.input[0] == previous.name for previous, node in zip(graph.node[:-1], graph.node[1:], strict=True)]
    )


def edges(outputs, image):
    graph = GraphDef.FromString(network_graph(keras.Model(image, outputs).to_json()))
    return {node.name: list(node.input) for node in graph.node}


def test_numbers_and_keywords_in_calls_are_no_obstacle():
    keras.utils.clear_session()  # operations are named subtract, subtract_1, ...
    image = keras.Input((4, 4), name="image")
    scaled = (image - 127) / 255.0
    attended = keras.layers.MultiHeadAttention(1, 2, name="attend")(query=image, value=scaled)
    found = edges(keras.ops.stack([attended, scaled**2], axis=0), image)
    assert found["subtract"] == ["image"]
    assert found["true_divide"] == ["subtract"]
    assert found["power"] == ["true_divide"]
    assert found["attend"] == ["image", "true_divide"]
    assert found["stack"] == ["attend", "power"]


def test_a_nested_model_that_is_called_with_a_dictionary_is_drawn():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    total = keras.Model(
        {"left": left, "right": right}, {"sum": keras.layers.Add(name="add")([left, right])}, name="total"
    )
    image = keras.Input((4,), name="image")
    x = keras.layers.Dense(4, name="dense")(image)
    found = edges(keras.layers.ReLU(name="relu")(total({"left": image, "right": x})["sum"]), image)
    assert found["total/left"] == ["image"]
    assert found["total/right"] == ["dense"]
    assert found["relu"] == ["total/add"]


def test_mixed_precision_is_drawn_without_warnings(caplog):
    image = keras.Input((4,), name="image")
    hidden = keras.layers.Dense(3, name="hidden", dtype="mixed_bfloat16")(image)
    config = keras.Model(image, keras.layers.Dense(2, name="logits", dtype="float32")(hidden)).to_json()
    with caplog.at_level("WARNING"):
        graph = GraphDef.FromString(network_graph(config))
    types = {node.name: node.attr["dtype"].type for node in graph.node}
    assert types == {"image": DT_FLOAT, "hidden": DT_BFLOAT16, "logits": DT_FLOAT}
    assert not caplog.records
