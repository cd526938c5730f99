"""Which examples are held out from training, and which make a smaller trial?

Neither depends on a run's seed: all members of a committee, and all runs, share one hold-out.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import train_test_split


def amount(part: float, examples: int) -> int:
    """Examples that `part` stands for: a fraction where it is a float, a count where it is an integer."""
    return round(part * examples) if isinstance(part, float) else part


def hold_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices that stay and `count` indices held out, both ascending, with the class shares of `labels`."""
    everything = np.arange(len(labels))
    if count == 0:
        return everything, everything[:0]
    stay, held = train_test_split(everything, test_size=count, stratify=labels, random_state=0)
    return np.sort(stay), np.sort(held)


def check_hold_out(labels: np.ndarray, count: int, classes: Sequence[str], name: str) -> list[str]:
    """Why `count` examples cannot be held out from `labels` with every class on both sides; empty if they can.

    `classes` are the class names in label order, `name` is what the message calls the held-out part.
    """
    if count == 0:
        return []
    present, sizes = np.unique(labels, return_counts=True)
    if count >= len(labels):
        return [f"{name} takes {count} of {len(labels)} examples: none are left for training"]
    if min(count, len(labels) - count) < len(present):
        return [f"{name} takes {count} of {len(labels)} examples: too few for {len(present)} classes on both sides"]
    return [
        f"class {classes[label]} has only one example to share between training and {name}"
        for label, size in zip(present, sizes, strict=True)
        if size < 2
    ]


def evenly(labels: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` indices, ascending, spread evenly over the classes and within each.

    Every class keeps an example where `limit` is at least the number of classes.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    _, firsts = np.unique(labels[by_class], return_index=True)
    if limit < len(firsts):
        return np.sort(by_class[_spread(len(labels), limit)])
    rest = np.delete(by_class, firsts)
    chosen = rest[_spread(len(rest), limit - len(firsts))]
    return np.sort(np.concatenate([by_class[firsts], chosen]))


def _spread(length, count):
    """`count` different places, evenly over `range(length)`; `count` is at most `length`."""
    return (np.arange(count) * 2 + 1) * length // (2 * max(count, 1))
