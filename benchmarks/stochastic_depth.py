"""Does a skipped block cost nothing? Training steps of one ResNet with constant depth, our three modes, and the peers.

    python benchmarks/stochastic_depth.py                # ResNet-110, the paper's: about ten minutes on two cores
    python benchmarks/stochastic_depth.py --quick        # ResNet-20, under two minutes
    python benchmarks/stochastic_depth.py --json

All rows train the same network by the same step on the same batch, one step of each after another; a row's figure is
the median over the rounds, its ratio that to constant depth. p_L = 0.5, linear decay. The peers' layers stand where our
builder has its addition. The rows of two replicas share the global batch between two logical CPUs and are set against
the same network with every gate open: its branches keep each replica's own statistics, too.
"""

import argparse
import json
import os
import platform
import re
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_cv
import numpy as np
import tensorflow as tf
from interleaved.compared import compared
from official.vision.modeling.layers import nn_layers

from keras_committee import flops, models
from keras_committee.layers.survival import linear_decay
from keras_committee.training.devices import make_strategy
from keras_committee.training.train_step import BlockStats, make_train_step

LAST = 0.5  # p_L, the paper's
OPEN = "ours, batch, every gate open"
PAPER = "24-27 % of the wall time saved (Huang et al. 2016, Table 2)"


class ModelGarden(keras.layers.Layer):
    """Model Garden's layer, of tf_keras, inside a Keras 3 model."""

    def __init__(self, rate):
        super().__init__()
        self._layer = nn_layers.StochasticDepth(rate)

    def call(self, branch, training=None):
        return self._layer(branch, training=training)


def with_peer(model, join):
    """The constant-depth `model`, its additions replaced by `join(rate, shortcut, branch)`."""
    numbers = [int(name) for layer in model.layers for name in re.findall(r"^block_(\d+)$", layer.name)]
    survival = linear_decay(max(numbers), LAST)

    def call(layer, *args, **kwargs):
        number = re.findall(r"^block_(\d+)$", layer.name)
        if not number:
            return layer(*args, **kwargs)
        return join(1.0 - survival[int(number[0]) - 1], *args[0])

    return keras.models.clone_model(model, call_function=call)


def networks(depth):
    """The rows: name to a function that builds the network."""

    def constant():
        return models.resnet(depth, classes=10, l2=5e-5)

    def ours(mode, last=LAST):
        return lambda: models.resnet(depth, classes=10, l2=5e-5, survival=last, mode=mode)

    add = keras.layers.Add
    return {
        OPEN: ours("batch", last=1.0),
        "constant depth": constant,
        "ours, batch": ours("batch"),
        "ours, subset": ours("subset"),
        "ours, sample": ours("sample"),
        "keras-cv StochasticDepth": lambda: with_peer(
            constant(), lambda rate, shortcut, branch: keras_cv.layers.StochasticDepth(rate)([shortcut, branch])
        ),
        "keras-cv DropPath": lambda: with_peer(
            constant(), lambda rate, shortcut, branch: add()([shortcut, keras_cv.layers.DropPath(rate)(branch)])
        ),
        "Model Garden StochasticDepth": lambda: with_peer(
            constant(), lambda rate, shortcut, branch: add()([shortcut, ModelGarden(rate)(branch)])
        ),
    }


def stepper(build, strategy, batch, gauged=False):
    """A function that takes one training step and waits for it, and one that tells how often each block ran."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = build()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
        optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    gauges = BlockStats(model)
    step = make_train_step(model, optimizer, loss, strategy, gauges if gauged else None)
    batches = iter(strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat()))
    return lambda: float(step(*next(batches))[0]), gauges.run_counts


def measure(steppers, rounds, reference):
    """A row for each stepper, of seconds: one step of each after another, after two that warm up.

    `depth` is the share of the blocks that ran, where there are gates: chance moves it about its expectation, and the
    ratio with it.
    """
    for name, (step, _) in steppers.items():
        started = time.perf_counter()
        step(), step()
        print(f"  {name}: ready in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    seconds = {name: [] for name in steppers}
    before = {name: runs() for name, (_, runs) in steppers.items()}
    for _ in range(rounds):
        for name, (step, _) in steppers.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    depths = {
        name: float((runs() - before[name]).mean() / rounds) if len(before[name]) else None
        for name, (_, runs) in steppers.items()
    }
    return [{**row, "depth": depths[row["name"]]} for row in compared(seconds, reference)]


def run(depth, batch_size, rounds):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, size=(batch_size, 32, 32, 3), dtype=np.uint8)
    batch = (images, draw.integers(0, 10, size=batch_size, dtype=np.int32))
    builders, one, two = networks(depth), make_strategy("single", batch_size), make_strategy("mirrored", batch_size)

    steppers = {name: stepper(build, one, batch) for name, build in builders.items() if name != OPEN}
    steppers["ours, batch, with gauges"] = stepper(builders["ours, batch"], one, batch, gauged=True)
    rows = measure(steppers, rounds, "constant depth")
    del steppers
    replicated = {f"{name}, two replicas": stepper(builders[name], two, batch) for name in (OPEN, "ours, batch")}
    rows += measure(replicated, rounds, f"{OPEN}, two replicas")
    expected = 1.0 - flops.expected_flops_reduction(builders["ours, batch"]())
    return {
        "machine": f"{os.cpu_count()} {platform.machine()} cores, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "network": f"ResNet-{depth}, batch {batch_size}, p_L = {LAST}",
        "expected_ratio": expected,
        "paper": PAPER,
        "rounds": rounds,
        "rows": rows,
    }


def table(result):
    lines = [
        f"{result['network']}; {result['rounds']} interleaved rounds; {result['machine']}",
        "| step | median s | ± | ratio to constant depth | blocks that ran |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        depth = "all" if row["depth"] is None else f"{row['depth']:.1%}"
        lines.append(f"| {row['name']} | {row['median']:.3f} | {row['spread']:.3f} | {row['ratio']:.3f} | {depth} |")
    lines.append(f"Expected from the multiply-adds: {result['expected_ratio']:.3f}. The paper: {result['paper']}.")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ResNet-20 with batch 64")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    result = run(
        arguments.depth or (20 if arguments.quick else 110),
        64 if arguments.quick else 128,
        arguments.rounds or (15 if arguments.quick else 20),
    )
    print(json.dumps(result) if arguments.json else table(result))
