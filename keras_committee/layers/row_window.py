"""Which rows of a batch survive a step, and how are they taken out and put back?"""

import contextlib

import keras
from keras import ops


class PerReplicaSeedGenerator(keras.random.SeedGenerator):
    """Seeds that differ between replicas, where the states of seed generators are mirrored: all alike."""

    def next(self, ordered=True):
        return super().next(ordered) + ops.convert_to_tensor([_replica_id() * 1_000_003, 0], dtype=self.state.dtype)


def run_on_cpu():
    """The device to draw on: a conditional reads its predicate on the CPU, and waits for one drawn on a GPU."""
    return keras.device("CPU:0") if keras.backend.backend() == "tensorflow" else contextlib.nullcontext()


def num_replicas() -> int:
    """The number of replicas that train together under the strategy in scope."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def row_window(random_values, num_rows, survival):
    """The surviving rows of a batch: all of them, the first or the second half, or none.

    A half is kept with probability `2 * min(p, 1 - p)`, either one as likely; otherwise all rows are where p >= 1/2,
    and none where p < 1/2. So each row survives with probability p exactly, p * b rows do on average, and a branch sees
    at least half a batch if it sees any. A window of p * b rows would have to wrap around the end for the first and
    last rows to be as likely as the others, which takes two more copies, and would have another shape in each block,
    for which oneDNN and cuDNN prepare their kernels anew.

    Args:
        random_values: float32 `(2,)`, drawn from [0, 1).
        num_rows: int32 scalar b.
        survival: float32 scalar p in [0, 1].

    Returns:
        int32 scalars: the first row and the number of rows.
    """
    is_half = random_values[0] < 2.0 * ops.minimum(survival, 1.0 - survival)
    is_second = random_values[1] < 0.5
    half = num_rows // 2
    count = ops.where(is_half, ops.where(is_second, num_rows - half, half), ops.where(survival >= 0.5, num_rows, 0))
    return ops.where(is_half & is_second, half, 0), count


def switch_branches(first, count, num_rows):
    """Which of the windows that a program must foresee is the one drawn.

    TensorFlow's shapes may change from step to step: it foresees the drawn window only, whatever that is. Elsewhere a
    shape is a number, and all windows of `window` that hold rows are foreseen.

    Args:
        first, count: int32 scalars, from `window`.
        num_rows: Integer b, on TensorFlow possibly an int32 scalar.

    Returns:
        The number of the drawn window in the list, counted from 1, or 0 if it holds no rows (on TensorFlow True or
        False); and the list of windows `(first, count)`.
    """
    if keras.backend.backend() == "tensorflow":
        return count > 0, [(first, count)]
    half = num_rows // 2
    windows = sorted({(0, 0), (0, half), (half, num_rows - half), (0, num_rows)})  # of a single row: two
    matches = [ops.equal(first, f) & ops.equal(count, c) for f, c in windows]
    return ops.argmax(ops.stack(matches)), windows[1:]


def slice_rows(x, first, count):
    """`x` itself, for `put`, and its rows in the window.

    The two functions are a pair: going back, `put` sends the whole gradient to `x` and `cut` writes the gradient of the
    rows over it. That takes one pass over memory, where slices take a zero-padded copy each and a sum. Windows of
    Python integers, which are those of other backends than TensorFlow, are sliced: XLA fuses the copies.
    """
    if isinstance(count, int):
        return x, get_rows(x, first, count)

    @ops.custom_gradient
    def identity_and_rows(x):
        # Inside a conditional TensorFlow wants outputs made there; stop_gradient is the identity that is.
        return (ops.stop_gradient(x), get_rows(x, first, count)), lambda full_gradient, rows: _replace_rows(
            full_gradient, rows, first, count
        )

    return identity_and_rows(x)


def write_rows(x, rows, first, count):
    """`x`, from `cut`, with its rows in the window replaced by `rows`."""
    if isinstance(count, int):
        return _concat_rows(x, rows, first, count)

    @ops.custom_gradient
    def replace(x, rows):
        return _replace_rows(x, rows, first, count), lambda upstream: (upstream, get_rows(upstream, first, count))

    return replace(x, rows)


def get_rows(x, first, count):
    """The rows of `x` in the window."""
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
