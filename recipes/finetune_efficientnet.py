"""Fine-tuning of EfficientNets on your own classes: first new logits on frozen networks, then all layers.

    keras-committee train recipes/finetune_efficientnet.py --set data_dir=photos
    keras-committee train recipes/finetune_efficientnet.py --set data_dir=photos --set variant=b3 \
        --set weights=efficientnetb3.h5
    keras-committee train recipes/finetune_efficientnet.py --set data_dir=photos --set weights=runs/imagenet

`data_dir` has one folder of JPEG or PNG files per class. Both phases are one training, which resumes at the exact step.
Members differ in their initial logits, their batches and the blocks they skip. Members that start from the same network
agree more than independently trained ones.

Expected: not run at full scale yet, only with `--smoke`: 2 members, 10 classes, weights of an untrained B0 of Keras.
Source: frozen first: Kumar et al. 2022, arXiv:2202.10054; EfficientNet: Tan & Le 2019, arXiv:1905.11946.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    data_dir="",
    weights="imagenet",
    variant="b0",
    members=3,
    frozen_epochs=5,
    epochs=20,
    frozen_learning_rate=0.1,
    learning_rate=0.01,
    batch_size=64,
    resolution=None,
    survival=0.8,
    classes=None,
    precision="auto",
    seed=0,
):
    """The arguments are the recipe parameters: `--set name=value`, typed by these defaults.

    `weights` is "imagenet" (downloaded by Keras), an `.h5` file of Keras' network of this variant, a `.keras` file or a
    run folder of this toolkit's EfficientNets of this variant, or "none". The first `frozen_epochs` train only the
    logits, at `frozen_learning_rate`, and run every block. The other epochs train all layers with cosine decay from
    `learning_rate`. By default `classes` is the number of folders in `data_dir`, `resolution` that of the variant.
    """
    if not data_dir:
        raise ValueError("data_dir must be the folder of your class folders: --set data_dir=PATH")
    if not 0 <= frozen_epochs < epochs:
        raise ValueError(f"frozen_epochs must be 0 or more and below epochs={epochs}. Received: {frozen_epochs}")
    size = resolution or models.efficientnet_resolution(variant)
    images = data.image_folder(
        data_dir, batch_size, transform=data.center_crop(size), augment=data.random_resized_crop()
    )
    from_keras = weights == "imagenet" or weights.endswith(".h5")

    def member(index):  # built under seed + index, so that the logits start from different weights
        options = {"classes": classes or len(images.class_names()), "image_size": size, "survival": survival}
        if from_keras:
            return models.pretrained_efficientnet(variant, weights, scaling="training", **options)
        return models.efficientnet(variant, scaling="training", **options)

    def optimizer(steps):  # steps = epochs * batches per epoch
        frozen_steps = steps * frozen_epochs // epochs
        rate = schedules.cosine(steps - frozen_steps, learning_rate)
        if frozen_steps:
            rate = schedules.SequentialSchedule(frozen_learning_rate, frozen_steps, rate)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

    return Recipe(
        data=images,
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        label_smoothing=0.1,
        initial_weights=None if from_keras or weights == "none" else weights,
        trainable_layers=lambda epoch: ["logits"] if epoch < frozen_epochs else ["*"],
        survival=lambda epoch: 1.0 if epoch < frozen_epochs else survival,
        restore_best="accuracy",
        precision=precision,
        seed=seed,
    )
