"""Mixup and CutMix equal their written definitions and the layers of Keras and keras-cv."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_committee import data
from keras_committee.data.mix import mix_partners, mix_targets
from keras_committee.errors import RecipeError

SHAPE = (9, 7, 3)  # rows and columns must not be confused


def random_images(examples):
    return np.random.default_rng(1).integers(0, 256, (examples, *SHAPE), dtype=np.uint8)


def flat(examples):
    """Images of one value each, all different, so that every pixel identifies its image."""
    values = 1 + np.arange(examples, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (examples, *SHAPE)).copy()


def rows(mix, batches=1_000, seed=3, shape=SHAPE):
    return mix.draw(np.random.default_rng(seed), batches, shape)


def mixup_loop(images, weight):
    """The definition, one image after another, in double precision."""
    batch = len(images)
    return np.stack(
        [np.rint(weight * images[i] + (1 - weight) * images[(i + 1) % batch]).astype(np.uint8) for i in range(batch)]
    )


def cutmix_loop(images, top, left, bottom, right):
    """The definition, one pixel after another."""
    mixed = images.copy()
    for i, row, column in np.ndindex(images.shape[:3]):
        inside = top <= row < bottom and left <= column < right
        mixed[i, row, column] = images[(i + inside) % len(images), row, column]
    return mixed


def box_loop(weight, height, width, row, column):
    """The box of the paper's code around a center, corner by corner."""
    part = math.sqrt(1 - weight)
    high, wide = int(height * part) // 2, int(width * part) // 2
    corners = [row - high, column - wide, row + high, column + wide]
    return [min(max(edge, 0), limit) for edge, limit in zip(corners, [height, width] * 2, strict=True)]


@pytest.mark.parametrize("examples", [1, 2, 5])
@pytest.mark.parametrize("weight", [0.0, 0.2, 45 / 64, 1.0])  # 0.7 in float32 would miss the ties that rounding meets
def test_mixup_equals_the_weighted_mean_of_neighbors(examples, weight):
    images = random_images(examples)
    mixed, share = data.mixup().apply(tf.constant(images), tf.constant([weight], tf.float32))
    assert mixed.dtype == tf.uint8
    assert share == np.float32(weight)
    np.testing.assert_array_equal(mixed, mixup_loop(images, np.float64(np.float32(weight))))


@pytest.mark.parametrize("box", [(0, 0, 9, 7), (2, 1, 8, 4), (0, 3, 5, 7), (4, 4, 4, 6), (3, 2, 3, 2)])
@pytest.mark.parametrize("examples", [1, 2, 5])
def test_cutmix_equals_the_loop_over_pixels(examples, box):
    images = random_images(examples)
    mixed, _ = data.cutmix().apply(tf.constant(images), tf.constant(box, tf.int32))
    assert mixed.dtype == tf.uint8
    np.testing.assert_array_equal(mixed, cutmix_loop(images, *box))


def test_the_share_of_cutmix_is_exactly_that_of_the_pixels_kept():
    images, mix = flat(4), data.cutmix(0.7)
    for draws in rows(mix, 60):
        mixed, share = mix.apply(tf.constant(images), tf.constant(draws))
        kept = (mixed.numpy() == images).mean(axis=(1, 2, 3))
        np.testing.assert_array_equal(np.full(4, share), kept.astype(np.float32))


def test_apply_runs_in_a_graph_of_unknown_batch_size():
    images = random_images(3)
    draws = rows(data.cutmix(), 1)[0]
    signature = [tf.TensorSpec((None, *SHAPE), tf.uint8), tf.TensorSpec((4,), tf.int32)]
    graph = tf.function(data.cutmix().apply, input_signature=signature)
    np.testing.assert_array_equal(graph(images, draws)[0], cutmix_loop(images, *draws))


@pytest.mark.parametrize("alpha", [0.2, 0.7, 3.0])
def test_the_weight_of_mixup_follows_the_beta_distribution(alpha):
    weights = rows(data.mixup(alpha), 4_000)
    assert weights.shape == (4_000, 1)
    assert weights.dtype == np.float32
    assert stats.kstest(weights[:, 0], stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_box_of_cutmix_is_that_of_the_paper(alpha):
    generator = np.random.default_rng(3)  # the same draws as `rows`, taken in the written order
    weights = generator.beta(alpha, alpha, size=500)
    centers = generator.integers(0, SHAPE[:2], size=(500, 2))
    expected = [box_loop(weight, *SHAPE[:2], *center) for weight, center in zip(weights, centers, strict=True)]
    boxes = rows(data.cutmix(alpha), 500)
    assert boxes.dtype == np.int32
    np.testing.assert_array_equal(boxes, expected)


def test_boxes_lie_inside_the_image_and_cover_all_of_it():
    boxes = rows(data.cutmix(), 3_000)
    assert (boxes >= 0).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert boxes[:, 2].max() == 9
    assert boxes[:, 3].max() == 7
    assert (boxes.min(axis=0)[:2] == 0).all()


@pytest.mark.parametrize("mix", [data.mixup(), data.cutmix()])
def test_draws_are_a_pure_function_of_the_generator(mix):
    np.testing.assert_array_equal(rows(mix, seed=3), rows(mix, seed=3))
    assert not np.array_equal(rows(mix, seed=3), rows(mix, seed=4))
    assert len(rows(mix, 0)) == 0


def test_targets_equal_the_loop_over_examples():
    labels = np.array([2, 0, 0, 3], np.int32)
    expected = np.zeros((4, 5))
    for i in range(4):
        expected[i, labels[i]] += 0.7
        expected[i, labels[(i + 1) % 4]] += 1 - 0.7
    targets = mix_targets(tf.constant(labels), 0.7, 5)
    assert targets.dtype == tf.float32
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    assert targets[1, 0] == 1.0


def test_a_single_example_is_its_own_partner():
    targets = mix_targets(tf.constant([1]), tf.constant(0.2), 3)
    np.testing.assert_array_equal(targets, [[0.0, 1.0, 0.0]])


def test_the_partner_is_the_next_example_and_the_first_for_the_last():
    np.testing.assert_array_equal(mix_partners(tf.constant([4, 7, 9])), [7, 9, 4])


@pytest.mark.parametrize("alpha", [0, -0.2, math.nan, math.inf])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_an_alpha_that_is_not_above_zero_is_refused(name, alpha):
    with pytest.raises(RecipeError, match=rf"{name}: alpha .* above 0\. Received: alpha={alpha}"):
        getattr(data, name)(alpha)


BATCH = 5
NEXT = np.roll(np.arange(BATCH), -1)  # the partner of each
LABELS = np.array([2, 0, 0, 3, 1])
ONE_HOT = np.eye(4, dtype=np.float32)[LABELS]
WEIGHT = 45 / 64  # a sum of powers of two: every product is exact, whatever the order


def ours(mix, draws):
    images, share = mix.apply(tf.constant(random_images(BATCH)), tf.constant(draws))
    return images.numpy(), mix_targets(tf.constant(LABELS), share, 4).numpy()


def assert_same(one, images, targets):
    np.testing.assert_array_equal(one[0], np.rint(images))
    np.testing.assert_allclose(one[1], targets, atol=1e-6)


def test_mixup_equals_that_of_keras():
    layer = keras.layers.MixUp(seed=0)
    chosen = {"mix_weight": tf.fill([BATCH], WEIGHT), "permutation_order": NEXT}
    images, targets = layer.transform_images(random_images(BATCH), chosen), layer.transform_labels(ONE_HOT, chosen)
    assert_same(ours(data.mixup(), [WEIGHT]), images, targets)


def test_cutmix_equals_that_of_keras():
    layer = keras.layers.CutMix(seed=0)
    top, left, bottom, right = (tf.fill([BATCH], float(edge)) for edge in (2, 1, 8, 4))
    masks, weight = layer._generate_batch_mask((BATCH, *SHAPE), (left, right, top, bottom))
    chosen = {"permutation_order": NEXT, "batch_masks": masks, "mix_weight": weight}
    images, targets = layer.transform_images(random_images(BATCH), chosen), layer.transform_labels(ONE_HOT, chosen)
    assert_same(ours(data.cutmix(), [2, 1, 8, 4]), images, targets)


@pytest.mark.filterwarnings("ignore")  # of the import of keras_cv
def test_mixup_equals_that_of_keras_cv(monkeypatch):
    from keras_cv.layers import MixUp

    layer = MixUp(seed=0)
    monkeypatch.setattr(tf.random, "shuffle", lambda values, seed=None: tf.constant(NEXT))
    monkeypatch.setattr(layer, "_sample_from_beta", lambda *arguments: tf.fill([BATCH], WEIGHT))
    mixed = layer({"images": tf.constant(random_images(BATCH), tf.float32), "labels": tf.constant(ONE_HOT)})
    assert_same(ours(data.mixup(), [WEIGHT]), mixed["images"], mixed["labels"])


@pytest.mark.filterwarnings("ignore")
def test_cutmix_equals_that_of_keras_cv_for_a_box_inside_the_image(monkeypatch):
    """keras-cv counts the full area of a box that exceeds the image, so its targets are not the fraction of pixels."""
    from keras_cv.layers import CutMix

    layer, center = CutMix(seed=0), iter([4, 3])  # row, then column
    monkeypatch.setattr(tf.random, "shuffle", lambda values, seed=None: tf.constant(NEXT))
    monkeypatch.setattr(tf.random, "uniform", lambda **arguments: tf.fill([BATCH], next(center)))
    monkeypatch.setattr(layer, "_sample_from_beta", lambda *arguments: tf.fill([BATCH], 1 - 0.6**2))
    mixed = layer(
        {"images": tf.constant(random_images(BATCH), tf.float32), "labels": tf.constant(ONE_HOT)}
    )  # a box of 5 rows and 4 columns
    changed = np.argwhere((np.asarray(mixed["images"]) != random_images(BATCH)).any(axis=(0, 3)))
    box = [*changed.min(axis=0), *(changed.max(axis=0) + 1)]
    assert_same(ours(data.cutmix(), np.array(box, np.int32)), mixed["images"], mixed["labels"])
