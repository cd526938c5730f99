"""The tests of this folder run in a process of the JAX backend: `make jax`."""

import keras
import pytest

from keras_committee import keras_config


@pytest.fixture(scope="session", autouse=True)
def jax_process():
    """Make this a process of the JAX backend, as `train --stacked` does."""
    if keras.backend.backend() != "jax":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_config, "_selected_backend", "jax")
        yield
