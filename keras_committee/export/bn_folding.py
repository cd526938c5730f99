"""Which batch normalisations vanish into the layers around them?

At inference a normalisation is `scale * x + shift`. After a linear layer that nothing else reads it is folded into that
layer. After a sum, as in pre-activation networks, it is split. The shift is added ahead of it, to the bias of a layer
that the sum adds up, so that the residual stream runs `shift / scale` higher there; a later sum takes it out again
through the bias of its own branch. The scale, above 0, passes through the ReLU into the kernels behind it. What is left
of the normalisation is nothing.
"""

import collections
import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_LINEAR = (*_CONVOLUTIONS, keras.layers.DepthwiseConv2D, keras.layers.Dense)


class Wiring:
    """All calls of layers in a model and in the models nested in it.

    Args:
        model: Functional or Sequential model.

    Attributes:
        nodes: Keras' node of each call.

    Raises:
        ValueError: If the model is not a graph of layers.
    """

    def __init__(self, model: keras.Model):
        graphs = list(_graphs(model, set()))
        self.nodes = [node for each in graphs for node in _nodes(each)]
        self._uses = collections.Counter(id(node.operation) for node in self.nodes)
        self._makers = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self._readers = collections.defaultdict(list)
        for node in self.nodes:
            for tensor in node.input_tensors:
                self._readers[id(tensor)].append(node)
        for tensor in (tensor for each in graphs for tensor in each.outputs):
            self._readers[id(tensor)].append(None)

    def maker(self, tensor: Any) -> Any:
        """The node that makes `tensor`; None for an input of a model."""
        return self._makers.get(id(tensor))

    def readers(self, tensor: Any) -> list:
        """The nodes that read `tensor`; None among them where it is an output of a model."""
        return self._readers[id(tensor)]

    def once(self, layer: Any) -> bool:
        """Whether the layer is called once in all."""
        return self._uses[id(layer)] == 1

    def is_free(self, layer: Any) -> bool:
        """Whether the layer's own kernel and bias alone make what its one call returns."""
        return is_linear(layer) and self.once(layer) and layer.activation is keras.activations.linear

    def is_plain_norm(self, node: Any) -> bool:
        """Whether the node is the one call of a batch normalisation of the last axis."""
        layer = node.operation
        last = is_norm(layer) and layer.axis in (-1, len(node.input_tensors[0].shape) - 1)
        return last and self.once(layer) and not node.arguments.kwargs.get("training")


def graph_of(model: keras.Model) -> Any:
    """What runs a model's layers. Raises ValueError where the model is none such."""
    if not is_graph(model):
        raise ValueError(f"Cannot export {model.name!r}: it is no graph of layers. Define it as a functional model.")
    return getattr(model, "_functional", model)  # a Sequential keeps its graph there


def is_graph(layer: Any) -> bool:
    return hasattr(getattr(layer, "_functional", layer), "_run_through_graph")


def is_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def is_linear(layer: Any) -> bool:
    """Whether it multiplies by a kernel: a subclass may not, and quantised weights are no kernel to change."""
    known = type(layer) in _LINEAR and layer.quantization_mode is None
    return known and getattr(layer, "data_format", "channels_last") == "channels_last"


def _graphs(model, seen):
    """The graph of the model and those of the models in it, each once."""
    graph = graph_of(model)
    if id(graph) in seen:
        return
    seen.add(id(graph))
    yield graph
    for node in _nodes(graph):
        if is_graph(node.operation):
            yield from _graphs(node.operation, seen)


def _nodes(graph):
    return [node for nodes in graph._nodes_by_depth.values() for node in nodes if not node.is_input]


# A stream that runs so much higher loses 32 * 2**-24 = 2e-6 to rounding. Of 65 such normalisations in four trained
# WRN-16-1 and one WRN-16-2 the largest is 4.
FARTHEST = 32.0
_PASS_SCALES = (
    keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D,
    keras.layers.MaxPooling2D, keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.Identity,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Absorbed:
    """What becomes of the normalisations; layers are told by `id`.

    Args:
        folded: Normalisation -> the linear layer before it that takes it whole.
        split: Normalisation that is shared out between the layers ahead and behind -> whether others read its input.
        scales: Linear layer -> float64 `(channels,)` that multiplies its inputs.
        shifts: Linear layer -> float64 `(filters,)` that is added to its outputs.
    """

    folded: dict[int, Any]
    split: dict[int, bool] = dataclasses.field(default_factory=dict)
    scales: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    shifts: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


def absorb(wiring: Wiring) -> Absorbed:
    """Decides for every normalisation; those in neither `folded` nor `split` stay."""
    absorbed = Absorbed(dict(_folded(wiring)))
    higher = {}  # id of a tensor -> how much higher it is to run
    for node in wiring.nodes:
        if wiring.is_plain_norm(node) and id(node.operation) not in absorbed.folded:
            _split(wiring, node, absorbed, higher)
    for node in wiring.nodes:
        _compensate(wiring, node, absorbed, higher)
    return absorbed


def scale_and_shift(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """float64 `(channels,)`: the normalisation is `inputs * scale + shift` at inference."""
    scale = 1.0 / np.sqrt(float64(norm.moving_variance) + norm.epsilon)
    scale = scale * float64(norm.gamma) if norm.scale else scale
    shift = -float64(norm.moving_mean) * scale
    return scale, shift + float64(norm.beta) if norm.center else shift


def float64(variable: Any) -> np.ndarray:
    return ops.convert_to_numpy(variable).astype(np.float64)


def _folded(wiring):
    """Each normalisation with the linear layer whose output it alone reads."""
    for node in filter(wiring.is_plain_norm, wiring.nodes):
        tensor = node.input_tensors[0]
        maker = wiring.maker(tensor)
        if maker is not None and wiring.is_free(maker.operation) and len(wiring.readers(tensor)) == 1:
            yield id(node.operation), maker.operation


def _split(wiring, node, absorbed, higher):
    norm, tensor = node.operation, node.input_tensors[0]
    scale, shift = scale_and_shift(norm)
    if not (scale > 0).all() or np.abs(shift / scale).max() > FARTHEST:
        return
    behind = _kernels_behind(wiring, node.outputs[0])
    if behind is None or not _may_run_higher(wiring, tensor, norm, absorbed):
        return
    absorbed.split[id(norm)] = len(wiring.readers(tensor)) > 1
    absorbed.scales.update({id(layer): scale for layer in behind})
    higher[id(tensor)] = shift / scale


def _kernels_behind(wiring, tensor):
    """The linear layers that read `tensor`, right away or behind what a positive scale passes; None if others do."""
    layers = []
    for node in wiring.readers(tensor):
        if node is None:
            return None
        if _takes_scales(node.operation) and wiring.once(node.operation):
            layers.append(node.operation)
            continue
        further = _kernels_behind(wiring, node.outputs[0]) if _passes_scales(node.operation) else None
        if further is None:
            return None
        layers += further
    return layers


def _takes_scales(layer):
    return is_linear(layer) and getattr(layer, "groups", 1) == 1


def _passes_scales(layer):
    if isinstance(layer, keras.layers.ReLU):
        return layer.max_value is None and not layer.threshold
    relu = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu
    return relu or type(layer) in _PASS_SCALES


def _may_run_higher(wiring, tensor, norm, absorbed):
    """Whether a constant can be added to `tensor` where it is made, and taken out again by all others who read it."""
    maker = wiring.maker(tensor)
    made = maker is not None and (wiring.is_free(maker.operation) or _compensator(wiring, maker, absorbed) is not None)
    others = [node for node in wiring.readers(tensor) if node is None or node.operation is not norm]
    return made and all(node is not None and _compensator(wiring, node, absorbed) is not None for node in others)


def _compensator(wiring, node, absorbed):
    """The linear layer that only the sum `node` reads, whose bias can therefore move the sum; None if there is none."""
    shapes = {tuple(tensor.shape) for tensor in node.input_tensors}
    if type(node.operation) is not keras.layers.Add or not wiring.once(node.operation) or len(shapes) > 1:
        return None
    for tensor in reversed(node.input_tensors):
        maker = wiring.maker(tensor)
        layer = None if maker is None else absorbed.folded.get(id(maker.operation), maker.operation)
        if layer is not None and wiring.is_free(layer) and wiring.readers(tensor) == [node]:
            return layer
    return None


def _compensate(wiring, node, absorbed, higher):
    """Lets what makes a tensor that runs higher add the difference to what it reads."""
    difference = higher.get(id(node.outputs[0]), 0.0)
    layer = node.operation
    if isinstance(layer, keras.layers.Add):
        difference = difference - sum(higher.get(id(tensor), 0.0) for tensor in node.input_tensors)
        layer = _compensator(wiring, node, absorbed)
    if np.any(difference):
        absorbed.shifts[id(layer)] = difference
