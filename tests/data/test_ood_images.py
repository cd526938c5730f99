"""Generated images are repeatable and have the values of their definitions."""

import numpy as np
import pytest

from keras_committee.data import ood_images


@pytest.mark.parametrize("kind", ood_images.OOD_GENERATORS)
def test_generated_images_are_repeatable_all_different_and_of_any_size(kind):
    images = ood_images.generate_ood(kind, 3, (20, 33), seed=4)
    assert (images.dtype, images.shape) == (np.uint8, (3, 20, 33, 3))
    np.testing.assert_array_equal(images[:2], ood_images.generate_ood(kind, 2, (20, 33), seed=4))
    assert np.abs(images[0].astype(float) - images[1]).mean() > 5
    assert np.abs(images.astype(float) - ood_images.generate_ood(kind, 3, (20, 33), seed=5)).mean() > 5


def test_stripes_are_a_wave_between_two_colors():
    size, rng = (20, 33), np.random.default_rng((4, 3, 0))
    angle, periods, phase = rng.uniform(0, np.pi), rng.uniform(2, 8), rng.uniform(0, 2 * np.pi)
    first, second = rng.random((2, 3))
    [image] = ood_images.generate_ood("stripes", 1, size, seed=4)
    for row, column in np.ndindex(size):
        distance = row / 19 * np.sin(angle) + column / 32 * np.cos(angle)
        weight = (np.sin(2 * np.pi * periods * distance + phase) + 1) / 2
        np.testing.assert_allclose(image[row, column], 255 * ((1 - weight) * first + weight * second), atol=0.51)


def test_generated_noise_has_its_values():
    assert set(np.unique(ood_images.generate_ood("rademacher", 1, (9, 9)))) == {0, 255}
    gaussian = ood_images.generate_ood("gaussian", 2, (60, 60))
    assert (gaussian == 0).mean() == pytest.approx(0.16, abs=0.02)  # one standard deviation below the middle
