"""Test accuracy of a plain four-layer CNN within a time limit, for comparison with a recipe of `keras-committee init`.

    python benchmarks/plain_cnn.py --images photos --test unseen --seconds 260

Convolutions of 32, 64, 128 and 128 channels with max pooling, average pooling, dropout and a dense layer; Adam,
mirrored images. It trains on all images of the folder: nothing is held out. The clock is the CPU time of the training.
"""

import argparse
import json
import time

import keras
import numpy as np

from keras_committee import data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder with one folder of training images per class")
    parser.add_argument("--test", required=True, help="folder with one folder of test images per class")
    parser.add_argument("--seconds", type=float, default=260, help="CPU time of the training")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    images, labels = read(options.images, options.size)
    test_images, test_labels = read(options.test, options.size)
    model = build(options.size, classes=int(labels.max()) + 1)
    started, epochs = time.process_time(), 0
    while time.process_time() - started < options.seconds:
        model.fit(images, labels, batch_size=32, verbose=0)
        epochs += 1
    accuracy = float((model.predict(test_images, verbose=0).argmax(1) == test_labels).mean())
    print(json.dumps({"seed": options.seed, "images": len(labels), "epochs": epochs, "accuracy": accuracy}))


def read(folder: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of class folders, uint8 `(n, size, size, 3)`, and their labels."""
    split = data.image_folder(folder, 1, size=(size, size), validation=0, test=0).load().train
    batches = [(images.numpy(), labels.numpy()) for images, labels in split.batches(64)]
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def build(size: int, classes: int) -> keras.Model:
    """Return the compiled network."""
    model = keras.Sequential([keras.Input((size, size, 3)), keras.layers.RandomFlip("horizontal")])
    model.add(keras.layers.Rescaling(1 / 255))
    for channels in (32, 64, 128, 128):
        model.add(keras.layers.Conv2D(channels, 3, padding="same", activation="relu"))
        model.add(keras.layers.MaxPooling2D())
    for layer in (keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.3), keras.layers.Dense(classes)):
        model.add(layer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return model


if __name__ == "__main__":
    main()
