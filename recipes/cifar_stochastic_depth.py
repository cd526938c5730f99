"""ResNet-110 with stochastic depth on CIFAR-10: residual blocks are skipped while training, the last ones most often.

    keras-committee train recipes/cifar_stochastic_depth.py
    keras-committee train recipes/cifar_stochastic_depth.py --set survival=1.0      # constant depth
    keras-committee train recipes/cifar_stochastic_depth.py --set depth=1202 --set epochs=300 --set warm_up=10 \
        --set "drops=(0.5, 0.75)" --set batch_size=32

Expected: at 500 epochs not run yet. `--set depth=56 --set epochs=4` on CIFAR-10 (JPEG q75): 50.6 % test error in 28
minutes on one core, constant depth 48.2 % in 32 (README). A training step of ResNet-110 takes 0.75 of constant depth.
Source: Huang et al. 2016, arXiv:1603.09382 (there: 5.25 % test error against 6.41 % at constant depth, and a quarter of
the time saved); ResNet: He et al. 2016, arXiv:1512.03385.
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
    warm_up=0,
    remat=False,
    data_dir=None,
    seed=0,
):
    """The arguments are the knobs: `--set name=value`, typed by these defaults.

    `survival` is that of the last block; it falls linearly from 1 at the input. 1.0 is a network of constant depth.
    `drops` are the parts of the training after which the rate falls to a tenth; `warm_up` epochs run at a tenth first.
    """

    def member(index):  # built under seed + index, so the members start apart
        return models.resnet(
            depth,
            classes=10,
            survival=survival if survival < 1 else None,
            mode=mode,
            l2=5e-5,  # Keras adds l2 * sum(w^2): the paper's 1e-4
            remat=remat,
        )

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.lr_stochastic_depth(steps, learning_rate, drops, warmup_steps=round(steps * warm_up / epochs))
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

    return Recipe(
        data=data.cifar10(batch_size, directory=data_dir, validation=5_000, augment=data.pad_crop_flip(4)),
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
    )
