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


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Keep compiled programs: nearly every test trains the same stack, whose compilation takes most of the time."""
    if keras.backend.backend() != "jax":
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # programs of other folders may have been compiled without it
