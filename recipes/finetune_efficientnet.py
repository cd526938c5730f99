"""EfficientNets learn your own classes: first new logits on frozen networks, then everything at a lower rate.

    keras-committee train recipes/finetune_efficientnet.py --set data_dir=photos
    keras-committee train recipes/finetune_efficientnet.py --set data_dir=photos --set variant=b3 \
        --set weights=efficientnetb3.h5
    keras-committee train recipes/finetune_efficientnet.py --set data_dir=photos --set weights=runs/imagenet

`data_dir` holds a folder of JPEG or PNG files for each class. Both parts are one training, which goes on at the very
step wherever it was stopped. Members differ in their logits, their batches and the blocks they skip; where they begin
with one network they agree more than networks trained apart.

Expected: only a `--smoke` run of 2 members on 10 classes, with weights saved from Keras' untrained B0, was made so far.
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
    head_rate=0.1,
    learning_rate=0.01,
    batch_size=64,
    resolution=None,
    survival=0.8,
    classes=None,
    precision="float32",
    seed=0,
):
    """The arguments are the knobs: `--set name=value`, typed by these defaults.

    `weights` is "imagenet", which Keras downloads; a file `.h5` of Keras' network of this variant; a `.keras` file or a
    run folder with EfficientNets of ours of this variant; or "none". `head_rate` is the rate of the `frozen_epochs`,
    in which only the logits train and every block runs, `learning_rate` where the cosine of the others begins.
    `classes` are counted in `data_dir` where None, `resolution` is the variant's own.
    """
    if not data_dir:
        raise ValueError("name the folder with your class folders: --set data_dir=...")
    if not 0 <= frozen_epochs < epochs:
        raise ValueError(f"frozen_epochs must be 0 or more and below epochs={epochs}. Received: {frozen_epochs}")
    size = resolution or models.efficientnet_resolution(variant)
    images = data.image_folder(
        data_dir, batch_size, transform=data.center_crop(size), augment=data.random_resized_crop()
    )
    from_keras = weights == "imagenet" or weights.endswith(".h5")

    def member(index):  # built under seed + index, so the logits start apart
        options = {"classes": classes or len(images.class_names()), "image_size": size, "survival": survival}
        if from_keras:
            return models.pretrained_efficientnet(variant, weights, scaling="training", **options)
        return models.efficientnet(variant, scaling="training", **options)

    def optimizer(steps):  # steps = epochs * batches per epoch
        frozen = steps * frozen_epochs // epochs
        low = schedules.cosine(steps - frozen, learning_rate)
        rate = schedules.SequentialSchedule(head_rate, frozen, low) if frozen else low
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
