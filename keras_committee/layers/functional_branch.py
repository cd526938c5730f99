"""How does a branch run as a pure function, which conditionals and rematerialisation ask for?"""

import inspect

import keras
from keras import ops


def split_variables(branch):
    """The weights that are trained, those that are frozen, and what a call may change, such as moving statistics."""
    trained = branch.trainable_variables
    weights = {id(v): v for layer in branch._flatten_layers() for v in layer._trainable_variables}
    state = [v for v in branch.variables if id(v) not in weights]
    for weight in trained:
        weights.pop(id(weight), None)
    return trained, list(weights.values()), state


def functional_branch(branch, training):
    """The branch as a function `(inputs, *values of its variables) -> (outputs, *its new state)`."""
    trained, frozen, state = split_variables(branch)
    variables, frozen_indices = [*trained, *frozen, *state], range(len(trained), len(trained) + len(frozen))
    # Given by hand, as rematerialisation calls the branch after the layer's own call has ended.
    arguments = {"training": training} if "training" in inspect.signature(branch.call).parameters else {}

    def call_branch(inputs, *values):
        # A conditional computes the gradient of all that it reads, asked or not.
        values = [ops.stop_gradient(value) if index in frozen_indices else value for index, value in enumerate(values)]
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            outputs = branch(inputs, **arguments)
        # Without the stop a conditional would send zeros back through the new state, and keep all that this takes.
        return outputs, *(ops.stop_gradient(scope.get_current_value(v)) for v in state)

    return call_branch


def snapshot(state):
    """The values of variables now, whatever is assigned later."""
    values = [ops.convert_to_tensor(v) for v in state]
    # PyTorch assigns in place, under the gradient that still reads the old value.
    return [ops.copy(v) for v in values] if keras.backend.backend() == "torch" else values


def remat(function, num_trainable):
    """`function`, whose first `num_trainable` values are trainable, run again for its gradient instead of remembered."""
    if keras.backend.backend() != "tensorflow":
        return keras.remat(function)

    import tensorflow as tf

    def recompute(*arguments):
        # Read here, as the state will have moved on; and made here, as a gradient inside a conditional must not know
        # one tensor from within and from without (TensorFlow 2.20 then feeds only one of the two).
        inputs, *values = [tf.identity(argument) for argument in arguments]
        new_states = []

        # Integers, such as the state of a seed generator in the branch, have no gradient to be recomputed for.
        @keras.remat
        def differentiable(inputs, *trained):
            outputs, *state = function(inputs, *trained, *values[num_trainable:])
            new_states.append(state)
            return outputs

        outputs = differentiable(inputs, *values[:num_trainable])
        return outputs, *new_states[0]

    return recompute


@ops.custom_gradient
def passthrough_with_zero_grads(shortcut, *weights):
    """The shortcut, with a gradient of zero for the weights; run eagerly, they would have none at all."""

    def gradient(*arguments, upstream=None):  # PyTorch passes `upstream` by name, the others by position
        upstream = arguments[0] if upstream is None else upstream
        return upstream, *(ops.zeros_like(w) for w in weights)

    return ops.stop_gradient(shortcut), gradient
