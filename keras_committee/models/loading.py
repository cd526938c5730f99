"""How does a trained member reach its file, and come back?"""

import os
import warnings
import zipfile
import zlib
from pathlib import Path

import keras

from keras_committee.errors import RunError, VerificationError
from keras_committee.files import flush_folder, writing
from keras_committee.models.untrusted import find_harm

# What Keras raises for files that are cut, flipped or written to mislead it.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, UserWarning)
_BROKEN = (zipfile.BadZipFile, zlib.error)


def load_member(file: Path) -> keras.Model:
    """The trained member in `file`, ready for inference; nothing in it runs as code.

    Raises:
        RunError: If the file cannot be read as a Keras model.
        VerificationError: If it holds code, or an archive that is meant to do harm.
    """
    try:
        harm = find_harm(file)
        if not harm:
            with warnings.catch_warnings():  # Keras would leave weights that are not in the file at random
                warnings.filterwarnings("error", message="Skipping nested container")
                return keras.saving.load_model(file, compile=False, safe_mode=True)
    except (*_DAMAGE, *_BROKEN) as error:
        raise RunError(
            f"{file} cannot be loaded: {error}\n"
            "  Delete it and run `keras-committee train` again to train this member anew."
        ) from error
    raise VerificationError(
        f"{file} {harm}. Nothing of it was run.\n"
        "  A member may have layers of Keras, keras_committee and its own recipe only. Delete a file that is not yours."
    )


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
