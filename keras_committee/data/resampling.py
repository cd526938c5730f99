"""Which training examples a member sees, how often and with which weight: bagging, folds and balanced classes.

Everything here is a pure function of labels, seed and index, so that a resumed member sees what it would have seen.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from keras_committee.errors import RecipeError, did_you_mean

# The third number of a seed separates independent draws; 0 to 3 belong to order, augmentation, mixing and flips.
_BOOTSTRAP, _FOLDS = 4, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampling:
    """The training examples of each member of a committee: bagging, or k-fold cross-validation.

    Both are made within each class, so that a class has nearly the same share in every member's examples. Only the
    training split is resampled: no member sees a validation or test example.

    Args:
        method: `"bootstrap"`: each member draws as many examples as there are, with replacement, and leaves out a share
            of 1 / e, 37 %. `"kfold"`: the examples are divided into as many folds as there are members, and member `i`
            leaves out fold `i`.
        members: Number of members.
        seed: Seed of the committee.

    Source: Breiman 1996, Bagging predictors, https://doi.org/10.1007/BF00058655
    """

    method: str
    members: int
    seed: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Restore from `dataclasses.asdict`, also after a JSON round trip."""
        return cls(method=config["method"], members=config["members"], seed=config["seed"])

    def rows(self, labels: np.ndarray, index: int) -> np.ndarray:
        """Return the training examples of member `index`, ascending, with repetitions: int64 `(rows,)`.

        Args:
            labels: Of the training split, int32 `(examples,)`.
            index: Index of the member.
        """
        if self.method == "kfold":
            return np.flatnonzero(folds(labels, self.members, self.seed) != index)
        rng = np.random.default_rng((self.seed, index, _BOOTSTRAP))
        drawn = [rows[rng.integers(0, len(rows), len(rows))] for rows in _rows_by_class(labels)]
        return np.sort(np.concatenate(drawn)) if drawn else np.arange(0)

    def held_out(self, labels: np.ndarray, index: int) -> np.ndarray:
        """Return the training examples that member `index` does not see, ascending: int64 `(k,)`."""
        return np.setdiff1d(np.arange(len(labels)), self.rows(labels, index))

    def epoch_size(self, examples: int) -> int:
        """Return the number of examples in an epoch of the member that has the fewest."""
        return examples - -(-examples // self.members) if self.method == "kfold" else examples


def folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Divide examples at random into folds; return the fold of each, int64 `(examples,)`.

    The sizes of the folds differ by at most one, and so do the numbers of examples of each class in them.

    Args:
        labels: int32 `(examples,)`.
        count: Number of folds.
        seed: Integer of 0 or more.
    """
    rng = np.random.default_rng((seed, 0, _FOLDS))
    by_class = [rng.permutation(rows) for rows in _rows_by_class(labels)]
    result = np.zeros(len(labels), np.int64)
    if by_class:  # dealt like cards, one class after the other
        result[np.concatenate(by_class)] = np.arange(len(labels)) % count
    return result


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return as many examples as there are, in random order, equally many of each class: int64 `(examples,)`.

    The examples of a class occur equally often; numbers that do not divide evenly differ by one, at random.

    Args:
        labels: int32 `(examples,)`.
        rng: The source of randomness.
    """
    by_class = _rows_by_class(labels)
    if not by_class:
        return np.arange(0)
    counts = np.full(len(by_class), len(labels) // len(by_class))
    counts[rng.permutation(len(by_class))[: len(labels) % len(by_class)]] += 1
    parts = []
    for rows, count in zip(by_class, counts.tolist(), strict=True):
        repeats, more = divmod(count, len(rows))
        parts += [np.tile(rows, repeats), rng.permutation(rows)[:more]]
    return rng.permutation(np.concatenate(parts))


def class_weights(
    class_weight: str | Mapping[Any, float] | None, labels: np.ndarray, classes: Sequence[str]
) -> np.ndarray | None:
    """Return the weight of the loss of each class, float32 `(classes,)`; None where all are 1.

    Args:
        class_weight: `"balanced"`: examples / (classes * examples of the class), as scikit-learn's; the classes are
            those with an example. Or a mapping from names or numbers of classes to weights; the others have 1. Or None.
        labels: Of the training split, int32 `(examples,)`.
        classes: Names of the classes, in label order.

    Raises:
        RecipeError: If the mapping has an unknown class.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        counts = np.bincount(labels, minlength=len(classes))
        present = np.count_nonzero(counts)
        return (len(labels) / (present * np.maximum(counts, 1)) * (counts > 0)).astype(np.float32)
    weights = np.ones(len(classes), np.float32)
    for key, weight in class_weight.items():
        weights[_class_index(key, classes)] = weight
    return weights


def _class_index(key: Any, classes: Sequence[str]) -> int:
    if key in classes:
        return list(classes).index(key)
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(classes):
        return key
    expected = f"a number of 0 to {len(classes) - 1}" if isinstance(key, int) else f"one of {', '.join(classes[:20])}"
    raise RecipeError(
        f"Recipe(class_weight=...): there is no class {key!r}; expected {expected}.{did_you_mean(str(key), classes)}"
    )


def _rows_by_class(labels: np.ndarray) -> list[np.ndarray]:
    """Return the examples of each class that has any, ascending."""
    if not len(labels):
        return []
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
