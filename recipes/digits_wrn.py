"""A committee of four WRN-10-1 on the handwritten digits of scikit-learn. No download; two CPU cores are enough.

    keras-committee train recipes/digits_wrn.py
    keras-committee train recipes/digits_wrn.py --set members=8 --set epochs=20

Expected: committee 99.7 %, mean member 99.2 % of the 360 test digits; 58 s on two idle CPU cores, in float32.
Source: data: Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits; committee: Kondratyuk et al. 2020,
arXiv:2005.00570; WRN: Zagoruyko & Komodakis 2016, arXiv:1605.07146.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(members=4, depth=10, width=1, epochs=12, batch_size=64, learning_rate=0.1, precision="auto", seed=0):
    """The arguments are the recipe parameters: `--set name=value`, typed by these defaults.

    `depth` is 6N + 4; `width` multiplies the channels. `learning_rate` is the highest rate, after a tenth of the steps;
    `batch_size` counts the images per step over all devices. Member `i` is trained under `seed + i`.
    """

    def member(index):  # built under seed + index, so that members start from different weights
        # Mean and standard deviation of the pixels of all 1,797 images, on the scale 0..255.
        return models.wide_resnet(depth, width, classes=10, l2=2.5e-4, mean=77.9, std=95.9)

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.cosine(steps, learning_rate, warmup_steps=steps // 10)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

    return Recipe(
        data=data.digits(batch_size, augment=data.pad_crop_flip(2, flip=False)),  # flipped digits are not digits
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        precision=precision,
        seed=seed,
    )
