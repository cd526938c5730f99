"""Worker process of `benchmarks/training.py`: Keras' `fit`, our training step, or the convolutions alone.

    python keras_worker.py '{"kind": "fit", ...}'     # started by benchmarks/training.py, which controls it over a pipe

Kinds: "fit", the loop of Keras with the pipeline of its guides; "member", our training step on our stream;
"convolutions", nothing else. The modes of the last two begin with the precision, as in "mixed_bfloat16/stream".
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from turns import turns

from keras_committee import models
from keras_committee.checkpoints import Checkpoints
from keras_committee.data import Split, Splits, pad_crop_flip
from keras_committee.data.images import InMemoryImages
from keras_committee.layers.normalization import BatchNormalization
from keras_committee.member_dir import MemberDir
from keras_committee.training.devices import make_strategy
from keras_committee.training.member_state import MemberState
from keras_committee.training.tensorboard import MemberLog
from keras_committee.training.train_step import BlockStats, make_train_step

ENDLESS = 1_000_000


def network(spec):
    return models.wide_resnet(16, spec["width"], classes=10, l2=2.5e-4)


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def optimizer():
    return keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)


def load_examples(spec):
    with np.load(spec["data"]) as file:
        return file["images"], file["labels"]


class Turns(keras.callbacks.Callback):
    """Let `fit` take a step when it is this worker's turn; exit after the last turn."""

    def __init__(self, spec):
        super().__init__()
        self._turns = turns(["warm-up"], spec["warmup_steps"])

    def on_train_batch_begin(self, batch, logs=None):
        if next(self._turns, None) is None:
            sys.exit()


def fit(spec):
    """Run the loop of Keras, with the precision, `compile(jit_compile=...)` and batch normalization of `spec`."""
    keras.config.set_dtype_policy(spec["precision"])
    model = network(spec)
    if spec["norm"] == "keras":
        model = keras.models.clone_model(model, clone_function=clone_with_keras_norm)
    model.compile(optimizer(), loss(), metrics=["accuracy"], jit_compile=spec["jit_compile"])
    dataset = tf_data_pipeline(*load_examples(spec), spec["batch"])
    model.fit(dataset, shuffle=False, epochs=ENDLESS, verbose=0, callbacks=[Turns(spec)])  # the dataset shuffles


def clone_with_keras_norm(layer):
    """Return a copy of `layer`; our batch normalization becomes that of Keras."""
    config = layer.get_config()
    if not isinstance(layer, BatchNormalization):
        return layer.from_config(config)
    return keras.layers.BatchNormalization.from_config({**config, "synchronized": False})


def tf_data_pipeline(images, labels, batch_size):
    """Return the shuffled, augmented `tf.data` pipeline of a Keras guide."""

    def augment(image, label):
        image = tf.image.random_crop(tf.pad(image, [[4, 4], [4, 4], [0, 0]]), (32, 32, 3))
        return tf.image.random_flip_left_right(image), label

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels))
    dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def member(spec):
    """Run our training step on our stream, on one repeated batch ("cached"), or write a checkpoint ("checkpoint")."""
    images, labels = load_examples(spec)
    split = Split(images=InMemoryImages(images), labels=labels)
    splits = Splits(
        classes=tuple("0123456789"), train=split, validation=split, test=split,
        batch_size=spec["batch"], augment=pad_crop_flip(4),
    )  # fmt: skip
    stream = iter(splits.stream(spec["member"], 0, ENDLESS))
    cached = next(stream)
    with tempfile.TemporaryDirectory() as folder:
        trained = {
            precision: member_step(precision, spec, MemberDir(Path(folder), index))
            for index, precision in enumerate(spec["precisions"])
        }
        for mode in turns([f"{precision}/cached" for precision in trained], spec["warmup_steps"]):
            precision, kind = mode.split("/")
            step, end_epoch = trained[precision]
            if kind == "checkpoint":
                end_epoch()
            else:
                step(*(cached if kind == "cached" else next(stream)))


def member_step(precision, spec, member_dir):
    """Return our training step of a new member, and a function that writes what an epoch's end writes."""
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(spec["member"])
    model, sgd = network(spec), optimizer()
    sgd.build(model.trainable_variables)
    step = make_train_step(model, sgd, loss(), make_strategy("single", spec["batch"]), BlockStats(model))
    return step, epoch_end_writer(MemberState(model, sgd), member_dir)


def epoch_end_writer(state, member_dir):
    """Return a function that writes the checkpoint and the logs of one epoch."""
    checkpoints, log = Checkpoints(member_dir.state), MemberLog(member_dir, print)
    log_probs = np.zeros((5_000, 10), np.float32)

    def write():
        state.step += 1
        state.history.append({"epoch": state.step, "loss": 0.5, "accuracy": 0.5, "validation_accuracy": 0.5})
        checkpoints.save(state.step, state.arrays(), state.document())
        log.on_epoch_end(state.history, log_probs, {})

    return write


def convolutions(spec):
    """Run the convolutions of the network only: forward, and both gradients except that of the image."""
    layers = [layer for layer in network(spec).layers if isinstance(layer, keras.layers.Conv2D)]
    steps = {precision: convolution_step(layers, precision, spec["batch"]) for precision in spec["precisions"]}
    for mode in turns([f"{precision}/" for precision in steps], spec["warmup_steps"]):
        steps[mode.split("/")[0]]()


def convolution_step(layers, precision, batch_size):
    """Return a function that runs the convolutions in sequence, as in a training step, so that memory is reused."""
    dtype = precision.removeprefix("mixed_")

    def random(shape):
        return tf.cast(tf.random.normal((batch_size, *shape[1:])), dtype)

    inputs, gradients = (
        [random(layer.input.shape) for layer in layers],
        [random(layer.output.shape) for layer in layers],
    )
    kernels = [tf.cast(layer.kernel, dtype) for layer in layers]

    @tf.function(jit_compile=False)
    def step():
        total = tf.constant(0.0, dtype)
        for layer, kernel, x, gradient in zip(layers, kernels, inputs, gradients, strict=True):
            sources = [kernel] if x is inputs[0] else [kernel, x]
            with tf.control_dependencies([total]), tf.GradientTape() as tape:
                tape.watch(sources)
                output = tf.nn.conv2d(x, kernel, layer.strides, "SAME")
            with tf.control_dependencies([output]):
                results = [output, *tape.gradient(output, sources, gradient)]
                # TensorFlow prunes operations whose results are unused, so the sum uses each of them.
                total = tf.add_n([total, *[tf.reshape(result, [-1])[0] for result in results]])
        return total

    return step


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    if spec.get("deterministic"):
        tf.config.experimental.enable_op_determinism()
    if spec["cores"]:  # threads that TensorFlow starts at its first operation inherit this
        os.sched_setaffinity(0, spec["cores"])
        tf.config.threading.set_intra_op_parallelism_threads(len(spec["cores"]))
    {"fit": fit, "member": member, "convolutions": convolutions}[spec["kind"]](spec)
