"""Content of TensorBoard summaries: hyperparameters, images and the graph of a network."""

import json
from collections.abc import Iterable, Iterator, Mapping
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
    _simplify_calls(model)
    graph, prefix = keras_model_to_graph_def(model), f"{model['config']['name']}/"
    for node in graph.node:  # with the prefix, TensorBoard would collapse all layers into one box
        inputs = [name.removeprefix(prefix) for name in node.input]
        node.name, node.input[:] = node.name.removeprefix(prefix), inputs
    return graph.SerializeToString()


def _simplify_calls(layer: dict[str, Any]) -> None:
    """Reduce the calls in the config of a model to their tensors, and its dtype policies to their compute dtypes.

    TensorBoard reads no others, no dictionaries in calls, and warns of each layer in mixed precision.
    """
    config = layer["config"]
    policy = config.get("dtype")
    if isinstance(policy, dict) and "name" in policy.get("config", ()):
        config["dtype"] = policy["config"]["name"].removeprefix("mixed_")
    for call in layer.get("inbound_nodes", ()):
        call["args"] = list(_find_tensors([call["args"], call["kwargs"]]))
    if "input_layers" in config:  # not in a Sequential
        config["input_layers"] = [name for name, *_ in _find_references(config["input_layers"])]
        config["output_layers"] = list(_find_references(config["output_layers"]))
    for inner_layer in config.get("layers", ()):
        _simplify_calls(inner_layer)


def _find_tensors(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the tensors in the arguments of a call, in their order."""
    if isinstance(node, dict) and node.get("class_name") == "__keras_tensor__":
        yield node
        return
    for child in _children(node):
        yield from _find_tensors(child)


def _find_references(node: Any) -> Iterator[list]:
    """Yield the references `[layer, call, output]` in the inputs or outputs of a model."""
    if isinstance(node, list) and node and isinstance(node[0], str):
        yield node
        return
    for child in _children(node):
        yield from _find_references(child)


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
