"""Do the operations equal those of Keras' RandAugment for the same seeds?"""

import keras
import numpy as np
import tensorflow as tf

from keras_committee import data
from keras_committee.data.policies import KERAS_OPERATIONS, FixedSeedGenerator

SHAPE = (12, 10, 3)
EACH = 3  # images of each operation


def pictures(examples):
    return np.random.default_rng(1).integers(40, 220, (examples, *SHAPE), dtype=np.uint8)


def chosen():
    """Draws that name each operation: number and seed."""
    numbers = np.repeat(np.arange(len(KERAS_OPERATIONS)), EACH)
    seeds = np.random.default_rng(5).integers(2**31, size=(len(numbers), 2))
    return np.concatenate([numbers[:, None], seeds], axis=1).astype(np.int32)


def graph(augment, images, draws):
    pairs = tf.data.Dataset.from_tensors((images, draws))
    return next(pairs.map(augment.apply).as_numpy_iterator())


def theirs(layer, image, number, seed):
    """Keras' layer, told which operation and which numbers."""
    image, name = tf.constant(image, tf.float32)[None], list(KERAS_OPERATIONS)[number]
    numbers = getattr(layer, name).get_random_transformation(
        image, training=True, seed=FixedSeedGenerator(tf.constant(seed))
    )
    # Of its operations it computes all and takes one: that one is all of them here, and so the first.
    return layer.transform_images(image, {"layer_idxes": [0], "transforms": {name: numbers}})[0]


def test_the_operations_are_those_of_keras_in_its_order():
    assert list(KERAS_OPERATIONS) == keras.layers.RandAugment._AUGMENT_LAYERS


def test_every_operation_equals_that_of_keras():
    draws = chosen()
    images, layer = pictures(len(draws)), keras.layers.RandAugment(num_ops=1, factor=0.7)
    expected = [theirs(layer, image, row[0], row[1:]) for image, row in zip(images, draws, strict=True)]
    varied = graph(data.randaugment(1, 7, source="keras"), images, draws)
    assert varied.dtype == np.uint8
    np.testing.assert_array_equal(varied, np.clip(np.rint(expected), 0, 255).astype(np.uint8))
    assert (varied != images).any(axis=(1, 2, 3)).mean() > 0.7


def test_the_draws_alone_decide_and_the_second_layer_follows_the_first():
    both, single = data.randaugment(2, source="keras"), data.randaugment(1, source="keras")
    draws = np.array([[0, 2, 5, 6, 7, 8], [7, 5, 3, 4, 1, 2]], np.int32)  # operations, then two seeds each
    images = tf.constant(pictures(2))
    varied = both.apply(images, draws).numpy()
    np.testing.assert_array_equal(varied, both.apply(images, draws))
    once = single.apply(images, draws[:, [0, 2, 3]])
    apart = np.abs(single.apply(once, draws[:, [1, 4, 5]]).numpy().astype(int) - varied)
    assert np.median(apart) <= 1  # between the layers nothing is rounded


def test_operations_are_equally_likely_and_a_seed_gives_several_numbers():
    draws = data.randaugment(2, source="keras").draw(np.random.default_rng(0), 11_000)
    counts = np.bincount(draws[:, :2].ravel(), minlength=11)
    np.testing.assert_allclose(counts / 22_000, 1 / 11, atol=0.01)
    seeds = FixedSeedGenerator(tf.constant([3, 5]))
    assert [seeds.next().numpy().tolist() for _ in range(3)] == [[3, 5], [3, 6], [3, 7]]
