"""Contiguous windows of the rows of a batch: random choice, slicing and writing back."""

import contextlib

import keras
from keras import ops


class PerReplicaSeedGenerator(keras.random.SeedGenerator):
    """A seed generator with different seeds on each replica.

    The state of Keras' generators is mirrored, so that all replicas would draw the same numbers.
    """

    def next(self, ordered=True):
        return super().next(ordered) + ops.convert_to_tensor([_replica_id() * 1_000_003, 0], dtype=self.state.dtype)


def run_on_cpu():
    """Return a scope that draws random numbers on the CPU, where a conditional reads its predicate without waiting."""
    return keras.device("CPU:0") if keras.backend.backend() == "tensorflow" else contextlib.nullcontext()


def num_replicas() -> int:
    """Return the number of replicas that train together under the strategy in scope."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def row_window(random_values, num_rows, survival):
    """Choose the rows of a batch that survive: all, the first half, the second half, or none.

    One half is kept with probability `2 * min(p, 1 - p)`, the first and the second equally likely. Otherwise all rows
    are kept if p >= 1/2 and none if p < 1/2. Each row therefore survives with probability exactly p, p * b rows survive
    on average, and a branch that runs processes at least half a batch. A window of p * b rows would have to wrap around
    the end to make all rows equally likely, which needs two more copies. It would also have another shape in each
    block, for which oneDNN and cuDNN prepare new kernels.

    Args:
        random_values: float32 `(2,)`, uniform in [0, 1).
        num_rows: int32 scalar b.
        survival: float32 scalar p in [0, 1].

    Returns:
        Two int32 scalars: the index of the first row and the number of rows.
    """
    is_half = random_values[0] < 2.0 * ops.minimum(survival, 1.0 - survival)
    is_second = random_values[1] < 0.5
    half = num_rows // 2
    count = ops.where(is_half, ops.where(is_second, num_rows - half, half), ops.where(survival >= 0.5, num_rows, 0))
    return ops.where(is_half & is_second, half, 0), count


def switch_branches(first, count, num_rows):
    """Return the branches of a switch over windows, and the index of the chosen one.

    On TensorFlow shapes may change from step to step, so the chosen window is the only branch. On the other backends
    shapes are constants, so every window of `row_window` that holds rows is a branch.

    Args:
        first: int32 scalar, from `row_window`.
        count: int32 scalar, from `row_window`.
        num_rows: Integer b; on TensorFlow possibly an int32 scalar.

    Returns:
        The position of the chosen window in the list, counted from 1, or 0 if it holds no rows (on TensorFlow True or
        False), and the list of windows `(first, count)`.
    """
    if keras.backend.backend() == "tensorflow":
        return count > 0, [(first, count)]
    half = num_rows // 2
    windows = sorted({(0, 0), (0, half), (half, num_rows - half), (0, num_rows)})  # only two for a single row
    matches = [ops.equal(first, f) & ops.equal(count, c) for f, c in windows]
    return ops.argmax(ops.stack(matches)), windows[1:]


def slice_rows(x, first, count):
    """Return `x`, to be passed to `write_rows`, and its rows in the window.

    The two functions form a pair: in the backward pass `write_rows` sends the whole gradient to `x`, and `slice_rows`
    overwrites it with the gradient of the rows. That takes one pass over memory; plain slices need a zero-padded copy
    each and a sum. Windows of Python integers, as on all backends but TensorFlow, are sliced: XLA fuses the copies.
    """
    if isinstance(count, int):
        return x, get_rows(x, first, count)

    @ops.custom_gradient
    def identity_and_rows(x):
        # Inside a conditional TensorFlow requires outputs created there; stop_gradient creates one.
        return (ops.stop_gradient(x), get_rows(x, first, count)), lambda full_gradient, rows: _replace_rows(
            full_gradient, rows, first, count
        )

    return identity_and_rows(x)


def write_rows(x, rows, first, count):
    """Return `x`, from `slice_rows`, with its rows in the window replaced by `rows`."""
    if isinstance(count, int):
        return _concat_rows(x, rows, first, count)

    @ops.custom_gradient
    def replace(x, rows):
        return _replace_rows(x, rows, first, count), lambda upstream: (upstream, get_rows(upstream, first, count))

    return replace(x, rows)


def get_rows(x, first, count):
    """Return the rows of `x` in the window."""
    return x[first : first + count]


def _replace_rows(x, rows, first, count):
    return ops.cond(
        ops.equal(count, ops.shape(x)[0]),
        lambda: rows,  # no copy
        lambda: _concat_rows(x, rows, first, count),
    )


def _concat_rows(x, rows, first, count):
    return ops.concatenate([x[:first], rows, x[first + count :]], axis=0)


def _replica_id():
    if keras.backend.backend() != "tensorflow":
        return 0
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group if context else 0
