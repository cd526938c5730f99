"""What do Keras' `fit`, our training step, and the convolutions alone do in a turn of `benchmarks/training.py`?

    python keras_side.py '{"kind": "fit", ...}'     # started by benchmarks/training.py, which triggers it over a pipe

Kinds: "fit", Keras' loop as its guides write it; "member", our step on our stream; "convolutions", nothing else.
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
from keras_committee.data import Split, Splits, pad_crop_flip
from keras_committee.data.images import InMemoryImages
from keras_committee.layers.normalization import BatchNormalization
from keras_committee.member_dir import MemberDir
from keras_committee.training.checkpoint import Checkpoints, MemberState
from keras_committee.training.devices import make_strategy
from keras_committee.training.tensorboard import MemberLog
from keras_committee.training.train_step import BlockStats, make_train_step

ENDLESS = 1_000_000


def network():
    return models.wide_resnet(16, 1, classes=10, l2=2.5e-4)


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def optimizer():
    return keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)


def examples(spec):
    with np.load(spec["data"]) as file:
        return file["images"], file["labels"]


class Turns(keras.callbacks.Callback):
    """Lets `fit` take a step when it is this side's turn; the process ends with the last turn."""

    def __init__(self, spec):
        super().__init__()
        self._turns = turns(spec["warm_up"])

    def on_train_batch_begin(self, batch, logs=None):
        if next(self._turns, None) is None:
            sys.exit()


def fit(spec):
    """Keras' own loop; `spec["norm"]` says whose batch normalisation, `spec["jit_compile"]` is handed to `compile`."""
    model = network() if spec["norm"] == "ours" else keras.models.clone_model(network(), clone_function=with_keras_norm)
    model.compile(optimizer(), loss(), metrics=["accuracy"], jit_compile=spec["jit_compile"])
    dataset = usual_pipeline(*examples(spec), spec["batch"])
    model.fit(dataset, shuffle=False, epochs=ENDLESS, verbose=0, callbacks=[Turns(spec)])  # it is shuffled already


def with_keras_norm(layer):
    """A copy of `layer`, Keras' batch normalisation where it is ours."""
    config = layer.get_config()
    if not isinstance(layer, BatchNormalization):
        return layer.from_config(config)
    return keras.layers.BatchNormalization.from_config({**config, "synchronized": False})


def usual_pipeline(images, labels, batch_size):
    def augmented(image, label):
        image = tf.image.random_crop(tf.pad(image, [[4, 4], [4, 4], [0, 0]]), (32, 32, 3))
        return tf.image.random_flip_left_right(image), label

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels))
    dataset = dataset.map(augmented, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def member(spec):
    """Our step on our stream, as a member trains between two epoch ends; on one batch again and again if "cached"."""
    images, labels = examples(spec)
    split = Split(images=InMemoryImages(images), labels=labels)
    splits = Splits(
        classes=tuple("0123456789"), train=split, validation=split, test=split,
        batch_size=spec["batch"], augment=pad_crop_flip(4),
    )  # fmt: skip
    keras.utils.set_random_seed(spec["member"])
    model, descent = network(), optimizer()
    descent.build(model.trainable_variables)
    step = make_train_step(model, descent, loss(), make_strategy("single", spec["batch"]), BlockStats(model))
    stream = iter(splits.stream(spec["member"], 0, ENDLESS))
    cached = next(stream)
    with tempfile.TemporaryDirectory() as folder:
        keep = keeper(MemberState(model, descent), MemberDir(Path(folder), spec["member"]))
        for mode in turns(spec["warm_up"]):
            keep() if mode == "keep" else step(*(cached if mode == "cached" else next(stream)))


def keeper(state, folder):
    """A function that writes what is written at the end of an epoch: a checkpoint, and the logs."""
    checkpoints, log = Checkpoints(folder.state), MemberLog(folder, print)
    votes = np.zeros((5_000, 10), np.float32)

    def keep():
        state.step += 1
        state.history.append({"epoch": state.step, "loss": 0.5, "accuracy": 0.5, "validation_accuracy": 0.5})
        checkpoints.save(state.step, state.arrays(), state.document())
        log.on_epoch_end(state.history, votes, {})

    return keep


def convolutions(spec):
    """The convolutions of the network, forward and both gradients; there is no gradient for the image itself."""
    step = convolution_step([layer for layer in network().layers if isinstance(layer, keras.layers.Conv2D)], spec)
    for _ in turns(spec["warm_up"]):
        step()


def convolution_step(layers, spec):
    """One after another, as in a step, so that each may reuse the memory of the one before."""
    inputs = [tf.random.normal((spec["batch"], *layer.input.shape[1:])) for layer in layers]
    gradients = [tf.random.normal((spec["batch"], *layer.output.shape[1:])) for layer in layers]

    @tf.function(jit_compile=False)
    def step():
        end = tf.constant(0.0)
        for layer, x, gradient in zip(layers, inputs, gradients, strict=True):
            kernel = tf.convert_to_tensor(layer.kernel)
            sources = [kernel] if x is inputs[0] else [kernel, x]
            with tf.control_dependencies([end]), tf.GradientTape() as tape:
                tape.watch(sources)
                output = tf.nn.conv2d(x, kernel, layer.strides, "SAME")
            with tf.control_dependencies([output]):
                results = [output, *tape.gradient(output, sources, gradient)]
                # A sum that goes on from the last one: of what nobody reads, TensorFlow would compute nothing.
                end = tf.add_n([end, *[tf.reshape(result, [-1])[0] for result in results]])
        return end

    return step


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given.get("deterministic"):
        tf.config.experimental.enable_op_determinism()
    if given["cores"]:  # TensorFlow makes its threads at the first operation, and they stay where this one is
        os.sched_setaffinity(0, given["cores"])
        tf.config.threading.set_intra_op_parallelism_threads(len(given["cores"]))
    {"fit": fit, "member": member, "convolutions": convolutions}[given["kind"]](given)
