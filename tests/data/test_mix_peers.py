"""Do mixup and CutMix equal the layers of Keras and keras-cv, given the same weight, box and partner?"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import data
from keras_committee.data.mix import mix_targets

SHAPE = (9, 7, 3)
BATCH = 5
NEXT = np.roll(np.arange(BATCH), -1)  # the partner of each
LABELS = np.array([2, 0, 0, 3, 1])
ONE_HOT = np.eye(4, dtype=np.float32)[LABELS]
WEIGHT = 45 / 64  # a sum of powers of two: every product is exact, whatever the order


def pictures():
    return np.random.default_rng(1).integers(0, 256, (BATCH, *SHAPE), dtype=np.uint8)


def ours(mix, draws):
    images, share = mix.apply(tf.constant(pictures()), tf.constant(draws))
    return images.numpy(), mix_targets(tf.constant(LABELS), share, 4).numpy()


def assert_same(one, images, targets):
    np.testing.assert_array_equal(one[0], np.rint(images))
    np.testing.assert_allclose(one[1], targets, atol=1e-6)


def test_mixup_equals_that_of_keras():
    layer = keras.layers.MixUp(seed=0)
    chosen = {"mix_weight": tf.fill([BATCH], WEIGHT), "permutation_order": NEXT}
    images, targets = layer.transform_images(pictures(), chosen), layer.transform_labels(ONE_HOT, chosen)
    assert_same(ours(data.mixup(), [WEIGHT]), images, targets)


def test_cutmix_equals_that_of_keras():
    layer = keras.layers.CutMix(seed=0)
    top, left, bottom, right = (tf.fill([BATCH], float(edge)) for edge in (2, 1, 8, 4))
    masks, weight = layer._generate_batch_mask((BATCH, *SHAPE), (left, right, top, bottom))
    chosen = {"permutation_order": NEXT, "batch_masks": masks, "mix_weight": weight}
    images, targets = layer.transform_images(pictures(), chosen), layer.transform_labels(ONE_HOT, chosen)
    assert_same(ours(data.cutmix(), [2, 1, 8, 4]), images, targets)


@pytest.mark.filterwarnings("ignore")  # of the import of keras_cv
def test_mixup_equals_that_of_keras_cv(monkeypatch):
    from keras_cv.layers import MixUp

    layer = MixUp(seed=0)
    monkeypatch.setattr(tf.random, "shuffle", lambda values, seed=None: tf.constant(NEXT))
    monkeypatch.setattr(layer, "_sample_from_beta", lambda *arguments: tf.fill([BATCH], WEIGHT))
    mixed = layer({"images": tf.constant(pictures(), tf.float32), "labels": tf.constant(ONE_HOT)})
    assert_same(ours(data.mixup(), [WEIGHT]), mixed["images"], mixed["labels"])


@pytest.mark.filterwarnings("ignore")
def test_cutmix_equals_that_of_keras_cv_for_a_box_inside_the_image(monkeypatch):
    """Where their box sticks out they count its whole area, and the targets are not the share of the pixels."""
    from keras_cv.layers import CutMix

    layer, centre = CutMix(seed=0), iter([4, 3])  # row, then column
    monkeypatch.setattr(tf.random, "shuffle", lambda values, seed=None: tf.constant(NEXT))
    monkeypatch.setattr(tf.random, "uniform", lambda **arguments: tf.fill([BATCH], next(centre)))
    monkeypatch.setattr(layer, "_sample_from_beta", lambda *arguments: tf.fill([BATCH], 1 - 0.6**2))
    mixed = layer(
        {"images": tf.constant(pictures(), tf.float32), "labels": tf.constant(ONE_HOT)}
    )  # a box of 5 rows and 4 columns
    seen = np.argwhere((np.asarray(mixed["images"]) != pictures()).any(axis=(0, 3)))
    box = [*seen.min(axis=0), *(seen.max(axis=0) + 1)]
    assert_same(ours(data.cutmix(), np.array(box, np.int32)), mixed["images"], mixed["labels"])
