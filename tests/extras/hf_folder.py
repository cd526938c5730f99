"""Check that `data.hf` reads a data set that Hugging Face's `datasets` saved."""

import sys

import datasets
import numpy as np
from PIL import Image

from keras_committee import data

names, rng = ["wasp", "ant"], np.random.default_rng(5)
images = [Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)) for _ in range(14)]
features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
columns = {"image": images, "label": [index % 2 for index in range(14)]}
datasets.Dataset.from_dict(columns, features=features).save_to_disk("insects")
splits = data.hf("insects", 4, size=(6, 5), validation=2, test=4).load()
if (splits.classes, len(splits.train), len(splits.test)) != (tuple(names), 8, 4):
    sys.exit(f"error: classes, training and test examples: {splits.classes}, {len(splits.train)}, {len(splits.test)}")
