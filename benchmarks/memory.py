"""Peak memory of a training step of a very deep network.

    python benchmarks/memory.py            # ResNet-1202, batch 32, stochastic depth: minutes to trace
    python benchmarks/memory.py --remat    # the branches are recomputed for their gradients
    python benchmarks/memory.py --quick    # ResNet-110
    python benchmarks/memory.py --json

One process takes three training steps and reports its peak resident memory, including the graph and TensorFlow itself.
The median is that of the steps after the first one, in seconds; with a single row, its ratio is 1.
"""

import argparse
import json
import os
import resource
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_committee import models
from keras_committee.training.devices import make_strategy
from keras_committee.training.train_step import make_train_step


def run(depth, batch_size, survival, remat):
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, size=(batch_size, 32, 32, 3), dtype=np.uint8))
    labels = tf.constant(rng.integers(0, 10, size=batch_size, dtype=np.int32))
    start = time.perf_counter()
    model = models.resnet(depth, classes=10, survival=survival, remat=remat, l2=5e-5)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = make_train_step(model, optimizer, loss, make_strategy("single", batch_size))
    build_seconds = time.perf_counter() - start
    step_seconds, losses = [], []
    for _ in range(3):
        start = time.perf_counter()
        losses.append(float(step(images, labels)[0]))
        step_seconds.append(time.perf_counter() - start)
    suffix = ", rematerialized" if remat else ""
    return {
        "machine": f"{os.cpu_count()} cores, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "rows": [
            {
                "name": f"ResNet-{depth}, batch {batch_size}, p_L = {survival}{suffix}",
                "median": statistics.median(step_seconds[1:]),
                "ratio": 1.0,
                "build_s": build_seconds,
                "first_step_s": step_seconds[0],
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "losses": losses,
            }
        ],
    }


def summary(row):
    return (
        f"{row['name']}: peak {row['peak_gib']:.1f} GiB; build {row['build_s']:.0f} s, first step "
        f"{row['first_step_s']:.0f} s, then {row['median']:.1f} s per step; losses {row['losses']}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure ResNet-110 instead of ResNet-1202")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--remat", action="store_true", help="recompute the branches for their gradients")
    arguments = parser.parse_args()
    result = run(110 if arguments.quick else 1202, 32, 0.5, arguments.remat)
    print(json.dumps(result) if arguments.json else summary(result["rows"][0]))
