"""How are the data of a recipe read once, where several questions are asked of them?"""

import dataclasses
from typing import Any

from keras_committee.data import Splits
from keras_committee.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class LoadedData:
    """Data that are read already: `load()` gives `splits` as often as it is asked."""

    splits: Splits
    batch_size: int

    def load(self) -> Splits:
        return self.splits


def loaded(recipe: Recipe) -> tuple[Recipe, Splits]:
    """The recipe with its data read, and these. Raises DataError."""
    splits: Any = recipe.data.load()
    return dataclasses.replace(recipe, data=LoadedData(splits, recipe.data.batch_size)), splits
