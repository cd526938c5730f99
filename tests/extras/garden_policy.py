"""Does Model Garden's AutoAugment vary images, and the same way when it is asked again?"""

import sys

import numpy as np

from keras_committee import data

policy = data.autoaugment()
images = np.random.default_rng(3).integers(0, 256, (8, 32, 32, 3), np.uint8)
first, again = (np.asarray(policy.apply(images, policy.draw(np.random.default_rng(7), 8))) for _ in range(2))
if (first == images).all() or (first != again).any():
    sys.exit("the policy left all images as they were, or did not repeat itself")
