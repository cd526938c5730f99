"""How does a trained member come back from its file?"""

from pathlib import Path

import keras

from keras_committee.errors import RunError


def load_member(file: Path) -> keras.Model:
    """The trained member in `file`, ready for inference.

    Raises:
        RunError: If the file cannot be read as a Keras model.
    """
    try:
        return keras.saving.load_model(file, compile=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} cannot be loaded: {error}\n"
            "  Delete it and run `keras-committee train` again to train this member anew."
        ) from error
