"""Test accuracy of the recipe that `keras-committee init` writes, and of a plain four-layer CNN in the same time.

    python benchmarks/plain_cnn.py --images photos --test unseen
    python benchmarks/plain_cnn.py --images photos --test unseen --cnn-images training

For each seed both sides train at the same time, each on one core; they change the cores from seed to seed. The
committee trains its members one after another, as `--workers 1` does. Then the CNN trains until it has used as much
CPU time, the start of TensorFlow included on both sides. The CNN has convolutions of 32, 64, 128 and 128 channels with
max pooling, average pooling, dropout and a dense layer; Adam, mirrored images.

`--cnn-images all` gives the CNN every image of the folder, so that nothing is left to estimate its accuracy; `training`
gives it the images on which the members train, and keeps the weights of its best epoch on the validation images.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = 96  # pixels, of the CNN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with one folder of images per class")
    parser.add_argument("--test", type=Path, required=True, help="folder with one folder of test images per class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 100, 200])
    parser.add_argument("--cnn-images", choices=["all", "training"], default="all")
    parser.add_argument("--set", action="append", default=[], help="recipe parameter of the committee: NAME=VALUE")
    parser.add_argument("--quick", action="store_true", help="one seed and two epochs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--worker", nargs=2, metavar=("SEED", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train_cnn(options, int(options.worker[0]), Path(options.worker[1]))
        return
    seeds = options.seeds[:1] if options.quick else options.seeds
    rows = [compare(options, seed, turn) for turn, seed in enumerate(seeds)]
    if options.json:
        machine = {"cpus": os.cpu_count(), "test_images": rows[0]["test_images"], "cnn_images": options.cnn_images}
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}))


def compare(options: argparse.Namespace, seed: int, turn: int) -> dict:
    """Train both sides at the same time, and return accuracies and CPU times."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = [sys.executable, __file__, "--images", options.images, "--test", options.test]
        cnn = _start([*program, "--cnn-images", options.cnn_images, "--worker", seed, folder], cores[turn % len(cores)])
        before = _children_seconds()
        try:
            committee = train_committee(options, seed, folder, cores[(turn + 1) % len(cores)])
            seconds = _children_seconds() - before
            (folder / "seconds").write_text(str(seconds))
            predictions = folder / "predictions.csv"
            _run(["predict", folder / "run", options.test, "--csv", predictions], cores[0])
            cnn.wait()
        finally:
            cnn.kill()
        row = {"seed": seed, "committee": accuracy(predictions), "committee_seconds": seconds, **committee}
        row |= json.loads((folder / "cnn.json").read_text())
    print(json.dumps(row), flush=True)
    return row


def train_committee(options: argparse.Namespace, seed: int, folder: Path, core: int) -> dict:
    """Write a recipe, train it and return what was trained."""
    images = options.images.resolve()
    written = _run(["init", folder / "recipe.py", "--from", "image-folder", images, "--json"], core)
    recipe = json.loads(written)
    parameters = [f"seed={seed}", *options.set, *(["epochs=2"] if options.quick else [])]
    overrides = [word for parameter in parameters for word in ("--set", parameter)]
    _run(["train", folder / "recipe.py", "--run", folder / "run", "--workers", "1", *overrides], core)
    return {name: recipe[name] for name in ("network", "members", "training_images", "validation_images")}


def accuracy(predictions: Path) -> float:
    """Return the share of the images whose first class is the name of their folder."""
    with open(predictions, newline="") as file:
        rows = [Path(row["image"]).parent.name == row["class"] for row in csv.DictReader(file)]
    return sum(rows) / len(rows)


def train_cnn(options: argparse.Namespace, seed: int, folder: Path) -> None:
    """Train the CNN until it has used the CPU time that the committee needed, and write its accuracy."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(seed)
    splits = _read(options.images, *((0.2, 0.2) if options.cnn_images == "training" else (0, 0)))
    images, labels = _arrays(splits.train)
    model, epochs, best = build_cnn(classes=len(splits.classes)), 0, (-1.0, None)
    while not (folder / "seconds").exists() or time.process_time() < float((folder / "seconds").read_text()):
        model.fit(images, labels, batch_size=32, verbose=0)
        epochs += 1
        if len(splits.validation):
            validation_images, validation_labels = _arrays(splits.validation)
            score = float(np.mean(model.predict(validation_images, verbose=0).argmax(1) == validation_labels))
            best = (score, model.get_weights()) if score > best[0] else best
    seconds = time.process_time()
    if best[1] is not None:
        model.set_weights(best[1])
    test_images, test_labels = _arrays(_read(options.test, 0, 0).train)
    correct = model.predict(test_images, verbose=0).argmax(1) == test_labels
    row = {"cnn": float(correct.mean()), "cnn_seconds": seconds, "cnn_epochs": epochs, "cnn_images": len(labels)}
    (folder / "cnn.json").write_text(json.dumps(row | {"test_images": len(test_labels)}))


def build_cnn(classes: int):
    """Return the compiled network."""
    import keras

    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.RandomFlip("horizontal")])
    model.add(keras.layers.Rescaling(1 / 255))
    for channels in (32, 64, 128, 128):
        model.add(keras.layers.Conv2D(channels, 3, padding="same", activation="relu"))
        model.add(keras.layers.MaxPooling2D())
    for layer in (keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.3), keras.layers.Dense(classes)):
        model.add(layer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return model


def _read(folder: Path, validation: float, test: float):
    from keras_committee import data

    return data.image_folder(folder, 1, size=(SIZE, SIZE), validation=validation, test=test).load()


def _arrays(split):
    """Return the images of a split, uint8 `(n, size, size, 3)`, and their labels."""
    return split.images.numpy(), split.labels


def _run(words: list, core: int) -> str:
    """Run a command of keras-committee on one core; return what it prints."""
    process = _start([sys.executable, "-m", "keras_committee.cli", *words], core, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"keras-committee {words[0]} failed with code {process.returncode}")
    return output


def _start(words: list, core: int, **options) -> subprocess.Popen:
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}

    def pin():
        os.sched_setaffinity(0, {core})

    return subprocess.Popen(list(map(str, words)), env=environment, preexec_fn=pin, **options)


def _children_seconds() -> float:
    """Return the CPU time of the processes that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
