"""How fast does one core decode, how long does a checkpoint take, and how fast does a CPU train an EfficientNet-B5?

    python benchmarks/scale_inputs.py            # three inputs of benchmarks/scale.py: some minutes
    python benchmarks/scale_inputs.py --quick    # B0 at 96 pixels in place of B5
    python benchmarks/scale_inputs.py --json

Decoding: pictures of ImageNet's usual 500 x 375 pixels with the spectrum of photographs, a random window of each
decoded and resized to the network's resolution, one thread. Checkpoint: arrays of the size of weights, RMSProp's two
slots and averages. Each row's figure is the median of its rounds. Decoding and training count the seconds that the
cores were at work, so that other work on the machine does not.
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
from keras_committee.training.checkpoint import Checkpoints
from keras_committee.training.devices import make_strategy
from keras_committee.training.train_step import make_train_step


def photographs(count=24, height=375, width=500):
    """JPEG files of noise whose amplitude falls with the frequency, as that of photographs does; about 100 kB each."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
    files = []
    for _ in range(count):
        spectrum = np.fft.rfft2(draw.normal(size=(3, height, width))) / frequency
        pixels = np.fft.irfft2(spectrum, s=(height, width)).transpose(1, 2, 0)
        pixels = np.clip(128 + 50 * pixels / pixels.std(), 0, 255).astype("uint8")
        files.append(tf.io.encode_jpeg(pixels, quality=87).numpy())
    return files


def decoding(size, rounds=5):
    """Seconds of one core for an image, and the mean size of a file."""
    crop, framing, files = data.random_resized_crop(), data.center_crop(size), photographs()
    draws = crop.draw(np.random.default_rng(1), len(files))
    images = tf.data.Dataset.from_tensor_slices((files, draws)).map(lambda file, row: crop.decode(file, row, framing))
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    images = images.with_options(options)
    seconds = []
    for _ in range(rounds + 1):
        started = time.process_time()
        for _ in images:
            pass
        seconds.append((time.process_time() - started) / len(files))
    return seconds[1:], sum(map(len, files)) / len(files)


def checkpointing(parameters, rounds=3):
    """Seconds of one checkpoint, and its bytes."""
    arrays = {f"model/{place:05d}": np.random.rand(parameters // 250).astype("float32") for place in range(1_000)}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, seconds = Checkpoints(Path(folder)), []
        for step in range(rounds):
            started = time.perf_counter()
            checkpoints.save(step, arrays, {})
            seconds.append(time.perf_counter() - started)
    return seconds, sum(array.nbytes for array in arrays.values())


def training(variant, size, batch, rounds=3):
    """Seconds of one core for an image of a training step, no block skipped."""
    model = models.efficientnet(variant, image_size=size, survival=None, l2=2.5e-6)
    optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9, epsilon=1e-3)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = make_train_step(model, optimizer, loss, make_strategy("single", batch))
    images, labels = tf.zeros((batch, size, size, 3), tf.uint8), tf.zeros(batch, tf.int32)
    seconds = []
    for _ in range(rounds + 1):
        started = time.process_time()
        float(step(images, labels)[0])
        seconds.append((time.process_time() - started) / batch)
    return seconds[1:]


def run(variant, size, batch, parameters):
    decoded, jpeg = decoding(size)
    saved, checkpoint = checkpointing(parameters)
    trained = training(variant, size, batch)
    rows = {
        f"decoding a random window of {jpeg / 1e3:.0f} kB to {size} pixels, images/s of a core": [
            1 / s for s in decoded
        ],
        f"a checkpoint of {checkpoint / 1e6:.0f} MB, seconds": saved,
        f"training {variant.upper()} at {size} pixels, batch {batch}, images/s of a core": [1 / s for s in trained],
    }
    return {
        "machine": f"{os.cpu_count()} cores, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "rows": [{"name": name, "median": statistics.median(found), "all": found} for name, found in rows.items()],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="B0 at 96 pixels")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    arguments = parser.parse_args()
    result = run("b0", 96, 16, 5_288_548) if arguments.quick else run("b5", 456, 2, 30_389_784)
    lines = [f"{row['name']}: {row['median']:.3g}" for row in result["rows"]]
    print(json.dumps(result) if arguments.json else "\n".join([result["machine"], *lines]))
