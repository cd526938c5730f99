"""A committee of four speed nets on CIFAR-10: accurate members after minutes of training.

    keras-committee train recipes/cifar_fast.py
    keras-committee train recipes/cifar_fast.py --set epochs=8 --set members=2

Expected: members 89.6 %, committee 91.5 % on CIFAR-10 (JPEG q75), with 5,000 images left out for validation; about 48
minutes on two idle CPU cores with AMX.
Source: Jordan 2024, arXiv:2404.00498.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    members=4,
    epochs=16,
    batch_size=1024,
    learning_rate=1.5,
    weight_decay=0.00133,
    widths="64-256-256",
    activation="quick_gelu",
    label_smoothing=0.2,
    bias_multiplier=1.0,
    whitening_epochs=3,
    lookahead=True,
    pad=2,
    flip="random",
    survival=0.0,
    validation=5_000,
    precision="auto",
    data_dir=None,
    seed=0,
):
    """The arguments are the recipe parameters: `--set name=value`, typed by these defaults.

    `widths` are the channels of the groups. `learning_rate` is the highest rate, for batches of 1,024;
    `bias_multiplier` is how much larger the rate of the batch normalizations' biases is (64 in the paper, without a
    gain here). The biases of the whitening are trained in the first `whitening_epochs` only, which then saves the
    gradient of the first convolution's inputs; 0 trains them throughout. `survival` is p_L of stochastic depth, 0 for
    none. `pad` is the largest shift of an image; `flip` is "random", "alternate" or "none". `data_dir` replaces the
    download. Member `i` is trained under `seed + i`.
    """

    def member(index):  # built under seed + index, so that members start from different weights
        return models.speed_net(
            [int(width) for width in widths.split("-")],
            classes=10,
            activation=activation,
            l2=weight_decay / 2,  # Keras adds l2 * sum(w^2) to the loss
            survival=survival or None,
        )

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.triangular(steps, learning_rate * batch_size / 1024)
        return keras.optimizers.SGD(rate, momentum=0.85, nesterov=True)

    def freeze_whitening(epoch):
        return ["*"] if epoch < whitening_epochs else ["group_*", "block_*", "batch_normalization*", "dense*"]

    return Recipe(
        data=data.cifar10(
            batch_size,
            directory=data_dir,
            validation=validation,
            augment=data.pad_crop_flip(pad, flip=flip if flip == "alternate" else flip == "random"),
        ),
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        label_smoothing=label_smoothing,
        learning_rate_multipliers={"*/beta": bias_multiplier} if bias_multiplier != 1 else None,
        lookahead=schedules.Lookahead(period=5, start=0.0, end=0.95**5, power=3.0) if lookahead else None,
        trainable_layers=freeze_whitening if whitening_epochs else None,
        precision=precision,
        seed=seed,
    )
