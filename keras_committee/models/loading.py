"""How does a trained member reach its file, and come back?"""

import os
from pathlib import Path

import keras

from keras_committee.errors import RunError
from keras_committee.files import flush_folder, writing


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


def save_member(model: keras.Model, file: Path) -> None:
    """Writes the member to `file`, a `.keras` file, which is there whole or not at all. Raises ResourceError."""
    part = file.with_name(".part-" + file.name)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        model.save(part)
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, file)
        flush_folder(file.parent)
