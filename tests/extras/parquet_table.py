"""Check that `data.table` reads a Parquet file of image paths and labels."""

import sys

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from keras_committee import data

names, rng = ["wasp", "ant"], np.random.default_rng(5)
paths = [f"{index}.webp" for index in range(14)]
for path in paths:
    Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(path)
table = pyarrow.table({"filename": paths, "label": [names[index % 2] for index in range(14)]})
pyarrow.parquet.write_table(table, "insects.parquet")
splits = data.table("insects.parquet", 4, size=(6, 5), validation=2, test=4).load()
if (splits.classes, len(splits.train), len(splits.test)) != (("ant", "wasp"), 8, 4):
    sys.exit(f"error: classes, training and test examples: {splits.classes}, {len(splits.train)}, {len(splits.test)}")
