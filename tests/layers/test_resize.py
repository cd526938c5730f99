"""Resizing against Keras' own."""

import keras
import numpy as np
import pytest

from keras_committee import flops
from keras_committee.layers import Resize


def images(rows, columns):
    return np.random.default_rng(2).integers(0, 256, (2, rows, columns, 3)).astype("float32")


@pytest.mark.parametrize(("rows", "columns", "size"), [(32, 20, (24, 7)), (9, 8, (13, 8)), (8, 12, (3, 30))])
def test_resizing_is_that_of_keras(rows, columns, size):
    expected = keras.ops.image.resize(images(rows, columns), size, antialias=True)
    np.testing.assert_allclose(Resize(*size)(images(rows, columns)), expected, rtol=1e-5, atol=1e-3)


def test_resizing_compiles_and_stays_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    image = keras.Input((9, 8, 3))
    model = keras.Model(image, Resize(4, 5)(image))
    model.compile(jit_compile=keras.backend.backend() != "torch")
    out = model.predict(images(9, 8), verbose=0)
    assert (out.dtype, out.shape) == (np.float32, (2, 4, 5, 3))
    np.testing.assert_allclose(out, keras.ops.image.resize(images(9, 8), (4, 5), antialias=True), rtol=1e-5)
    assert flops.multiply_adds(model) == 4 * 8 * 3 * 9 + 4 * 5 * 3 * 8


def test_resizing_requires_a_known_size():
    with pytest.raises(ValueError, match=r"known size\. Received: shape=\(None, None, 8, 3\)"):
        Resize(4, 5)(keras.Input((None, 8, 3)))
