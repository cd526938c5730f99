"""Four WRN-10-1 vote on the handwritten digits that come with scikit-learn. No download; two CPU cores suffice.

    keras-committee train recipes/digits_wrn.py
    keras-committee train recipes/digits_wrn.py --set members=8 --set epochs=20

Expected: committee 99.7 %, mean member 99.2 % of the 360 test digits; 58 s on two idle CPU cores.
Source: data: Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits; committee: Kondratyuk et al. 2020,
arXiv:2005.00570; WRN: Zagoruyko & Komodakis 2016, arXiv:1605.07146.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(members=4, depth=10, width=1, epochs=12, batch_size=64, learning_rate=0.1, seed=0):
    """The arguments are the knobs: `--set name=value`, typed by these defaults.

    `depth` is 6N + 4, `width` multiplies the channels. `learning_rate` is the highest, after a tenth of the steps, for
    `batch_size` images over all devices. Member `i` starts under `seed + i`.
    """

    def member(index):  # built under seed + index, so the members start apart
        # Mean and standard deviation of the pixels over all 1,797 images, on the scale 0..255.
        return models.wide_resnet(depth, width, classes=10, l2=2.5e-4, mean=77.9, std=95.9)

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.cosine(steps, learning_rate, warmup_steps=steps // 10)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

    return Recipe(
        data=data.digits(batch_size, augment=data.pad_crop_flip(2, flip=False)),  # a mirrored digit is no digit
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
    )
