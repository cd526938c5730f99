"""How does a network with stochastic depth become the plain network it is at inference?"""

import keras

from keras_committee.layers.stochastic_depth import StochasticDepth

_INFERENCE_IDENTITIES = (
    keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout, keras.layers.GaussianNoise, keras.layers.Identity,
)  # fmt: skip
_LINEAR_LAYERS = (
    keras.layers.Dense, keras.layers.EinsumDense,
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
    keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
)  # fmt: skip


def fold_stochastic_depth(model: keras.Model) -> keras.Model:
    """The same network without stochastic depth: the scale of each branch goes into the branch's own weights.

    `shortcut + p * branch(x)` becomes a plain `Add`, and p multiplies gamma and beta of the batch normalisation, or
    kernel and bias of the convolution or dense layer, with which the branch ends. Layers of a Sequential branch become
    layers of the model around it. At inference the result equals the original to rounding.

    Args:
        model: Functional or Sequential model; models nested in it are folded too. It stays as it is. Of an
            `Ensemble`, fold the members.

    Returns:
        Functional model of the same inputs and outputs, with weights of its own.

    Raises:
        ValueError: If the model is not a graph of layers, or a branch ends in something p cannot be multiplied into.

    Source: Huang et al. 2016, arXiv:1603.09382, equation 5.
    """
    folder = _StochasticDepthFolder()
    folded = folder.clone(model)
    folder.transfer_weights()
    return folded


class _FoldedBlock:
    """What stands for a block in the copy: the copies of its branch's layers, the addition."""

    def __init__(self, name, layers):
        self.layers = layers
        self.add = keras.layers.Add(name=name)

    def __call__(self, x, shortcut=None, training=None):
        outputs = x
        for layer in self.layers:
            outputs = layer(outputs)
        return self.add([x if shortcut is None else shortcut, outputs])


class _StochasticDepthFolder:
    """The copies made so far, one for each original however often it is called."""

    def __init__(self):
        self._copies = {}  # id of the original -> (original, copy)

    def clone(self, model):
        if not hasattr(getattr(model, "_functional", model), "_run_through_graph"):
            raise ValueError(f"Cannot fold {model.name!r}: it is no graph of layers. Define it as a functional model.")
        # Only a functional model says how each of its layers is called.
        graph = keras.Model(model.inputs[0], model.outputs[0], name=model.name) if _is_sequential(model) else model
        return keras.models.clone_model(
            graph, clone_function=self._copy, call_function=lambda copy, *args, **kwargs: copy(*args, **kwargs)
        )

    def transfer_weights(self):
        blocks = []
        for original, copy in self._copies.values():
            if isinstance(original, StochasticDepth):
                blocks.append(original)
            elif isinstance(original, keras.layers.Layer) and not isinstance(copy, keras.Model):
                copy.set_weights(original.get_weights())
        scaled_ids = set()
        for block in blocks:
            last = _last_weighted_layer(block.branch, block)
            if id(last) in scaled_ids:
                raise ValueError(f"Cannot fold {block.name!r}: {last.name!r} ends the branch of another block, too.")
            scaled_ids.add(id(last))
            _scale_weights(self._copies[id(last)][1], _inference_scale(block))

    def _copy(self, layer):
        if id(layer) not in self._copies:
            self._copies[id(layer)] = (layer, self._create_copy(layer))
        return self._copies[id(layer)][1]

    def _create_copy(self, layer):
        if isinstance(layer, StochasticDepth):
            _last_weighted_layer(layer.branch, layer)  # raises where p has nowhere to go
            layers = layer.branch.layers if _is_sequential(layer.branch) else [layer.branch]
            return _FoldedBlock(layer.name, [self._copy(part) for part in layers])
        if isinstance(layer, keras.Model):
            return self.clone(layer)
        return layer.__class__.from_config(layer.get_config())


def _is_sequential(layer):
    return isinstance(layer, keras.Sequential)


def _inference_scale(block):
    return block.survival if block.scaling == "inference" else float(block.survival > 0)


def _last_weighted_layer(branch, block):
    """The layer whose weights can carry the scale of the branch."""
    layer = branch
    while isinstance(layer, keras.Model):
        layer = _final_layer(layer)
    normalized = isinstance(layer, keras.layers.BatchNormalization) and layer.scale
    linear = isinstance(layer, _LINEAR_LAYERS) and layer.activation is keras.activations.linear
    if not normalized and not linear:
        raise ValueError(
            f"Cannot fold {block.name!r}: its branch ends in {layer.name!r} ({type(layer).__name__}). It must end in a "
            "batch normalisation with scale=True, or in a convolution or dense layer without activation."
        )
    return layer


def _final_layer(model):
    """The operation that makes the model's output, before layers that do nothing at inference."""
    tensor = model.outputs[0]
    operation = tensor._keras_history.operation
    while isinstance(operation, _INFERENCE_IDENTITIES):
        tensor = operation._inbound_nodes[tensor._keras_history.node_index].input_tensors[0]
        operation = tensor._keras_history.operation
    return operation


def _scale_weights(layer, scale):
    names = ("gamma", "beta") if isinstance(layer, keras.layers.BatchNormalization) else ("kernel", "bias")
    for variable in (getattr(layer, name, None) for name in names):
        if variable is not None:
            variable.assign(variable * scale)
