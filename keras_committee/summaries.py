"""How do knobs, pictures and a network become what TensorBoard reads? Whoever has an event file writes it there."""

import json
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.graph.keras_util import keras_model_to_graph_def
from tensorboard.plugins.hparams import summary_v2 as hparams


def hparams_summary(parameters: Mapping[str, Any], trial: str) -> Summary:
    """The knobs of a run, for the table of HParams: a row for each `trial`, beside the scalars of the same folder.

    Which knobs and scalars there are TensorBoard gathers from all runs it is shown. It takes numbers, words and
    switches; every other value becomes JSON.
    """
    hparam_values = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in parameters.items()
    }
    return hparams.hparams_pb(hparam_values, trial_id=trial)


def image_summary(tag: str, png: bytes) -> Summary:
    """A picture, the content of a PNG file."""
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))  # where PNG keeps them
    image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def network_graph(config: str) -> bytes:
    """A network, layer by layer, as a serialized `GraphDef`; `config` is what `to_json` of a Keras model returns.

    TensorBoard takes Keras' own form, too, but opens its page with an error unless there is a graph of operations.
    """
    model = json.loads(config)
    graph, prefix = keras_model_to_graph_def(model), f"{model['config']['name']}/"
    for node in graph.node:  # or all would be hidden in one box
        inputs = [name.removeprefix(prefix) for name in node.input]
        node.name, node.input[:] = node.name.removeprefix(prefix), inputs
    return graph.SerializeToString()
