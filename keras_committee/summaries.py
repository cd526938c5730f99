"""Content of TensorBoard summaries: hyperparameters, images and the graph of a network."""

import json
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.graph.keras_util import keras_model_to_graph_def
from tensorboard.plugins.hparams import summary_v2 as hparams


def hparams_summary(parameters: Mapping[str, Any], trial: str) -> Summary:
    """Return the recipe parameters of a run as a row of TensorBoard's HParams table.

    Args:
        parameters: The recipe parameters. Values other than numbers, strings and booleans are stored as JSON.
        trial: Name of the row, which also shows the scalars of the same folder.
    """
    hparam_values = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in parameters.items()
    }
    return hparams.hparams_pb(hparam_values, trial_id=trial)


def image_summary(tag: str, png: bytes) -> Summary:
    """Return an image summary from the content of a PNG file."""
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))  # in the IHDR chunk
    image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def network_graph(config: str) -> bytes:
    """Return the layers of a network as a serialized `GraphDef`.

    TensorBoard also reads the JSON of a Keras model, but reports an error when there is no graph of operations.

    Args:
        config: The result of `to_json` of a Keras model.
    """
    model = json.loads(config)
    graph, prefix = keras_model_to_graph_def(model), f"{model['config']['name']}/"
    for node in graph.node:  # with the prefix, TensorBoard would collapse all layers into one box
        inputs = [name.removeprefix(prefix) for name in node.input]
        node.name, node.input[:] = node.name.removeprefix(prefix), inputs
    return graph.SerializeToString()
