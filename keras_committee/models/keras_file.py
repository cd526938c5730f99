"""How does a `.keras` file of whoever wrote it become a member?"""

from collections.abc import Sequence
from pathlib import Path

import keras

from keras_committee.errors import RunError, VerificationError
from keras_committee.models.foreign import as_member
from keras_committee.models.loading import load_member
from keras_committee.models.scales import Scale


def from_keras_file(
    path: str | Path,
    *,
    scale: Scale = "0..255",
    order: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    name: str | None = None,
) -> keras.Model:
    """The model in a `.keras` file as a member. Code in the file, such as a `Lambda`, is never run.

    Args:
        path: The file.
        scale: As `as_member` takes it.
        order: As `as_member` takes it.
        image_size: As `as_member` takes it.
        name: As `as_member` takes it.

    Raises:
        VerificationError: If it is no such file, holds code, or cannot be a member.
        ValueError: As `as_member`.
    """
    return as_member(load_keras_file(path), scale=scale, order=order, image_size=image_size, name=name)


def load_keras_file(path: str | Path) -> keras.Model:
    """The model in a `.keras` file, as it is. Raises VerificationError."""
    path = Path(path)
    if path.suffix != ".keras":  # what is in an .h5 file runs as code, whatever `safe_mode` says
        raise VerificationError(f"{path} is no .keras file. Save the model anew: model.save('name.keras').")
    if not path.is_file():
        raise VerificationError(f"there is no file {path}.")
    try:
        return load_member(path)
    except RunError as error:
        raise VerificationError(
            f"{path} cannot be loaded: {error.__cause__}\n"
            "  A member has layers of Keras, keras-cv and keras_committee only. Nothing else in the file was run."
        ) from error
