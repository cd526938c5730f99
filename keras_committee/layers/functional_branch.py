"""A residual branch as a pure function, as conditionals and rematerialization require."""

import inspect

import keras
from keras import ops


def split_variables(branch):
    """Return three lists of the branch's variables: trainable weights, frozen weights, and state.

    State is what a call may change, such as moving statistics.
    """
    trainable = branch.trainable_variables
    weights = {id(v): v for layer in branch._flatten_layers() for v in layer._trainable_variables}
    state = [v for v in branch.variables if id(v) not in weights]
    for weight in trainable:
        weights.pop(id(weight), None)
    return trainable, list(weights.values()), state


def functional_branch(branch, training):
    """Return the branch as a function `(inputs, *values of its variables) -> (outputs, *new state)`."""
    trainable, frozen, state = split_variables(branch)
    variables = [*trainable, *frozen, *state]
    frozen_indices = range(len(trainable), len(trainable) + len(frozen))
    # Passed explicitly: rematerialization calls the branch after the layer's own call has returned.
    arguments = {"training": training} if "training" in inspect.signature(branch.call).parameters else {}

    def call_branch(inputs, *values):
        # A conditional computes gradients for everything that it reads, needed or not.
        values = [ops.stop_gradient(value) if index in frozen_indices else value for index, value in enumerate(values)]
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            outputs = branch(inputs, **arguments)
        # Otherwise a conditional would send zeros back through the new state and keep every activation on that path.
        return outputs, *(ops.stop_gradient(scope.get_current_value(v)) for v in state)

    return call_branch


def snapshot(state):
    """Return the current values of variables, unaffected by later assignments."""
    values = [ops.convert_to_tensor(v) for v in state]
    # PyTorch assigns in place, and the gradient still reads the old value.
    return [ops.copy(v) for v in values] if keras.backend.backend() == "torch" else values


def remat(function, num_trainable):
    """Return `function`, rematerialized: its activations are recomputed for the gradient instead of stored.

    Args:
        function: A function that `functional_branch` returned.
        num_trainable: Number of values, the first ones, that receive a gradient.
    """
    if keras.backend.backend() != "tensorflow":
        return keras.remat(function)

    import tensorflow as tf

    def recompute(*arguments):
        # Copied here for two reasons: the state changes later, and a gradient inside a conditional must not see one
        # tensor both from inside and from outside (TensorFlow 2.20 then feeds only one of the two).
        inputs, *values = [tf.identity(argument) for argument in arguments]
        new_states = []

        # Only the trainable values are arguments: integers, such as the state of a seed generator, have no gradient.
        @keras.remat
        def differentiable(inputs, *trainable):
            outputs, *state = function(inputs, *trainable, *values[num_trainable:])
            new_states.append(state)
            return outputs

        outputs = differentiable(inputs, *values[:num_trainable])
        return outputs, *new_states[0]

    return recompute


@ops.custom_gradient
def passthrough_with_zero_grads(shortcut, *weights):
    """Return the shortcut, with zero gradients for the weights. In eager mode their gradients would be None."""

    def gradient(*arguments, upstream=None):  # PyTorch passes `upstream` by name, the other backends by position
        upstream = arguments[0] if upstream is None else upstream
        return upstream, *(ops.zeros_like(w) for w in weights)

    return ops.stop_gradient(shortcut), gradient
