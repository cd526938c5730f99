"""Speed of input pipelines: reading, decoding and augmenting images on one core.

    python benchmarks/data.py                             # smooth random images, about four minutes on two cores
    python benchmarks/data.py --data imagenette/train     # a folder of class folders with real images
    python benchmarks/data.py --quick
    python benchmarks/data.py --json

Compares the pipelines of `keras_committee.data` with plain `tf.image`, Keras and Model Garden. A row shows images per
second of CPU time, summed over all threads of the process: the rate of one core that does nothing else. It depends
neither on other work on the machine nor on the number of threads. In a round each row has one turn, which begins and
ends with full buffers. A row shows the median over the rounds, +- half the interquartile range, and its ratio to plain
`tf.image`. At most 256 images are read, from files cached by the operating system, so the disk is not measured.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf
from interleaved.summary import summarize
from official.vision.ops import augment as model_garden

from keras_committee import data
from keras_committee.data.preprocessing import decode_image, resize_image
from keras_committee.data.record_writer import write_tfrecords

BATCH, IMAGES, SIDE = 32, 256, 224
SIZE = (SIDE, SIDE)
PLAIN = "tf.image: read, decode_jpeg, resize, flip"
ENDLESS = 10**6  # steps


def write_images(folder):
    """Write smooth random images of 300 x 224 pixels in four classes, as JPEG of quality 90."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES // 4):
        coarse = rng.uniform(0, 255, (9, 12, 3)).astype(np.float32)
        image = tf.cast(tf.clip_by_value(tf.image.resize(coarse, (SIDE, 300), "bicubic"), 0, 255), tf.uint8)
        path = folder / f"class_{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(image, quality=90).numpy())


def copy_images(source, folder):
    """Copy at most `IMAGES` JPEG files of `source`, spread over its classes."""
    files = sorted(path for path in source.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"error: {source} contains no class folder with JPEG files.")
    for path in files[:: -(-len(files) // IMAGES)]:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name / path.name)


def plain_pipeline(paths, decode, resize):
    """Return the dataset that a tutorial builds."""

    def load(path):
        image = resize(decode(tf.io.read_file(path)))
        return tf.image.random_flip_left_right(image)

    return tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat().map(load, 2).batch(BATCH)


def stream(config):
    """Return the training stream of a `DataConfig`, which reads the files in every pass."""
    return dataclasses.replace(config, memory_limit=0).load().stream(0, 0, ENDLESS)


def decode_then_crop(paths):
    """Return a dataset with the windows of `random_resized_crop`, cropped after the whole image was decoded."""
    crop = data.random_resized_crop()

    def load(path, draws):
        image = decode_image(tf.io.read_file(path))
        top, left, height, width = tf.unstack(crop.window(tf.shape(image)[:2], draws))
        image = resize_image(image[top : top + height, left : left + width], SIZE)
        return tf.cond(draws[1] == 1, lambda: image[:, ::-1], lambda: image)

    draws = crop.draw(np.random.default_rng(0), len(paths))
    return tf.data.Dataset.from_tensor_slices((paths, draws)).shuffle(len(paths)).repeat().map(load, 2).batch(BATCH)


def map_stream(config, augment_image):
    """Return the stream of a `DataConfig` with `augment_image`, a function with random state, applied to each image."""
    signature = tf.TensorSpec((*SIZE, 3), tf.uint8)
    return stream(config).map(lambda images, labels: tf.map_fn(augment_image, images, fn_output_signature=signature), 2)


def pipelines(folder, records):
    """Return a function that builds the dataset, for each row's name."""
    paths = sorted(map(str, folder.glob("*/*")))
    crop, layer = data.random_resized_crop(), keras.layers.RandAugment(factor=0.5)
    resized = data.image_folder(folder, BATCH, size=SIZE, validation=0, test=0, augment=data.pad_crop_flip(0))
    cropped = dataclasses.replace(resized, augment=crop)
    sharded = data.imagenet_records(records, BATCH, size=SIZE, validation=0, test=0, augment=crop)

    def with_policy(policy):
        return stream(dataclasses.replace(cropped, augment=data.compose(crop, policy)))

    return {
        PLAIN: lambda: plain_pipeline(
            paths, lambda content: tf.io.decode_jpeg(content, 3), lambda image: tf.image.resize(image, SIZE)
        ),
        "tf.image with the accurate DCT and antialiasing of ours": lambda: plain_pipeline(
            paths, decode_image, lambda image: resize_image(image, SIZE)
        ),
        "keras.utils.image_dataset_from_directory": lambda: keras.utils.image_dataset_from_directory(
            folder, batch_size=BATCH, image_size=SIZE, seed=0, verbose=False
        ).repeat(),
        "ours, class folders, resize and flip": lambda: stream(resized),
        "tf.image: random crops, whole image decoded": lambda: decode_then_crop(paths),
        "ours, random crops, class folders": lambda: stream(cropped),
        "ours, random crops, TFRecords": lambda: stream(sharded),
        "+ AutoAugment v0, ours": lambda: with_policy(data.autoaugment()),
        "+ AutoAugment v0, Model Garden's distort": lambda: map_stream(cropped, model_garden.AutoAugment("v0").distort),
        "+ RandAugment, ours": lambda: with_policy(data.randaugment()),
        "+ RandAugment, Model Garden's distort": lambda: map_stream(cropped, model_garden.RandAugment().distort),
        "+ Keras RandAugment, ours": lambda: with_policy(data.randaugment(source="keras")),
        "+ Keras RandAugment, Keras' layer": lambda: map_stream(
            cropped, lambda image: tf.cast(layer(image, training=True), tf.uint8)
        ),
    }


def cpu_seconds_when_idle():
    """Wait until all buffers are full, so that no other thread runs; return the CPU seconds of the process."""
    quiet = 0
    while quiet < 4:
        time.sleep(0.05)
        quiet = 0 if other_threads_run() else quiet + 1
    return time.process_time()


def other_threads_run():
    """Return whether a thread other than this one is running or ready to run."""
    own = str(threading.get_native_id())
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            if task.name != own and (task / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                return True
    return False


def turn(iterator, steps):
    """Return the images per CPU second of one turn."""
    start = cpu_seconds_when_idle()
    for _ in range(steps):
        next(iterator)
    return steps * BATCH / (cpu_seconds_when_idle() - start)


def measure(builders, rounds, steps):
    """Return one row per pipeline, in images per CPU second."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 2
    iterators = {name: iter(build().with_options(options)) for name, build in builders.items()}
    for iterator in iterators.values():  # the first batch waits for the graph
        next(iterator)
    rates = {name: [] for name in iterators}
    for number in range(rounds):
        for name, iterator in iterators.items():
            rates[name].append(turn(iterator, steps))
        print(f"  round {number + 1} of {rounds}", file=sys.stderr)
    return summarize(rates, PLAIN)


def run(arguments):
    rounds, steps = (3, 2) if arguments.quick else (9, 8)
    rounds, steps = arguments.rounds or rounds, arguments.steps or steps
    with tempfile.TemporaryDirectory() as temporary:
        folder, records = Path(temporary) / "images", Path(temporary) / "records"
        if arguments.data:
            copy_images(Path(arguments.data), folder)
        else:
            write_images(folder)
        write_tfrecords(folder, records, shards=2)
        builders = {
            name: build
            for name, build in pipelines(folder, records).items()
            if name == PLAIN or (arguments.only or "") in name
        }
        rows = measure(builders, rounds, steps)
    return {
        "machine": f"{platform.machine()}, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "images": arguments.data or "smooth random images of 300 x 224 pixels",
        "unit": "images per CPU second",
        "steps": steps,
        "rows": rows,
    }


def table(result):
    rounds = len(result["rows"][0]["rounds"])
    lines = [
        f"{result['images']}, resized to {SIDE} x {SIDE}; {rounds} interleaved rounds of {result['steps']} batches "
        f"of {BATCH}; {result['machine']}",
        "| pipeline | images/s per core | ± | ratio to plain tf.image |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['name']} | {row['median']:.0f} | {row['half_iqr']:.0f} | {row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run fewer and shorter turns")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--data", help="folder of class folders with JPEG files [default: smooth random images]")
    parser.add_argument("--only", help="measure only rows whose name contains this text, and plain tf.image")
    parser.add_argument("--rounds", type=int, help="number of turns of each row")
    parser.add_argument("--steps", type=int, help="number of batches per turn")
    arguments = parser.parse_args()
    result = run(arguments)
    print(json.dumps(result) if arguments.json else table(result))
