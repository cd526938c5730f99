"""A committee of three EfficientNets on ImageNet: B0 to B7, without AutoAugment, as in the paper on committees.

    keras-committee describe recipes/imagenet_efficientnet.py --set variant=b5
    keras-committee make-tfrecords imagenet imagenet-records --shards 1024
    keras-committee train recipes/imagenet_efficientnet.py --set data_dir=imagenet-records
    keras-committee train recipes/imagenet_efficientnet.py --set variant=b3 --set precision=mixed_bfloat16 \
        --set data_dir=imagenet-records
    keras-committee train recipes/imagenet_efficientnet.py --set resolution=96 --set classes=10 --set batch_size=64 \
        --set input_format=folders --set data_dir=imagenette2 --set epochs=20

Expected: not run at full scale; docs/scale.md estimates the cost. On ten classes of ImageNet, 3,150 images, 20 epochs,
`--set resolution=64 --set learning_rate=0.003 --set batch_size=32 --set ema_momentum=0.99` gave members with 48.6 and
47.4 % and a committee with 51.6 %, in 39 minutes per member on one of two cores; at the default learning rate the
members did not learn. The authors report 76.8 % for B0 without AutoAugment and 83.1 % for B5, on all of ImageNet.
Source: Kondratyuk et al. 2020, arXiv:2005.00570; EfficientNet: Tan & Le 2019, arXiv:1905.11946; the numbers below:
google/uncertainty-baselines, baselines/imagenet/efficientnet.py, and EMA from the authors' tensorflow/tpu.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    variant="b0",
    members=3,
    epochs=350,
    batch_size=256,
    learning_rate=0.016,
    resolution=None,
    survival=0.8,
    mode="batch",
    augment="none",
    ema_momentum=0.9999,
    precision="auto",
    gradient_accumulation_steps=1,
    classes=1000,
    validation=0.02,
    input_format="records",
    data_dir="imagenet",
    seed=0,
):
    """The arguments are the recipe parameters: `--set name=value`, typed by these defaults.

    `learning_rate` is for 256 images per step; the rate is proportional to `batch_size`, 4,096 in the paper. By default
    `resolution` is that of the variant. `mode` "sample" skips blocks per image, like the authors' code; "batch" skips
    them for the whole batch, which saves time. `augment` is "none", "autoaugment" or "randaugment". `input_format` is
    "records" (TFRecords in Model Garden's format) or "folders" (class folders in `train` and `val`).
    """
    if input_format not in ("records", "folders"):
        raise ValueError(f"input_format must be records or folders. Received: {input_format!r}")
    if augment not in ("none", "autoaugment", "randaugment"):
        raise ValueError(f"augment must be none, autoaugment or randaugment. Received: {augment!r}")
    size = resolution or models.efficientnet_resolution(variant)
    read = data.imagenet_records if input_format == "records" else data.image_folder
    augmentation = data.random_resized_crop()
    if augment != "none":
        policy = data.autoaugment() if augment == "autoaugment" else data.randaugment()
        augmentation = data.compose(augmentation, policy)

    def member(index):  # built under seed + index, so that members start from different weights
        return models.efficientnet(
            variant,
            classes=classes,
            image_size=size,
            survival=survival,
            mode=mode,
            scaling="training",
            l2=2.5e-6,  # Keras adds l2 * sum(w^2); TensorFlow's l2_loss adds half: the authors' 5e-6. No BN, no biases
        )

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.lr_efficientnet(max(1, steps // epochs), batch_size, rate=learning_rate)
        return keras.optimizers.RMSprop(rate, rho=0.9, momentum=0.9, epsilon=1e-3)

    return Recipe(
        data=read(
            data_dir,
            batch_size,
            transform=data.center_crop(size, method="bicubic"),
            validation=validation,  # fraction of the training images; ImageNet's validation images are the test split
            augment=augmentation,
        ),
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        label_smoothing=0.1,
        ema_momentum=ema_momentum,
        precision=precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
    )
