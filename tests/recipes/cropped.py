"""A linear model of the center of color photographs, at any size: members that train in a second."""

import keras

from keras_committee import Recipe, data


def recipe(data_dir="", size=12, padding=4, members=1, epochs=2, batch_size=8, seed=7, classes=3):
    def member(index):
        image = keras.Input((size, size, 3), name="image")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(image)
        x = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(x))
        return keras.Model(image, keras.layers.Dense(classes, dtype="float32")(x), name=f"linear_{index}")

    return Recipe(
        data=data.image_folder(
            data_dir,
            batch_size,
            transform=data.center_crop(size, padding=padding),
            augment=data.compose(data.random_resized_crop(), data.pad_crop_flip(1)),
        ),
        member=member,
        members=members,
        optimizer=lambda steps: keras.optimizers.SGD(0.05),
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
        precision="float32",
    )
