"""ResNet-110 with stochastic depth on CIFAR-10: training skips residual blocks, the last ones most often.

    keras-committee train recipes/cifar_stochastic_depth.py
    keras-committee train recipes/cifar_stochastic_depth.py --set survival=1.0      # constant depth
    keras-committee train recipes/cifar_stochastic_depth.py --set depth=1202 --set epochs=300 --set warmup_epochs=10 \
        --set "drops=(0.5, 0.75)" --set batch_size=32

Expected: not run at 500 epochs yet. `--set depth=56 --set epochs=40` on CIFAR-10 (JPEG q75): 15.2 and 16.0 % test
error, 106 minutes on one core with AMX; constant depth: 13.7 and 13.7 %, 126 minutes. A step of ResNet-110 takes 0.75
of the time of constant depth.
Source: Huang et al. 2016, arXiv:1603.09382 (5.25 % test error, constant depth 6.41 %, a quarter of the training time
saved); ResNet: He et al. 2016, arXiv:1512.03385.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    members=1,
    depth=110,
    survival=0.5,
    mode="batch",
    epochs=500,
    batch_size=128,
    learning_rate=0.1,
    drops=(0.5, 0.75),
    warmup_epochs=0,
    remat=False,
    precision="auto",
    data_dir=None,
    seed=0,
):
    """The arguments are the recipe parameters: `--set name=value`, typed by these defaults.

    `survival` is the survival probability of the last block; it falls linearly from 1 at the input. 1.0 is constant
    depth. The learning rate is divided by 10 after the fractions `drops` of the training; the first `warmup_epochs` run
    at a tenth of it.
    """

    def member(index):  # built under seed + index, so that members start from different weights
        return models.resnet(
            depth,
            classes=10,
            survival=survival if survival < 1 else None,
            mode=mode,
            l2=5e-5,  # Keras adds l2 * sum(w^2): the paper's 1e-4
            remat=remat,
        )

    def optimizer(steps):  # steps = epochs * batches per epoch
        warmup_steps = round(steps * warmup_epochs / epochs)
        rate = schedules.lr_stochastic_depth(steps, learning_rate, drops, warmup_steps)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

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
