"""Do labelled images contradict what was declared of a model: the scale of its pixels, the order of its classes?"""

import math
from collections.abc import Callable

import numpy as np

EXAMPLES = 256
_SIGMAS = 4.0  # so far apart two accuracies on the same images are by no chance


def better_scale(declared: str, answers: Callable[[str], np.ndarray], labels: np.ndarray, scales: list[str]):
    """The scale under which a model is right far more often than under the declared one, or None.

    Args:
        declared: Name of the scale that was declared.
        answers: Function of a scale's name: the classes that the model then gives the images, int `(examples,)`.
        labels: int `(examples,)`.
        scales: The names of those to try.

    Returns:
        None, or `(scale, right under it, right as declared)`.
    """
    right = answers(declared) == labels
    others = {scale: answers(scale) == labels for scale in scales if scale != declared}
    best = max(others, key=lambda scale: others[scale].sum(), default=None)
    if best is None or not _far_better(others[best], right):
        return None
    return best, int(others[best].sum()), int(right.sum())


def better_order(answers: np.ndarray, labels: np.ndarray, classes: int):
    """Another order of the classes under which the answers are right far more often, or None.

    It is found on every other example, and judged on the rest.

    Args:
        answers: The classes that the model gives the images, int `(examples,)`.
        labels: int `(examples,)`.
        classes: Number of classes.

    Returns:
        None, or `(order, right in it, right as declared)` of the examples judged; `order[i]` is the output that
        answers for class i.
    """
    from scipy.optimize import linear_sum_assignment

    together = np.zeros((classes, classes), int)
    np.add.at(together, (labels[::2], answers[::2]), 1)
    order = linear_sum_assignment(together, maximize=True)[1]
    answers, labels = answers[1::2], labels[1::2]
    reordered, right = order[labels] == answers, answers == labels
    return (order.tolist(), int(reordered.sum()), int(right.sum())) if _far_better(reordered, right) else None


def _far_better(a: np.ndarray, b: np.ndarray) -> bool:
    """McNemar's test: only the images on which they differ tell."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return only_a - only_b > _SIGMAS * math.sqrt(only_a + only_b)
