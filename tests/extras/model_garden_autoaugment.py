"""Check that Model Garden's AutoAugment changes images, and repeats its result with the same seed."""

import sys

import numpy as np

from keras_committee import data

policy = data.autoaugment()
images = np.random.default_rng(3).integers(0, 256, (8, 32, 32, 3), np.uint8)
first, second = (np.asarray(policy.apply(images, policy.draw(np.random.default_rng(7), 8))) for _ in range(2))
if (first == images).all() or (first != second).any():
    sys.exit("error: AutoAugment changed no image, or two results with the same seed differ")
