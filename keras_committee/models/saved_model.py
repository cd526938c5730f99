"""SavedModels of any origin as frozen members."""

import base64
from pathlib import Path
from typing import Any

import keras

from keras_committee.errors import VerificationError
from keras_committee.files import expand_home
from keras_committee.layers.graph import TensorFlowGraph, check_operations
from keras_committee.models.external import wrap_model


def from_saved_model(
    path: str | Path,
    *,
    signature: str = "serving_default",
    output: str | None = None,
    image_size: tuple[int, int] | None = None,
    **options: Any,
) -> keras.Model:
    """Return the network in a SavedModel as a member that is evaluated and exported like any other, but not trained.

    Its variables become the weights of a `layers.TensorFlowGraph` layer, and the signature becomes the graph of that
    layer. The member is saved as a `.keras` file that no longer needs the SavedModel.

    A SavedModel is a program: load it only if you trust its source. The graph that is kept is checked to contain only
    operations of a network.

    Args:
        path: Folder of the SavedModel, such as one that Model Garden, tf_keras or `keras.Model.export` wrote.
        signature: Name of a signature that takes one image `(batch, height, width, 3)`.
        output: Name of the output `(batch, classes)`. Required if there are several.
        image_size: `(height, width)` of the images, if the signature leaves it open.
        **options: Other arguments of `wrap_model`, such as `input_scaling`. The default `name` is that of the folder.

    Raises:
        VerificationError: If there is no such SavedModel, signature or output, or if it cannot be a member.
        ValueError: As in `wrap_model`.
    """
    return wrap_model(load_saved_model(path, signature=signature, output=output, image_size=image_size), **options)


def load_saved_model(
    path: str | Path,
    *,
    signature: str = "serving_default",
    output: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> keras.Model:
    """Load the network in a SavedModel, unchanged: `from_saved_model` without `wrap_model`."""
    path = expand_home(path)
    function = _load_signature(path, signature)
    image_spec, output_name = _find_image_input(path, function), _find_output(path, function, output)
    arguments, values = _freeze(path, function, image_spec, output_name)
    layer = TensorFlowGraph(**arguments, name="network")
    pixels = keras.Input(_image_shape(path, image_spec, image_size), name="image")
    network = keras.Model(pixels, layer(pixels), name=_default_name(path))
    layer.set_weights(values)
    return network


def _load_signature(path, name):
    import tensorflow as tf

    if not (path / "saved_model.pb").is_file():
        raise VerificationError(
            f"{path} is not a SavedModel: it has no saved_model.pb. Pass the folder of one version."
        )
    try:
        loaded: Any = tf.saved_model.load(str(path))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise VerificationError(f"{path} cannot be loaded as a SavedModel: {error}") from error
    if name not in loaded.signatures:
        available = ", ".join(sorted(loaded.signatures)) or "none"
        raise VerificationError(f"{path} has no signature {name!r}. Signatures: {available}.")
    function = loaded.signatures[name]
    function._loaded = loaded  # keeps the variables alive
    return function


def _find_image_input(path, function):
    inputs = function.structured_input_signature[1]
    (image, *other_inputs) = inputs.values()
    is_image = (
        not other_inputs
        and image.shape.rank == 4
        and image.shape[0] is None
        and image.dtype.is_floating | image.dtype.is_integer
    )
    if not is_image:
        description = ", ".join(f"{spec.name}: {spec.dtype.name} {spec.shape}" for spec in inputs.values())
        raise VerificationError(
            f"{path} must take one image (batch, height, width, channels) with any batch size. "
            f"Received: {description}.\n  Pass another signature."
        )
    return image


def _find_output(path, function, name):
    outputs = function.structured_outputs
    if name is None and len(outputs) == 1:
        (name,) = outputs
    if name not in outputs:
        problem = "has several outputs" if name is None else f"has no output {name!r}"
        raise VerificationError(f"{path} {problem}. Pass output, one of: {', '.join(sorted(outputs))}.")
    if outputs[name].shape.rank != 2 or outputs[name].shape[1] is None:
        raise VerificationError(f"{path} must return (batch, classes). The shape of {name!r} is {outputs[name].shape}.")
    return name


def _image_shape(path, image, size):
    height, width, channels = image.shape[1:]
    if size is not None:
        height, width = height or size[0], width or size[1]
    if None in (height, width, channels) or (size is not None and (height, width) != tuple(size)):
        raise VerificationError(
            f"{path} takes images {image.shape}. Pass a matching image_size. Received: image_size={size}."
        )
    return height, width, channels


def _default_name(path):
    """Return the name of the folder, or that of its parent if the folder is a version number."""
    name = path.resolve().name
    return path.resolve().parent.name if name.isdecimal() else name


def _freeze(path, function, image, output):
    """Return the arguments of the layer and the values of its weights."""
    from tensorflow.python.framework.convert_to_constants import (  # pyright: ignore[reportMissingImports]
        convert_variables_to_constants_v2,
    )

    variables = {id(variable.handle): variable for variable in function.variables}
    captured = {inner.op.name: variables.get(id(outer)) for outer, inner in function.graph.captures}
    frozen = convert_variables_to_constants_v2(function)
    graph_def = frozen.graph.as_graph_def()
    functions = [function.signature.name for function in graph_def.library.function]
    try:
        check_operations([*functions, *(node.op for node in graph_def.node)], str(path))
    except ValueError as error:
        raise VerificationError(str(error)) from error
    weights, values = _extract_weights(graph_def, captured)
    output_index = sorted(function.structured_outputs).index(output)
    return {
        "graph": base64.b64encode(graph_def.SerializeToString(deterministic=True)).decode(),
        "image_name": frozen.inputs[0].op.name,
        "output_name": frozen.outputs[output_index].name,
        "weight_list": weights,
        "classes": function.structured_outputs[output].shape[1],
    }, values


def _extract_weights(graph_def, captured):
    """Replace the constants that variables became by placeholders. Return the weights and their values."""
    import tensorflow as tf

    extracted = []
    for node in graph_def.node:
        node.device = ""
        variable = captured.get(node.name)
        if node.op != "Const" or variable is None or variable.dtype != tf.float32:
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        extracted.append(((node.name, value.shape, bool(variable.trainable)), value))
        node.op = "Placeholder"
        del node.attr["value"]
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    extracted.sort(key=lambda pair: not pair[0][2])  # Keras lists trainable weights first
    return [weight for weight, _ in extracted], [value for _, value in extracted]
