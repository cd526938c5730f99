"""A committee of eight WRN-16-4 on CIFAR-10.

    keras-committee train recipes/cifar_wrn.py
    keras-committee train recipes/cifar_wrn.py --set width=2 --set members=4 --set epochs=60

Expected: not run at 200 epochs yet. `--set members=4 --set width=1 --set epochs=10` on CIFAR-10 (JPEG q75): committee
82.2 %, mean member 80.3 %, 46 minutes on two shared CPU cores, in float32.
Source: Kondratyuk et al. 2020, arXiv:2005.00570; WRN: Zagoruyko & Komodakis 2016, arXiv:1605.07146.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    members=8, depth=16, width=4, epochs=200, batch_size=128, learning_rate=0.1, precision="auto", data_dir=None, seed=0
):
    """The arguments are the recipe parameters: `--set name=value`, typed by these defaults.

    `depth` is 6N + 4; `width` multiplies the channels. `learning_rate` is the initial rate; `batch_size` counts the
    images per step over all devices. `data_dir` replaces the download. Member `i` is trained under `seed + i`.
    """

    def member(index):  # built under seed + index, so that members start from different weights
        return models.wide_resnet(depth, width, classes=10, l2=2.5e-4)  # Keras adds l2 * sum(w^2): the paper's 5e-4

    def optimizer(steps):  # steps = epochs * batches per epoch
        return keras.optimizers.SGD(schedules.lr_wide_resnet(steps, learning_rate), momentum=0.9, nesterov=True)

    return Recipe(
        data=data.cifar10(batch_size, directory=data_dir, validation=5_000, augment=data.pad_crop_flip(4)),
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        precision=precision,
        seed=seed,
    )
