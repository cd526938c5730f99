"""Comparison of exported outputs with expected ones."""

import numpy as np
import pytest

from keras_committee.export import verify


def test_differences_shapes_and_values_that_are_not_finite_are_reported():
    ones = np.ones((2, 3), np.float32)
    assert verify.compare(ones, ones + np.float32(5e-6)) == (pytest.approx(5e-6, rel=0.1), "")
    assert "differs by 2.0e-05; the tolerance is 1e-05" in verify.compare(ones, ones + np.float32(2e-5))[1]
    assert "shape (2, 3) instead of (3, 2)" in verify.compare(ones, ones.T)[1]
    assert "not finite" in verify.compare(np.array([1, np.nan]), np.ones(2))[1]
    assert "not finite" in verify.compare(np.array([1, np.inf]), np.ones(2))[1]
    assert "differs in 1 of 2 values" in verify.compare(np.array([1, 2]), np.array([1, 3]))[1]
