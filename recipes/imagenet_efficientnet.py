"""Three EfficientNets vote on ImageNet: B0 to B7, without AutoAugment, as in the paper on committees.

    keras-committee describe recipes/imagenet_efficientnet.py --set variant=b5
    keras-committee make-tfrecords imagenet imagenet-records --shards 1024
    keras-committee train recipes/imagenet_efficientnet.py --set data_dir=imagenet-records
    keras-committee train recipes/imagenet_efficientnet.py --set variant=b3 --set precision=mixed_bfloat16 \
        --set data_dir=imagenet-records
    keras-committee train recipes/imagenet_efficientnet.py --set resolution=96 --set classes=10 --set batch_size=64 \
        --set form=folders --set data_dir=imagenette2 --set epochs=20

Expected: not run at full scale, which docs/scale.md reckons up. On ten classes of ImageNet, 3,150 images and 20 epochs,
`--set resolution=64 --set learning_rate=0.003 --set batch_size=32 --set ema=0.99` gave members of 48.6 and 47.4 % and
a committee of 51.6 %; 39 minutes each on a core of two. At the recipe's own rate nothing was learnt in steps so small.
The authors' single B0 has 76.8 % without AutoAugment, B5 83.1 %, on all of ImageNet.
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
    ema=0.9999,
    precision="float32",
    accumulate=1,
    classes=1000,
    validation=0.02,
    form="records",
    data_dir="imagenet",
    seed=0,
):
    """The arguments are the knobs: `--set name=value`, typed by these defaults.

    `learning_rate` is that of 256 images a step; the rate grows with `batch_size`, the authors' 4,096. `resolution` is
    the variant's own where None. `mode` "sample" draws the skipped blocks as the authors' code does; "batch" skips for
    the whole batch at once, which saves the time. `augment` is "none", "autoaugment" or "randaugment". `form` is
    "records", TFRecords in Model Garden's format, or "folders", one folder for each class in `train` and `val`.
    """
    if form not in ("records", "folders") or augment not in ("none", "autoaugment", "randaugment"):
        raise ValueError(f"no such form or augment. Received: {form=}, {augment=}")
    size = resolution or models.efficientnet_resolution(variant)
    read = data.imagenet_records if form == "records" else data.image_folder
    pictures = data.random_resized_crop()
    if augment != "none":
        policy = data.autoaugment() if augment == "autoaugment" else data.randaugment()
        pictures = data.compose(pictures, policy)

    def member(index):  # built under seed + index, so the members start apart
        return models.efficientnet(
            variant,
            classes=classes,
            image_size=size,
            survival=survival,
            mode=mode,
            scaling="training",
            l2=2.5e-6,  # Keras adds l2 * sum(w^2), TensorFlow's l2_loss half of it: 5e-6, without BN and biases
        )

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.lr_efficientnet(max(1, steps // epochs), batch_size, rate=learning_rate)
        return keras.optimizers.RMSprop(rate, rho=0.9, momentum=0.9, epsilon=1e-3)

    return Recipe(
        data=read(
            data_dir,
            batch_size,
            transform=data.center_crop(size, method="bicubic"),
            validation=validation,  # of the training images: ImageNet's own validation images are the test split
            augment=pictures,
        ),
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        label_smoothing=0.1,
        ema_momentum=ema,
        precision=precision,
        gradient_accumulation_steps=accumulate,
        seed=seed,
    )
