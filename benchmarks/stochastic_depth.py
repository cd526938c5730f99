"""Time of a training step with stochastic depth, relative to constant depth.

    python benchmarks/stochastic_depth.py                # ResNet-110, as in the paper: about ten minutes on two cores
    python benchmarks/stochastic_depth.py --quick        # ResNet-20, under two minutes
    python benchmarks/stochastic_depth.py --precision mixed_bfloat16
    python benchmarks/stochastic_depth.py --ours         # only the rows of constant depth and ours on one device
    python benchmarks/stochastic_depth.py --json

Compares one ResNet at constant depth, with the three modes of `StochasticDepth`, and with the layers of keras-cv and
Model Garden in place of the additions; p_L = 0.5, linear decay. All rows train on the same batch with the same training
step, and take turns, one step each. A row shows the median over the rounds in seconds, +- half the interquartile range,
and its ratio to constant depth. The gates are random; "at the expected depth" is the ratio if as many blocks had run as
expected, where each block that did not run saved the same time. The rows with two replicas divide the global batch
between two logical CPUs; their reference is the same network with every gate open, which also keeps the statistics of
its branches per replica.
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
from interleaved.summary import summarize
from official.vision.modeling.layers import nn_layers

from keras_committee import flops, models
from keras_committee.layers import linear_decay
from keras_committee.precision import cpu_bfloat16_instructions
from keras_committee.training.devices import make_strategy
from keras_committee.training.train_step import BlockStats, make_train_step

LAST_SURVIVAL = 0.5  # p_L of the paper
GATES_OPEN = "ours, batch, every gate open"
PAPER_RESULT = "24-27 % of the wall time saved (Huang et al. 2016, Table 2)"


class ModelGardenStochasticDepth(keras.layers.Layer):
    """Model Garden's layer, which is a tf_keras layer, inside a Keras 3 model."""

    def __init__(self, rate):
        super().__init__()
        self._layer = nn_layers.StochasticDepth(rate)

    def call(self, branch, training=None):
        return self._layer(branch, training=training)


def replace_additions(model, join):
    """Return a copy of the constant-depth `model` with its additions replaced by `join(rate, shortcut, branch)`."""
    numbers = [int(name) for layer in model.layers for name in re.findall(r"^block_(\d+)$", layer.name)]
    survival = linear_decay(max(numbers), LAST_SURVIVAL)

    def call(layer, *args, **kwargs):
        number = re.findall(r"^block_(\d+)$", layer.name)
        if not number:
            return layer(*args, **kwargs)
        return join(1.0 - survival[int(number[0]) - 1], *args[0])

    return keras.models.clone_model(model, call_function=call)


def networks(depth):
    """Return a function that builds the network, for each row's name."""

    def constant():
        return models.resnet(depth, classes=10, l2=5e-5)

    def ours(mode, survival=LAST_SURVIVAL):
        return lambda: models.resnet(depth, classes=10, l2=5e-5, survival=survival, mode=mode)

    add = keras.layers.Add
    return {
        GATES_OPEN: ours("batch", survival=1.0),
        "constant depth": constant,
        "ours, batch": ours("batch"),
        "ours, subset": ours("subset"),
        "ours, sample": ours("sample"),
        "keras-cv StochasticDepth": lambda: replace_additions(
            constant(), lambda rate, shortcut, branch: keras_cv.layers.StochasticDepth(rate)([shortcut, branch])
        ),
        "keras-cv DropPath": lambda: replace_additions(
            constant(), lambda rate, shortcut, branch: add()([shortcut, keras_cv.layers.DropPath(rate)(branch)])
        ),
        "Model Garden StochasticDepth": lambda: replace_additions(
            constant(), lambda rate, shortcut, branch: add()([shortcut, ModelGardenStochasticDepth(rate)(branch)])
        ),
    }


def make_step(build, strategy, batch, with_block_stats=False):
    """Return a function that takes one training step and waits for it, and one that returns the run counts."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = build()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
        optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    block_stats = BlockStats(model)
    step = make_train_step(model, optimizer, loss, strategy, block_stats if with_block_stats else None)
    batches = iter(strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat()))
    return lambda: float(step(*next(batches))[0]), block_stats.run_counts


def measure(steps, rounds, reference):
    """Return one row per item of `steps`, in seconds: after two warm-up steps, the items take turns, one step each.

    `depth` is the fraction of the blocks that ran, or None without gates; `ratio_at_expected_depth` corrects for it.
    """
    for name, (step, _) in steps.items():
        start = time.perf_counter()
        step(), step()
        print(f"  {name}: ready after {time.perf_counter() - start:.0f} s", file=sys.stderr)
    seconds = {name: [] for name in steps}
    initial_counts = {name: run_counts() for name, (_, run_counts) in steps.items()}
    for _ in range(rounds):
        for name, (step, _) in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    depths = {
        name: float((run_counts() - initial_counts[name]).mean() / rounds) if len(initial_counts[name]) else None
        for name, (_, run_counts) in steps.items()
    }
    return [{**row, "depth": depths[row["name"]]} for row in summarize(seconds, reference)]


def at_expected_depth(row, expected):
    """Return the ratio of the row at the expected fraction of blocks; None for rows in which all of them run."""
    if row["depth"] is None or row["depth"] == 1.0:
        return None
    return 1.0 - (1.0 - row["ratio"]) * (1.0 - expected) / (1.0 - row["depth"])


def run(depth, batch_size, rounds, precision, only_ours):
    keras.config.set_dtype_policy(precision)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(batch_size, 32, 32, 3), dtype=np.uint8)
    batch = (images, rng.integers(0, 10, size=batch_size, dtype=np.int32))
    builders, single = networks(depth), make_strategy("single", batch_size)
    mirrored = make_strategy("mirrored", batch_size)

    names = [name for name in builders if name != GATES_OPEN and (not only_ours or name.startswith(("ours", "const")))]
    steps = {name: make_step(builders[name], single, batch) for name in names}
    steps["ours, batch, with block statistics"] = make_step(
        builders["ours, batch"], single, batch, with_block_stats=True
    )
    rows = measure(steps, rounds, "constant depth")
    del steps  # frees the networks
    if not only_ours:
        replicated = {
            f"{name}, two replicas": make_step(builders[name], mirrored, batch) for name in (GATES_OPEN, "ours, batch")
        }
        rows += measure(replicated, rounds, f"{GATES_OPEN}, two replicas")
    expected = float(np.mean(linear_decay((depth - 2) // 2, LAST_SURVIVAL)))
    rows = [{**row, "ratio_at_expected_depth": at_expected_depth(row, expected)} for row in rows]
    return {
        "machine": f"{os.cpu_count()} {platform.machine()} cores with {cpu_bfloat16_instructions() or 'no bfloat16'}, "
        f"TensorFlow {tf.__version__}, Keras {keras.version()}",
        "network": f"ResNet-{depth}, batch {batch_size}, p_L = {LAST_SURVIVAL}, {precision}",
        "expected_depth": expected,
        "expected_ratio": 1.0 - flops.expected_flops_reduction(builders["ours, batch"]()),
        "paper": PAPER_RESULT,
        "rounds": rounds,
        "rows": rows,
    }


def table(result):
    lines = [
        f"{result['network']}; {result['rounds']} interleaved rounds; {result['machine']}",
        "| step | median, s | ± | ratio to constant depth | blocks that ran | at the expected depth |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        depth = "all" if row["depth"] is None else f"{row['depth']:.1%}"
        corrected = row["ratio_at_expected_depth"]
        cells = [row["name"], f"{row['median']:.3f}", f"{row['half_iqr']:.3f}", f"{row['ratio']:.3f}", depth]
        lines.append(f"| {' | '.join([*cells, '' if corrected is None else f'{corrected:.3f}'])} |")
    lines.append(
        f"Expected depth: {result['expected_depth']:.1%} of the blocks. "
        f"Expected ratio of multiply-adds: {result['expected_ratio']:.3f}. Paper: {result['paper']}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure ResNet-20 with batch 64 instead of ResNet-110")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32", help="dtype policy")
    parser.add_argument("--ours", action="store_true", help="measure no peers and no replicas")
    parser.add_argument("--depth", type=int, help="depth of the ResNet, 6n + 2")
    parser.add_argument("--rounds", type=int, help="number of timed steps of each row")
    arguments = parser.parse_args()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    result = run(
        arguments.depth or (20 if arguments.quick else 110),
        64 if arguments.quick else 128,
        arguments.rounds or (15 if arguments.quick else 20),
        arguments.precision,
        arguments.ours,
    )
    print(json.dumps(result) if arguments.json else table(result))
