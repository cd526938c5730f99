"""A small network with everything that members have of their own: batch statistics, dropout, stochastic depth."""

import keras

from keras_committee import Recipe, data, layers, schedules


def recipe(members=3, epochs=2, seed=7, precision="float32", width=8, odd=0, flip=False, learning_rate=0.1):
    def member(index):
        filters = width + 1 if odd and index else width
        image = keras.Input((32, 32, 3), name="image")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(image)
        x = keras.layers.AveragePooling2D(4)(x)
        decay = keras.regularizers.L2(1e-3)
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_regularizer=decay)(x)
        x = layers.BatchNormalization()(x)
        x = layers.StochasticDepth(keras.layers.Conv2D(filters, 3, padding="same"), survival=0.5)(x)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
        x = keras.layers.Dropout(0.1)(x)
        return keras.Model(image, keras.layers.Dense(10, dtype="float32")(x), name=f"small_{index}")

    return Recipe(
        data=data.digits(64, augment=data.pad_crop_flip(1, flip=flip)),
        member=member,
        members=members,
        optimizer=lambda steps: keras.optimizers.SGD(schedules.cosine(steps, learning_rate, 5), momentum=0.9),
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
        precision=precision,
        survival=layers.linear_schedule(1.0, 0.5, 2),
        ema_momentum=0.9,
        lookahead=schedules.Lookahead(period=3, start=0.2, end=0.8),
        learning_rate_multipliers={"*/beta": 8.0},
        label_smoothing=0.1,
        global_clipnorm=1.0,
        class_weight={"3": 2.0, 1: 0.5},
        learning_rate_scale=lambda index: 1 / (1 + index),
    )
