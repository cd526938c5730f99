"""How many images a second does one core read, decode and vary? Our pipelines alone, beside plain ones.

    python benchmarks/data.py                             # smooth random pictures, about four minutes on two cores
    python benchmarks/data.py --data imagenette/train     # a folder of class folders of real images
    python benchmarks/data.py --quick
    python benchmarks/data.py --json

A row's figure is the images of a turn over the processor seconds that the process spent on them, all its threads
together: what one core would do in a second if it did nothing else. Other work on the machine does not count, and no
number of threads is to be chosen. A row's turn begins and ends when its buffers are full, so the images read ahead are
those of a turn before. In a round each row has one turn; the median over the rounds is shown, and its ratio to plain
`tf.image`. At most 256 images are read, from files that the operating system keeps in memory: the disk is left out.
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
from interleaved.compared import compared
from official.vision.ops import augment as garden

from keras_committee import data
from keras_committee.data.preprocessing import decode_image, resize_image
from keras_committee.data.record_writer import write_tfrecords

BATCH, IMAGES, SIDE = 32, 256, 224
SIZE = (SIDE, SIDE)
PLAIN = "tf.image: read, decode_jpeg, resize, flip"
FOREVER = 10**6  # steps


def write_pictures(folder):
    """Smooth random pictures of 300 x 224 pixels in four classes, as JPEG of quality 90."""
    generator = np.random.default_rng(0)
    for number in range(IMAGES // 4):
        coarse = generator.uniform(0, 255, (9, 12, 3)).astype(np.float32)
        picture = tf.cast(tf.clip_by_value(tf.image.resize(coarse, (SIDE, 300), "bicubic"), 0, 255), tf.uint8)
        path = folder / f"class_{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(picture, quality=90).numpy())


def copy_pictures(source, folder):
    """At most `IMAGES` of the JPEGs of `source`, spread over its classes."""
    files = sorted(path for path in source.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"error: {source} holds no folder with JPEGs. Name the folder of the class folders.")
    for path in files[:: -(-len(files) // IMAGES)]:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name / path.name)


def plain(paths, decode, resize):
    """What a tutorial writes."""

    def example(path):
        image = resize(decode(tf.io.read_file(path)))
        return tf.image.random_flip_left_right(image)

    return tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat().map(example, 2).batch(BATCH)


def stream(described):
    """Our training stream, from the files in every pass."""
    return dataclasses.replace(described, memory_limit=0).load().stream(0, 0, FOREVER)


def decode_then_crop(paths):
    """The windows of `random_resized_crop`, but of images that were decoded whole."""
    crop = data.random_resized_crop()

    def example(path, draws):
        image = decode_image(tf.io.read_file(path))
        top, left, height, width = tf.unstack(crop.window(tf.shape(image)[:2], draws))
        seen = resize_image(image[top : top + height, left : left + width], SIZE)
        return tf.cond(draws[1] == 1, lambda: seen[:, ::-1], lambda: seen)

    draws = crop.draw(np.random.default_rng(0), len(paths))
    return tf.data.Dataset.from_tensor_slices((paths, draws)).shuffle(len(paths)).repeat().map(example, 2).batch(BATCH)


def varied(described, distort):
    """Images of our stream, then each given to a function that draws for itself."""
    one = tf.TensorSpec((*SIZE, 3), tf.uint8)
    return stream(described).map(lambda images, labels: tf.map_fn(distort, images, fn_output_signature=one), 2)


def sides(folder, records):
    """Each row's name, and a function that makes its dataset."""
    paths = sorted(map(str, folder.glob("*/*")))
    crop, layer = data.random_resized_crop(), keras.layers.RandAugment(factor=0.5)
    folders = data.image_folder(folder, BATCH, size=SIZE, validation=0, test=0, augment=data.pad_crop_flip(0))
    cropped = dataclasses.replace(folders, augment=crop)
    shards = data.imagenet_records(records, BATCH, size=SIZE, validation=0, test=0, augment=crop)

    def with_policy(policy):
        return stream(dataclasses.replace(cropped, augment=data.compose(crop, policy)))

    return {
        PLAIN: lambda: plain(
            paths, lambda content: tf.io.decode_jpeg(content, 3), lambda image: tf.image.resize(image, SIZE)
        ),
        "the same, accurate DCT and antialiasing as ours": lambda: plain(
            paths, decode_image, lambda image: resize_image(image, SIZE)
        ),
        "keras.utils.image_dataset_from_directory": lambda: keras.utils.image_dataset_from_directory(
            folder, batch_size=BATCH, image_size=SIZE, seed=0, verbose=False
        ).repeat(),
        "ours, class folders, resize and flip": lambda: stream(folders),
        "random crops, decoded whole": lambda: decode_then_crop(paths),
        "ours, random crops, class folders": lambda: stream(cropped),
        "ours, random crops, TFRecords": lambda: stream(shards),
        "+ AutoAugment v0, ours": lambda: with_policy(data.autoaugment()),
        "+ AutoAugment v0, Model Garden's distort": lambda: varied(cropped, garden.AutoAugment("v0").distort),
        "+ RandAugment, ours": lambda: with_policy(data.randaugment()),
        "+ RandAugment, Model Garden's distort": lambda: varied(cropped, garden.RandAugment().distort),
        "+ RandAugment of Keras, ours": lambda: with_policy(data.randaugment(source="keras")),
        "+ RandAugment, Keras' layer": lambda: varied(
            cropped, lambda image: tf.cast(layer(image, training=True), tf.uint8)
        ),
    }


def settled():
    """The processor seconds of this process, once all buffers are full: no thread works or waits for a core."""
    quiet = 0
    while quiet < 4:
        time.sleep(0.05)
        quiet = 0 if working() else quiet + 1
    return time.process_time()


def working():
    """Whether a thread besides this one is running or ready to run."""
    own = str(threading.get_native_id())
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            if task.name != own and (task / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                return True
    return False


def turn(iterator, steps):
    """Images per processor second."""
    begun = settled()
    for _ in range(steps):
        next(iterator)
    return steps * BATCH / (settled() - begun)


def measure(made, rounds, steps):
    """A row for each name, of images per processor second."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 2
    iterators = {name: iter(make().with_options(options)) for name, make in made.items()}
    for iterator in iterators.values():  # the first batch waits for the graph
        next(iterator)
    rates = {name: [] for name in iterators}
    for number in range(rounds):
        for name, iterator in iterators.items():
            rates[name].append(turn(iterator, steps))
        print(f"  round {number + 1} of {rounds}", file=sys.stderr)
    return compared(rates, PLAIN)


def run(arguments):
    rounds, steps = (3, 2) if arguments.quick else (9, 8)
    rounds, steps = arguments.rounds or rounds, arguments.steps or steps
    with tempfile.TemporaryDirectory() as temporary:
        folder, records = Path(temporary) / "pictures", Path(temporary) / "records"
        if arguments.data:
            copy_pictures(Path(arguments.data), folder)
        else:
            write_pictures(folder)
        write_tfrecords(folder, records, shards=2)
        made = sides(folder, records)
        chosen = {name: make for name, make in made.items() if name == PLAIN or (arguments.only or "") in name}
        rows = measure(chosen, rounds, steps)
    return {
        "machine": f"{platform.machine()}, TensorFlow {tf.__version__}, Keras {keras.version()}",
        "images": arguments.data or "smooth random pictures of 300 x 224 pixels",
        "unit": "images per processor second",
        "steps": steps,
        "rows": rows,
    }


def table(result):
    rounds = len(result["rows"][0]["rounds"])
    lines = [
        f"{result['images']}, to {SIDE} x {SIDE}; {rounds} interleaved rounds of {result['steps']} batches of {BATCH}; "
        f"{result['machine']}",
        "| pipeline | images/s per core | ± | ratio to plain tf.image |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['name']} | {row['median']:.0f} | {row['spread']:.0f} | {row['ratio']:.2f} |" for row in result["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--data", help="a folder of class folders with JPEGs; without it smooth pictures are made")
    parser.add_argument("--only", help="only rows with this in their name, beside plain tf.image")
    parser.add_argument("--rounds", type=int, help="turns of each row")
    parser.add_argument("--steps", type=int, help="batches of a turn")
    given = parser.parse_args()
    result = run(given)
    print(json.dumps(result) if given.json else table(result))
