"""Which weights does a member train in an epoch, and which stand still?"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

import keras

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import did_you_mean


class LayerFreezer:
    """Gives a model's layers leave to train, epoch by epoch.

    A layer trains where a pattern matches its name or that of a layer or model around it. All others are frozen: they
    keep every bit of their weights, whatever the optimizer, their batch normalisation runs in inference mode, and no
    gradient is computed for them. Dropout and stochastic depth work as ever. What the member's builder froze by itself
    stays frozen.

    Args:
        model: The member, just built.
        trainable_layers: Function of the epoch, counted from 0, to the patterns (`fnmatch`) of the names of the layers that train
            in it. None trains all of them.
        epochs: For how many epochs.

    Raises:
        RecipeError: If a pattern matches no layer, or an epoch would train nothing.
    """

    def __init__(self, model: keras.Model, trainable_layers: Callable[[int], Sequence[str]] | None, epochs: int):
        self._model = model
        self._layers = [(names, part) for names, part in _iter_layers(model) if part.trainable]
        self._patterns = (
            [_patterns_for_epoch(trainable_layers, epoch) for epoch in range(epochs)] if trainable_layers else []
        )
        for patterns in set(self._patterns):
            self._check_matches(patterns)

    def begin_epoch(self, epoch: int) -> tuple[str, ...]:
        """Freeze what does not train in this epoch; returns the patterns of what does, none where all do."""
        patterns = self._patterns[epoch] if self._patterns else ()
        self._set_trainable(patterns or ("*",))
        return patterns

    def unfreeze(self) -> None:
        """Give all layers back what the builder made them."""
        self._set_trainable(("*",))

    def _set_trainable(self, patterns):
        selected = {
            id(part) for names, part in self._layers if _matches(names, patterns)
        }  # a shared layer has two names
        for _, part in self._layers:
            part.trainable = id(part) in selected

    def _check_matches(self, patterns):
        names = sorted({name for around, _ in self._layers for name in around})
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"Recipe(trainable_layers=...): {self._model.name} has no layer {pattern!r}.{did_you_mean(pattern, names)}"
                )
        selected = [part for around, part in self._layers if _matches(around, patterns)]
        if not any(part.trainable_variables for part in selected):
            raise RecipeError(
                f"Recipe(trainable_layers=...): {list(patterns)} trains no weight of {self._model.name}. "
                "Name layers with weights."
            )


def _patterns_for_epoch(trainable_layers, epoch) -> tuple[str, ...]:
    patterns = trainable_layers(epoch)
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise RecipeError(
            "Recipe(trainable_layers=...) must return a list of names of layers, such as ['logits'] or ['*']. "
            f"Received for epoch {epoch}: {patterns!r}"
        )
    return tuple(patterns)


def _matches(names, patterns) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _iter_layers(layer, ancestors: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], keras.layers.Layer]]:
    """The layers that have weights of their own or none inside, each with its name and those around it.

    A layer comes before those inside it, which inherit whether it trains.
    """
    for child in layer._layers:
        names = (*ancestors, child.name)
        if child._trainable_variables or not child._layers:
            yield names, child
        yield from _iter_layers(child, names)
