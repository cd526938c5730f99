"""PadCropFlip equals the plain loop over padded images."""

import numpy as np
import pytest
import tensorflow as tf

from keras_committee import data
from keras_committee.data.augment import draw_epoch
from keras_committee.errors import RecipeError


def padded_loop(images, draws, pad):
    """The definition: pad by reflection, crop, flip, one image after another."""
    height, width = images.shape[1:3]
    results = []
    for image, (top, left, flip) in zip(images, draws, strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        crop = padded[top : top + height, left : left + width]
        results.append(crop[:, :: 1 - 2 * flip])
    return np.stack(results)


@pytest.mark.parametrize("pad", [0, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_apply_equals_the_loop_over_padded_images(pad, flip):
    images = np.random.default_rng(1).integers(0, 256, (40, 9, 7, 3), dtype=np.uint8)
    augment = data.pad_crop_flip(pad, flip=flip)
    draws = augment.draw(np.random.default_rng(2), 40)
    varied = augment.apply(tf.constant(images), tf.constant(draws))
    assert varied.dtype == tf.uint8
    np.testing.assert_array_equal(varied, padded_loop(images, draws, pad))


def test_draws_cover_every_crop_and_both_directions():
    draws = data.pad_crop_flip(2).draw(np.random.default_rng(0), 2_000)
    assert draws.shape == (2_000, 3)
    assert draws.dtype == np.int32
    assert [sorted(set(column)) for column in draws.T] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1]]
    assert 0.45 < draws[:, 2].mean() < 0.55


def test_draws_are_a_pure_function_of_the_generator():
    augment = data.pad_crop_flip(4)
    first, again, other = (augment.draw(np.random.default_rng(seed), 50) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_flip_nothing_is_flipped():
    assert data.pad_crop_flip(4, flip=False).draw(np.random.default_rng(0), 500)[:, 2].max() == 0


def test_alternating_flips_mirror_every_image_in_every_other_epoch():
    augment = data.compose(data.pad_crop_flip(1), data.pad_crop_flip(2, flip="alternate"))
    epochs = np.stack([draw_epoch(augment, seed=7, epoch=epoch, examples=400) for epoch in range(4)])
    assert (epochs[0, :, 5] + epochs[1, :, 5] == 1).all()
    np.testing.assert_array_equal(epochs[0, :, 5], epochs[2, :, 5])
    assert 0.4 < epochs[0, :, 5].mean() < 0.6
    assert not np.array_equal(epochs[0, :, 5], draw_epoch(augment, seed=8, epoch=0, examples=400)[:, 5])
    assert not np.array_equal(epochs[0, :, 2], 1 - epochs[1, :, 2])  # ordinary flips are drawn in each epoch


def test_a_flip_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match=r"True, False or 'alternate'\. Received: flip='always'"):
        data.pad_crop_flip(4, flip="always")


def test_a_negative_pad_is_refused():
    with pytest.raises(RecipeError, match=r"0 or more pixels\. Received: pad=-1"):
        data.pad_crop_flip(-1)
