"""Two small members that wait at the start of their third epoch until a file exists, so that a test can interfere."""

import pathlib
import time

import keras

from keras_committee import Recipe, data, layers


def recipe(members=2, epochs=4, gate="", seed=7):
    def member(index):
        image = keras.Input((32, 32, 3), name="image")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(image)
        x = keras.layers.AveragePooling2D(4)(x)
        x = keras.layers.Flatten()(x)
        x = layers.StochasticDepth(keras.layers.Dense(192), survival=0.7)(x)
        return keras.Model(image, keras.layers.Dense(10, dtype="float32")(x), name=f"gated_{index}")

    def survival(epoch):  # called at the start of each epoch
        while epoch == 2 and gate and not pathlib.Path(gate).exists():
            time.sleep(0.05)
        return 0.7

    return Recipe(
        data=data.digits(64, augment=data.pad_crop_flip(1, flip=False)),
        member=member,
        members=members,
        optimizer=lambda steps: keras.optimizers.SGD(0.05),
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
        precision="float32",
        survival=survival,
    )
