"""With which weights does a member begin, where not with random ones?"""

from collections.abc import Callable
from pathlib import Path

import keras

from keras_committee.errors import RecipeError, RunError, VerificationError
from keras_committee.member_dir import MemberFolder
from keras_committee.models.loading import load_member


def copy_weights(initial: str | Callable[[int], str] | None, model: keras.Model, index: int) -> None:
    """Copy the weights of a trained network into `model` wherever layers of one place have the same shapes.

    The layers that have weights are taken in their order. A layer of other shapes keeps its random weights, such as the
    logits of another number of classes; there must be as many such layers in both, and at least one must fit.

    Args:
        initial: A `.keras` file, or a run folder, whose member `index` is taken; or a function of the index that
            returns one. None leaves the model as it is.
        model: The member, just built.
        index: Its index.

    Raises:
        RecipeError: If there is no such file, or the network in it is another one.
    """
    if initial is None:
        return
    path = _find(Path(initial(index) if callable(initial) else initial), index)
    try:
        source = load_member(path)
    except (RunError, VerificationError) as error:
        raise RecipeError(f"Recipe(initial=...): cannot load {path}: {error.__cause__ or error}") from error
    theirs, ours = _with_weights(source), _with_weights(model)
    if len(theirs) != len(ours):
        raise RecipeError(
            f"Recipe(initial=...): {path} has {len(theirs)} layers with weights; member {index} ({model.name}) has "
            f"{len(ours)}. Give the weights of a network of the same family and depth."
        )
    pairs = [(there, here) for there, here in zip(theirs, ours, strict=True) if _shapes(there) == _shapes(here)]
    if not pairs:
        raise RecipeError(f"Recipe(initial=...): no layer of {path} has the shapes of member {index} ({model.name}).")
    for there, here in pairs:
        here.set_weights(there.get_weights())


def _find(path: Path, index: int) -> Path:
    file = MemberFolder(path, index).model if path.is_dir() else path
    if not file.is_file():
        raise RecipeError(
            f"Recipe(initial=...): there is no {file}. Give a .keras file or a folder with finished members."
        )
    if file.suffix != ".keras":  # what is in an .h5 file runs as code, whatever `safe_mode` says
        raise RecipeError(
            f"Recipe(initial=...): {file} is no .keras file. Give one, or a folder with finished members."
        )
    return file


def _with_weights(model: keras.Model) -> list[keras.layers.Layer]:
    """The innermost layers that have weights, in their order."""
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    return [layer for layer in layers if not any(inner.weights for inner in layer._flatten_layers(include_self=False))]


def _shapes(layer) -> list[tuple]:
    return [tuple(weight.shape) for weight in layer.weights]
