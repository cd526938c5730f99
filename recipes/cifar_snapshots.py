"""A committee of four small speed nets on CIFAR-10 from one training: snapshots at the ends of four cycles.

    keras-committee train recipes/cifar_snapshots.py
    keras-committee train recipes/cifar_snapshots.py --set snapshots=1
    keras-committee train recipes/cifar_snapshots.py --set snapshots=1 --set end_rate=0.2 --set swa_epoch_start=0.75

The second line trains the same networks independently, at the same cost. The third saves each member with the mean of
its weights over the last quarter of the epochs, at a constant rate.

Expected: with 8, 32 and 32 channels on a third of the images, the last member 72.9 %, the committee 72.6 %; three
independent members of 6 epochs 65.9 %; averaged weights 70.3 % instead of 67.4 % (docs/results.md).
Source: snapshots: Huang et al. 2017, arXiv:1704.00109; averaged weights: Izmailov et al. 2018, arXiv:1803.05407; the
network: Jordan 2024, arXiv:2404.00498.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    members=4,
    snapshots=4,
    epochs=6,
    swa_epoch_start=0.0,
    end_rate=0.0,
    batch_size=512,
    learning_rate=0.6,
    weight_decay=0.001,
    widths="16-64-64",
    validation=5_000,
    precision="auto",
    data_dir=None,
    seed=0,
):
    """The arguments are the recipe parameters: `--set name=value`, typed by these defaults.

    Members come in chains of `snapshots`, which start from each other; each trains `epochs` epochs along half a cosine
    from `learning_rate` to 0. With `end_rate`, the rate falls linearly to it in three quarters of the steps and
    stays there, as averaged weights need it: `swa_epoch_start` is the fraction of the epochs after which the average
    begins, 0 for none. `data_dir` replaces the download. Member `i` is trained under `seed + i`.
    """

    def member(index):  # built under seed + index, so that members start from different weights
        channels = [int(width) for width in widths.split("-")]
        return models.speed_net(channels, classes=10, l2=weight_decay / 2)  # Keras adds l2 * sum(w^2) to the loss

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.cosine(steps, learning_rate)
        if end_rate:
            rate = schedules.PiecewiseLinear([0, 0.75 * steps], [learning_rate, end_rate])
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

    return Recipe(
        data=data.cifar10(batch_size, directory=data_dir, validation=validation, augment=data.pad_crop_flip(2)),
        member=member,
        members=members,
        snapshots=snapshots,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        swa_epoch_start=swa_epoch_start or None,
        precision=precision,
        seed=seed,
    )
