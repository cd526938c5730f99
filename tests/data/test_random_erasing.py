"""Random erasing equals the loop over rectangles, and draws as defined."""

import numpy as np
import pytest
import tensorflow as tf

from keras_committee import data
from keras_committee.errors import RecipeError

SHAPE = (20, 16, 3)


def rectangle(row, augment, shape):
    """Top, left, height and width of the definition."""
    area, log_ratio, top, left = (float(np.float32(part) / np.float32(2**31)) for part in row[1:5])
    area = (augment.area[0] + (augment.area[1] - augment.area[0]) * area) * shape[0] * shape[1]
    low, high = np.log(augment.ratio)
    ratio = np.exp(low + (high - low) * log_ratio)
    height, width = (
        int(np.clip(round(side), 1, length))
        for side, length in zip((np.sqrt(area * ratio), np.sqrt(area / ratio)), shape, strict=False)
    )
    return int(top * (shape[0] - height + 1)), int(left * (shape[1] - width + 1)), height, width


@pytest.mark.parametrize("area", [(0.02, 0.33), (0.9, 1.0)])
def test_the_erased_pixels_are_those_of_the_loop(area):
    augment = data.random_erasing(0.7, area=area, fill=7)
    images = np.random.default_rng(1).integers(8, 256, (200, *SHAPE), dtype=np.uint8)
    draws, expected = augment.draw(np.random.default_rng(2), 200), images.copy()
    for image, row in zip(expected, draws, strict=True):
        if row[0]:
            top, left, height, width = rectangle(row, augment, SHAPE)
            image[top : top + height, left : left + width] = 7
    np.testing.assert_array_equal(augment.apply(tf.constant(images), tf.constant(draws)), expected)


def test_rectangles_have_the_areas_and_ratios_of_the_paper_and_reach_every_border():
    augment = data.random_erasing(1.0)
    draws = augment.draw(np.random.default_rng(3), 4_000)
    top, left, height, width = np.array([rectangle(row, augment, (200, 200)) for row in draws]).T
    free = (height < 200) & (width < 200)
    areas, ratios = (height * width / 200**2)[free], (height / width)[free]
    np.testing.assert_allclose(np.quantile(areas, [0, 0.5, 1]), [0.02, 0.17, 0.33], atol=0.01)
    np.testing.assert_allclose(np.quantile(np.log(ratios), [0, 0.5, 1]), np.log([0.3, 1, 1 / 0.3]), atol=0.1)
    assert (top.min(), left.min()) == (0, 0)
    assert ((top + height).max(), (left + width).max()) == (200, 200)


def test_noise_is_a_function_of_the_draws_alone_and_uniform():
    augment = data.random_erasing(1.0, area=(0.5, 0.9), ratio=(1, 1))
    images, draws = np.zeros((60, *SHAPE), np.uint8), augment.draw(np.random.default_rng(4), 60)
    erased = augment.apply(tf.constant(images), tf.constant(draws)).numpy()
    np.testing.assert_array_equal(erased[30:], augment.apply(tf.constant(images[30:]), tf.constant(draws[30:])))
    values = erased[erased > 0]
    np.testing.assert_allclose(np.quantile(values, [0.1, 0.5, 0.9]), [25.6, 128, 230.4], atol=4)


def test_the_share_of_the_images():
    assert data.random_erasing(0.25).draw(np.random.default_rng(5), 20_000)[:, 0].mean() == pytest.approx(
        0.25, abs=0.01
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"probability": 1.5},
        {"area": (0.0, 0.3)},
        {"area": (0.5, 0.2)},
        {"ratio": (2, 1)},
        {"fill": 256},
        {"fill": "red"},
    ],
)
def test_a_value_out_of_range_is_refused(arguments):
    [name] = arguments
    with pytest.raises(RecipeError, match=rf"random_erasing: {name} must .* Received: "):
        data.random_erasing(**arguments)
