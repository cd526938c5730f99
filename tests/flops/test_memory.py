"""Memory estimates compared with counts by hand and with a process."""

import subprocess
import sys

import keras
import pytest

from keras_committee import flops, layers


def test_a_small_network_equals_the_count_by_hand():
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(image)  # keeps the image: 8 * 8 * 3
    x = layers.BatchNormalization()(x)  # keeps what the convolution gives: 8 * 8 * 4
    x = keras.layers.Activation("swish")(x)  # keeps its input: 8 * 8 * 4
    y = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)  # keeps both: twice 8 * 8 * 4
    x = keras.layers.MaxPooling2D()(keras.layers.Add()([x, y]))  # keeps both: 8 * 8 * 4 and 4 * 4 * 4
    x = keras.layers.Dropout(0.2)(keras.layers.Flatten()(x))  # keeps a byte for each of 64 features
    model = keras.Model(image, keras.layers.Dense(5)(x))  # keeps its 64 features
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)

    trainable = 3 * 3 * 3 * 4 + 2 * 4 + 3 * 3 * 4 * 4 + 4 + 64 * 5 + 5
    memory = flops.training_memory(model, 7, optimizer=optimizer, use_ema=True)
    assert memory.weights == memory.averages == 4 * (trainable + 2 * 4)
    assert memory.gradients == 4 * trainable
    assert memory.slots == 4 * trainable + 8 + 4  # iterations, and the rate
    assert memory.activations == 7 * (4 * (8 * 8 * 3 + 5 * 8 * 8 * 4 + 4 * 4 * 4 + 64) + 64)
    assert memory.passing == 7 * 4 * 3 * 8 * 8 * 4  # of the addition
    assert memory.total == sum(vars(memory).values())


def test_a_batch_in_parts_keeps_the_activations_of_one_part_and_two_gradients():
    image = keras.Input((6,), name="image")
    model = keras.Model(image, keras.layers.Dense(3)(image))
    whole, parts = flops.training_memory(model, 12), flops.training_memory(model, 12, gradient_accumulation_steps=4)
    assert (whole.activations, parts.activations) == (12 * 6 * 4, 3 * 6 * 4)
    assert (whole.gradients, parts.gradients) == (4 * 21, 2 * 4 * 21)
    assert (whole.slots, whole.averages) == (0, 0)


def test_inference_counts_weights_and_live_tensors():
    image = keras.Input((10,), name="image")
    wide = keras.layers.Dense(100)(image)
    x = keras.layers.Dense(7)(keras.layers.Dense(20)(wide))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Concatenate()([image, x])))
    weights = 11 * 100 + 101 * 20 + 21 * 7 + 18 * 2
    assert flops.inference_memory(model, 3) == 4 * (weights + 3 * (10 + 100 + 20))  # the image is asked for again


def blocks_of(remat, sizes=(30, 50)):
    x = image = keras.Input((8,), name="image")
    for size in sizes:
        branch = keras.Sequential([keras.layers.Dense(size, activation="relu"), keras.layers.Dense(8)])
        x = layers.StochasticDepth(branch, survival=0.7, remat=remat)(x)
    return keras.Model(image, keras.layers.Dense(2)(x))


def test_branches_of_stochastic_depth_count_fully():
    # Of each branch its input and what its first layer gives; of the logits their input.
    assert flops.training_memory(blocks_of(False), 1).activations == 4 * (8 + 30 + 8 + 50 + 8)


def test_rematerialized_branches_count_their_inputs_and_the_largest_branch_once():
    assert flops.training_memory(blocks_of(True), 1).activations == 4 * (8 + 8 + 8) + 4 * (8 + 50)


def test_half_precision_halves_the_activations_and_not_the_weights():
    full = blocks_of(False)
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = blocks_of(False)
    assert flops.training_memory(half, 1).weights == flops.training_memory(full, 1).weights
    assert flops.training_memory(half, 1).activations == 4 * 8 + 2 * (30 + 8 + 50 + 8)  # the image stays float32


MEASURED = """
import pathlib, re, sys
import keras, numpy as np, tensorflow as tf
from keras_committee import flops, layers
from keras_committee.training.train_step import make_train_step
from keras_committee.training.devices import make_strategy

tf.config.threading.set_inter_op_parallelism_threads(1)  # or the peak depends on what runs side by side
batch = int(sys.argv[1])
x = image = keras.Input((64, 64, 3))
for _ in range(6):
    x = keras.layers.Conv2D(32, 3, padding="same", use_bias=False)(x)
    x = keras.layers.Activation("swish")(layers.BatchNormalization()(x))
model = keras.Model(image, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))
optimizer = keras.optimizers.SGD(0.1)
optimizer.build(model.trainable_variables)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
step = make_train_step(model, optimizer, loss, make_strategy("single", batch))
images, labels = np.zeros((batch, 64, 64, 3), "float32"), np.zeros(batch, "int32")
for _ in range(3):
    step(images, labels)
# The peak of this program alone: that of getrusage begins with what its parent had.
peak = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
print(int(peak) * 1024, flops.training_memory(model, batch).total)
"""


def measured(popen, batch):
    """Peak and estimate of the program above, in bytes."""
    with popen([sys.executable, "-c", MEASURED, batch], stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return map(int, output.split())


@pytest.mark.slow
def test_the_estimate_agrees_with_a_process(fork_server):
    (small, told_small), (large, told_large) = (measured(fork_server.popen, batch) for batch in (16, 80))
    assert large - small == pytest.approx(told_large - told_small, rel=0.25)
