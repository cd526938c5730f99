"""Check that `data.tfds` reads a dataset that TensorFlow Datasets prepared offline."""

import sys

import numpy as np
import tensorflow_datasets as tfds

from keras_committee import data

names, rng = ["wasp", "ant"], np.random.default_rng(5)
features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=names)}
examples = [{"image": rng.integers(0, 256, (6, 5, 3), np.uint8), "label": index % 2} for index in range(14)]
tfds.dataset_builders.store_as_tfds_dataset(
    name="insects",
    version="1.0.0",
    features=tfds.features.FeaturesDict(features),
    split_datasets={"train": list(enumerate(examples))},
    data_dir="prepared",
)
splits = data.tfds("insects", 4, size=(6, 5), data_dir="prepared", validation=2, test=4).load()
if (splits.classes, len(splits.train), len(splits.test)) != (tuple(names), 8, 4):
    sys.exit(f"error: classes, training and test examples: {splits.classes}, {len(splits.train)}, {len(splits.test)}")
