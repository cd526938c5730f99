"""Fold stochastic depth into the weights: the plain network that a network is at inference."""

import keras

from keras_committee.flops.counting import has_graph
from keras_committee.layers.stochastic_depth import StochasticDepth

INFERENCE_IDENTITIES = (
    keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout, keras.layers.GaussianNoise, keras.layers.Identity,
)  # fmt: skip
LINEAR_LAYERS = (
    keras.layers.Dense, keras.layers.EinsumDense,
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
    keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
)  # fmt: skip


def fold_stochastic_depth(model: keras.Model) -> keras.Model:
    """Return the same network without stochastic depth: each branch's scale is folded into its weights.

    `shortcut + p * branch(x)` becomes a plain `Add`, and p is multiplied into the last layer of the branch: gamma and
    beta of a batch normalization, or kernel and bias of a convolution or dense layer. Layers of a Sequential branch
    become layers of the model itself. At inference the result equals the original up to rounding.

    Args:
        model: Functional or Sequential model, which is not changed. Nested models are folded too. For an `Ensemble`,
            fold its members.

    Returns:
        Functional model with the same inputs and outputs and its own weights.

    Raises:
        ValueError: If the model is not a graph of layers, or if a branch ends in a layer that cannot be scaled.

    Source: Huang et al. 2016, arXiv:1603.09382, equation 5.
    """
    folder = _StochasticDepthFolder()
    folded = folder.clone(model)
    folder.transfer_weights()
    return folded


class _FoldedBlock:
    """The replacement of a block in the copy: copies of the layers of its branch, and an addition."""

    def __init__(self, name, layers):
        self.layers = layers
        self.add = keras.layers.Add(name=name)

    def __call__(self, x, shortcut=None, training=None):
        outputs = x
        for layer in self.layers:
            outputs = layer(outputs)
        return self.add([x if shortcut is None else shortcut, outputs])


class _StochasticDepthFolder:
    """Clones models, with one copy per layer however often the layer is called."""

    def __init__(self):
        self._copies = {}  # id of the original -> (original, copy)

    def clone(self, model):
        if not has_graph(model):
            raise ValueError(
                f"Cannot fold {model.name!r}: it is not a graph of layers. Define it as a functional model."
            )
        # Only a functional model records how its layers are called.
        is_sequential = isinstance(model, keras.Sequential)
        graph = keras.Model(model.inputs[0], model.outputs[0], name=model.name) if is_sequential else model
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
                raise ValueError(f"Cannot fold {block.name!r}: {last.name!r} also ends the branch of another block.")
            scaled_ids.add(id(last))
            _scale_weights(self._copies[id(last)][1], _inference_scale(block))

    def _copy(self, layer):
        if id(layer) not in self._copies:
            self._copies[id(layer)] = (layer, self._create_copy(layer))
        return self._copies[id(layer)][1]

    def _create_copy(self, layer):
        if isinstance(layer, StochasticDepth):
            _last_weighted_layer(layer.branch, layer)  # raises before anything is copied
            layers = layer.branch.layers if isinstance(layer.branch, keras.Sequential) else [layer.branch]
            return _FoldedBlock(layer.name, [self._copy(part) for part in layers])
        if isinstance(layer, keras.Model):
            return self.clone(layer)
        return layer.__class__.from_config(layer.get_config())


def _inference_scale(block):
    return block.survival if block.scaling == "inference" else float(block.survival > 0)


def _last_weighted_layer(branch, block):
    """Return the layer whose weights can be multiplied by the scale of the branch, or raise `ValueError`."""
    layer = branch
    while isinstance(layer, keras.Model):
        layer = _final_layer(layer)
    is_norm = isinstance(layer, keras.layers.BatchNormalization) and layer.scale
    is_linear = isinstance(layer, LINEAR_LAYERS) and layer.activation is keras.activations.linear
    if not is_norm and not is_linear:
        raise ValueError(
            f"Cannot fold {block.name!r}: its branch ends in {layer.name!r} ({type(layer).__name__}). It must end in a "
            "batch normalization with scale=True, or in a convolution or dense layer without activation."
        )
    return layer


def _final_layer(model):
    """Return the operation behind the model's output, ignoring layers that do nothing at inference."""
    tensor = model.outputs[0]
    operation = tensor._keras_history.operation
    while isinstance(operation, INFERENCE_IDENTITIES):
        tensor = operation._inbound_nodes[tensor._keras_history.node_index].input_tensors[0]
        operation = tensor._keras_history.operation
    return operation


def _scale_weights(layer, scale):
    names = ("gamma", "beta") if isinstance(layer, keras.layers.BatchNormalization) else ("kernel", "bias")
    for variable in (getattr(layer, name, None) for name in names):
        if variable is not None:
            variable.assign(variable * scale)
