"""A linear model on the digits: members that train in a second."""

import keras

from keras_committee import Recipe, data


def recipe(members=3, epochs=2, batch_size=64, learning_rate=0.05, seed=7, classes=10):
    def member(index):
        image = keras.Input((32, 32, 3), name="image")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(image)
        x = keras.layers.AveragePooling2D(4)(x)
        x = keras.layers.Flatten()(x)
        return keras.Model(image, keras.layers.Dense(classes, dtype="float32")(x), name=f"linear_{index}")

    return Recipe(
        data=data.digits(batch_size, augment=data.pad_crop_flip(1, flip=False)),
        member=member,
        members=members,
        optimizer=lambda steps: keras.optimizers.SGD(learning_rate),
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
        precision="float32",
    )
