"""The bundled digits are scaled and split as documented."""

import numpy as np
import sklearn.datasets

from keras_committee import data


def pixels(split):
    return np.concatenate([images for images, _ in split.batches(500).as_numpy_iterator()])


def test_the_splits_are_stratified_and_complete():
    loaded = data.digits(64).load()
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (1257, 180, 360)
    assert loaded.classes == tuple("0123456789")
    assert set(np.bincount(loaded.test.labels)) <= {34, 35, 36, 37}
    assert set(np.bincount(loaded.validation.labels)) <= {17, 18, 19}
    assert loaded.batch_size == 64


def test_the_pixels_are_the_bundled_ones_enlarged_four_times():
    bundled = sklearn.datasets.load_digits()
    loaded = data.digits(64, validation=0, test=0).load()
    images = pixels(loaded.train)
    assert images.shape == (1797, 32, 32, 3)
    assert (images.min(), images.max()) == (0, 255)
    for row, column in ((0, 0), (1, 2), (3, 3)):  # every part of a 4x4 block
        np.testing.assert_array_equal(np.rint(images[:, row::4, column::4, 1] * (16 / 255)), bundled.images)
    np.testing.assert_array_equal(loaded.train.labels, bundled.target)


def test_the_test_split_does_not_depend_on_the_validation_split():
    first, second = data.digits(64, validation=180).load(), data.digits(64, validation=0.3).load()
    assert first.test.fingerprint() == second.test.fingerprint()
    assert len(second.validation) == 431  # 0.3 of the 1,437 that are not test
