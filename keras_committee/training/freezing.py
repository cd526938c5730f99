"""Layers that train in each epoch; all others are frozen."""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

import keras

from keras_committee.errors import RecipeError, did_you_mean


class LayerFreezer:
    """Freezes and unfreezes a model's layers, epoch by epoch.

    A layer trains if a pattern matches its name or that of a layer or model around it. All others are frozen: their
    weights stay bit-identical with any optimizer, their batch normalization runs in inference mode, and no gradient is
    computed for them. Dropout and stochastic depth work as usual. Layers that the member's builder froze stay frozen.

    Args:
        model: The member, just built.
        trainable_layers: Function of the epoch, counted from 0, that returns patterns (`fnmatch`) of the names of the
            layers to train. None trains all layers.
        epochs: Number of epochs.

    Raises:
        RecipeError: If a pattern matches no layer, or an epoch would train no weight.
    """

    def __init__(self, model: keras.Model, trainable_layers: Callable[[int], Sequence[str]] | None, epochs: int):
        self._model = model
        self._layers = [(names, layer) for names, layer in _iter_layers(model) if layer.trainable]
        self._patterns = (
            [_patterns_for_epoch(trainable_layers, epoch) for epoch in range(epochs)] if trainable_layers else []
        )
        for patterns in set(self._patterns):
            self._check_matches(patterns)

    def begin_epoch(self, epoch: int) -> tuple[str, ...]:
        """Freeze all but the layers of this epoch; return their patterns, empty if all layers train."""
        patterns = self._patterns[epoch] if self._patterns else ()
        self._set_trainable(patterns or ("*",))
        return patterns

    def unfreeze(self) -> None:
        """Restore what the builder made trainable."""
        self._set_trainable(("*",))

    def _set_trainable(self, patterns: Sequence[str]) -> None:
        # By id, as a shared layer has several names.
        selected = {id(layer) for names, layer in self._layers if _matches(names, patterns)}
        for _, layer in self._layers:
            layer.trainable = id(layer) in selected

    def _check_matches(self, patterns: Sequence[str]) -> None:
        known_names = sorted({name for names, _ in self._layers for name in names})
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known_names):
                raise RecipeError(
                    f"Recipe(trainable_layers=...): {self._model.name} has no layer {pattern!r}."
                    f"{did_you_mean(pattern, known_names)}"
                )
        if not any(layer.trainable_variables for names, layer in self._layers if _matches(names, patterns)):
            raise RecipeError(
                f"Recipe(trainable_layers=...): {list(patterns)} trains no weight of {self._model.name}. "
                "Name layers with weights."
            )


def _patterns_for_epoch(trainable_layers: Callable[[int], Sequence[str]], epoch: int) -> tuple[str, ...]:
    patterns = trainable_layers(epoch)
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise RecipeError(
            "Recipe(trainable_layers=...) must return a list of layer names, such as ['logits'] or ['*']. "
            f"Received for epoch {epoch}: {patterns!r}"
        )
    return tuple(patterns)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _iter_layers(layer, ancestors: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], keras.layers.Layer]]:
    """Yield each layer with weights of its own, or without inner layers, with its name and those around it.

    A layer comes before the layers inside it: setting its `trainable` also sets theirs.
    """
    for child in layer._layers:
        names = (*ancestors, child.name)
        if child._trainable_variables or not child._layers:
            yield names, child
        yield from _iter_layers(child, names)
