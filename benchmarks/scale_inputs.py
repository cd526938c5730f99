"""Measured inputs of benchmarks/scale.py: image decoding, checkpoints and training of an EfficientNet-B5 on a CPU.

    python benchmarks/scale_inputs.py            # some minutes
    python benchmarks/scale_inputs.py --quick    # B0 at 96 pixels instead of B5
    python benchmarks/scale_inputs.py --json

Decoding: a random window of an image of 500 x 375 pixels, the usual size in ImageNet, with the spectrum of photographs,
decoded and resized to the resolution of the network by one thread. Checkpoint: arrays with the total size of the
weights, the two slots of RMSProp and the averages. Decoding and training count CPU seconds, which other work on the
machine does not affect; checkpoints count wall time. A row shows the median over its rounds; the rows have different
units, so their ratio is null.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_committee import data, models
from keras_committee.checkpoints import Checkpoints
from keras_committee.training.devices import make_strategy
from keras_committee.training.train_step import make_train_step


def photographs(count=24, height=375, width=500):
    """Return JPEG files of noise with the spectrum of photographs (amplitude ~ 1 / frequency); about 100 kB each."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
    files = []
    for _ in range(count):
        spectrum = np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency
        pixels = np.fft.irfft2(spectrum, s=(height, width)).transpose(1, 2, 0)
        pixels = np.clip(128 + 50 * pixels / pixels.std(), 0, 255).astype("uint8")
        files.append(tf.io.encode_jpeg(pixels, quality=87).numpy())
    return files


def measure_decoding(size, rounds=5):
    """Return the seconds of one core per image in each round, and the mean file size in bytes."""
    crop, transform, files = data.random_resized_crop(), data.center_crop(size), photographs()
    draws = crop.draw(np.random.default_rng(1), len(files))
    images = tf.data.Dataset.from_tensor_slices((files, draws)).map(lambda file, row: crop.decode(file, row, transform))
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    images = images.with_options(options)
    seconds = []
    for _ in range(rounds + 1):
        start = time.process_time()
        for _ in images:
            pass
        seconds.append((time.process_time() - start) / len(files))
    return seconds[1:], sum(map(len, files)) / len(files)


def measure_checkpoint(parameters, rounds=3):
    """Return the seconds of one checkpoint in each round, and its size in bytes."""
    rng = np.random.default_rng(0)
    arrays = {f"model/{index:05d}": rng.random(parameters // 250, np.float32) for index in range(1_000)}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, seconds = Checkpoints(Path(folder)), []
        for step in range(rounds):
            start = time.perf_counter()
            checkpoints.save(step, arrays, {})
            seconds.append(time.perf_counter() - start)
    return seconds, sum(array.nbytes for array in arrays.values())


def measure_training(variant, size, batch, rounds=3):
    """Return the seconds of one core per image of a training step in each round; no block is skipped."""
    model = models.efficientnet(variant, image_size=size, survival=None, l2=2.5e-6)
    optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9, epsilon=1e-3)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = make_train_step(model, optimizer, loss, make_strategy("single", batch))
    images, labels = tf.zeros((batch, size, size, 3), tf.uint8), tf.zeros(batch, tf.int32)
    seconds = []
    for _ in range(rounds + 1):
        start = time.process_time()
        float(step(images, labels)[0])
        seconds.append((time.process_time() - start) / batch)
    return seconds[1:]


def run(variant, size, batch, parameters):
    decode_seconds, jpeg_bytes = measure_decoding(size)
    checkpoint_seconds, checkpoint_bytes = measure_checkpoint(parameters)
    training_seconds = measure_training(variant, size, batch)
    rows = {
        f"decoding a random window of a {jpeg_bytes / 1e3:.0f} kB file to {size} pixels, images/s per core": [
            1 / seconds for seconds in decode_seconds
        ],
        f"writing a checkpoint of {checkpoint_bytes / 1e6:.0f} MB, seconds": checkpoint_seconds,
        f"training {variant.upper()} at {size} pixels, batch {batch}, images/s per core": [
            1 / seconds for seconds in training_seconds
        ],
    }
    return {
        "machine": f"{os.cpu_count()} cores, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "rows": [
            {"name": name, "median": statistics.median(rounds), "ratio": None, "rounds": rounds}
            for name, rounds in rows.items()
        ],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train B0 at 96 pixels instead of B5 at 456")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    arguments = parser.parse_args()
    result = run("b0", 96, 16, 5_288_548) if arguments.quick else run("b5", 456, 2, 30_389_784)
    lines = [f"{row['name']}: {row['median']:.3g}" for row in result["rows"]]
    print(json.dumps(result) if arguments.json else "\n".join([result["machine"], *lines]))
