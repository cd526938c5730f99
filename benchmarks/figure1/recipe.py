"""A committee of WRN-16-width on CIFAR-10 with one learning rate cycle: one point of the paper's figure 1.

    keras-committee train benchmarks/figure1/recipe.py --stacked --set width=2 --set data_dir=cifar10.npz

Expected: see docs/results.md.
Source: Kondratyuk et al. 2020, arXiv:2005.00570, figure 1; WRN: Zagoruyko & Komodakis 2016, arXiv:1605.07146.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    width=1, members=8, depth=16, epochs=16, batch_size=128, learning_rate=0.2, warmup=0.15, data_dir="", seed=0
):
    """The arguments are the recipe parameters. `warmup` is the fraction of the steps in which the rate rises."""

    def member(index):
        return models.wide_resnet(depth, width, classes=10, l2=2.5e-4)

    def optimizer(steps):
        rate = schedules.cosine(steps, learning_rate, round(warmup * steps))
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

    return Recipe(
        data=data.cifar10(batch_size, directory=data_dir or None, validation=5_000, augment=data.pad_crop_flip(4)),
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        precision="mixed_bfloat16",
        seed=seed,
    )
