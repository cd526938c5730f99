"""On which devices does a member train?"""

import functools

import tensorflow as tf

from keras_committee.errors import RecipeError

NAMES = ("auto", "one", "mirrored")


def make_strategy(name: str, batch_size: int) -> tf.distribute.Strategy:
    """The distribution strategy called `name`, checked against the global batch.

    Args:
        name: `"one"`: one device, the first GPU where there is one. `"mirrored"`: every GPU, or every logical CPU where
            there is no GPU, each with a copy of the weights. `"auto"`: mirrored where there are several GPUs, else one.
        batch_size: Examples in a global batch; each replica takes an equal part of it.

    Raises:
        RecipeError: If the name is unknown, there is nothing to mirror on, or the batch cannot be divided equally.
    """
    if name not in NAMES:
        raise RecipeError(f"unknown strategy '{name}'. Use one of: {', '.join(NAMES)}.")
    gpus = tf.config.list_logical_devices("GPU")
    if name == "one" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    devices = tuple(device.name for device in gpus or tf.config.list_logical_devices("CPU"))
    if len(devices) < 2:
        raise RecipeError(
            f"strategy 'mirrored' needs at least two devices; TensorFlow sees only: {', '.join(devices)}.\n"
            "  Use --strategy one."
        )
    if batch_size % len(devices):
        raise RecipeError(
            f"a global batch of {batch_size} cannot be divided equally among {len(devices)} devices.\n"
            f"  Use a batch size that is a multiple of {len(devices)}, or --strategy one."
        )
    return _mirrored(devices)


def uses_xla(strategy: tf.distribute.Strategy) -> bool:
    """Whether the training step is compiled with XLA.

    On CPU it made the step of WRN-16-1 1.7 times slower than TensorFlow's own kernels, so never there. On a single GPU
    Keras' default is kept (not measured by us); Keras turns XLA off under several replicas, and so does this.
    """
    return strategy.num_replicas_in_sync == 1 and "GPU" in strategy.extended.worker_devices[0]


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """One strategy for the whole process.

    A second one on the same devices counts its collectives from the start again, and TensorFlow 2.20 then mistakes
    them for those of the first ("Shape mismatch in the collective instance").
    """
    return tf.distribute.MirroredStrategy(devices)
