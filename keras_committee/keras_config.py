"""Keras' global configuration, which `KERAS_BACKEND` or a `keras.json` may have changed for another project."""

import contextlib
import os
import sys
from collections.abc import Iterator

from keras_committee import progress
from keras_committee.errors import RecipeError

_selected_backend = "tensorflow"


def select_backend(name: str) -> None:
    """Choose the backend of this process, `"tensorflow"` by default, before Keras is imported.

    Raises:
        RecipeError: If Keras already runs on another backend.
    """
    global _selected_backend
    _selected_backend = os.environ["KERAS_BACKEND"] = name
    use_standard_config()


@contextlib.contextmanager
def loading_backend() -> Iterator[None]:
    """Display that TensorFlow is loaded, unless it was before; the `with` block imports modules that need it."""
    name = "JAX" if _selected_backend == "jax" else "TensorFlow"
    with contextlib.nullcontext() if "keras" in sys.modules else progress.step(f"loading {name}"):
        yield


def load_keras() -> None:
    """Import Keras and its backend, which takes seconds."""
    with loading_backend():
        import keras  # noqa: F401


def require_channels_last() -> None:
    """Raise ValueError if Keras' layers would read the height of images `(height, width, channels)` as channels."""
    import keras

    if (received := keras.config.image_data_format()) != "channels_last":
        raise ValueError(
            "The networks take images (height, width, channels). Call "
            f"keras.config.set_image_data_format('channels_last') first. Received: {received!r}, as in keras.json"
        )


def use_standard_config() -> None:
    """Set Keras' defaults, float32 with channels last, whatever `keras.json` states. Do nothing before Keras is loaded.

    Raises:
        RecipeError: If Keras does not run on the backend of this process.
    """
    keras = sys.modules.get("keras")
    if keras is None or not hasattr(keras, "config"):  # still importing
        return
    if (backend := keras.config.backend()) != _selected_backend:
        raise RecipeError(
            f"Keras runs on {backend!r}, as KERAS_BACKEND or keras.json states; keras-committee needs "
            f"{_selected_backend!r}.\n  Set the environment variable KERAS_BACKEND={_selected_backend} before Keras is "
            "imported."
        )
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
