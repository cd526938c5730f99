"""Confidence intervals of accuracies and their losses, and the warning about choices made on few images."""

import math

import numpy as np

MIN_IMAGES_FOR_CHOICE = 100  # below, the 95 % interval of an accuracy is about 10 points wide or more on each side

_RESAMPLES = 10_000
_TAIL = 0.025  # probability on each side of a 95 % interval


def accuracy_interval(accuracy: float, examples: int) -> dict[str, float]:
    """Return the 95 % Wilson score interval `{"low", "high"}` of an accuracy over the examples.

    Args:
        accuracy: Fraction of correct examples. A mean over several committees counts as the nearest number of correct
            examples; its interval is too wide rather than too narrow.
        examples: Number of examples, at least 1.

    Source: Wilson 1927, JASA 22(158).
    """
    from scipy.stats import binomtest

    interval = binomtest(round(accuracy * examples), examples).proportion_ci(0.95, method="wilson")
    return {"low": float(interval.low), "high": float(interval.high)}


def accuracy_loss_interval(reference_correct: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Return `{"value", "low", "high"}`: the accuracy that is lost against a reference, and its 95 % interval.

    Percentile bootstrap over the examples, which are resampled in pairs. A resample contains no loss that the examples
    do not contain, so the upper end is at least the share of examples of which none was seen in as many, with the same
    certainty: 0.07 points for 5,000 examples.

    Args:
        reference_correct: Whether the reference classifies each example correctly, bool `(examples,)`, at least one.
        correct: The same of what is compared with it, on the same examples.
    """
    examples = len(correct)
    lost = int((reference_correct & ~correct).sum())
    gained = int((correct & ~reference_correct).sum())
    # How often an example occurs in a resample of independent draws matters only by its kind: a multinomial draw.
    shares = np.array([lost, gained, examples - lost - gained]) / examples
    resamples = np.random.default_rng(0).multinomial(examples, shares, size=_RESAMPLES)
    low, high = np.quantile((resamples[:, 0] - resamples[:, 1]) / examples, [_TAIL, 1 - _TAIL])
    value = (lost - gained) / examples
    return {"value": value, "low": float(low), "high": max(float(high), _unseen_share(examples))}


def examples_for_loss(interval: dict[str, float], examples: int, bound: float) -> int | None:
    """Return about how many examples make `high` of an `accuracy_loss_interval` less than `bound`, None if none do.

    Args:
        interval: The interval over `examples` examples.
        examples: Their number.
        bound: Largest loss of accuracy, a fraction.
    """
    if bound <= max(interval["value"], 0.0):
        return None
    by_number = math.log(_TAIL) / math.log1p(-bound)
    if interval["high"] <= _unseen_share(examples):
        return math.ceil(by_number) + 1
    width_ratio = (interval["high"] - interval["value"]) / (bound - interval["value"])
    return math.ceil(max(examples * width_ratio**2, by_number)) + 1


def few_images_note(chosen: str, examples: int, split: str = "validation") -> str:
    """Return a warning that `chosen` was chosen on few images, with their number; "" for 100 images or more.

    Args:
        chosen: What was chosen, with its verb, such as "the committee is chosen".
        examples: Number of images of the split.
        split: Name of the split.
    """
    if examples >= MIN_IMAGES_FOR_CHOICE:
        return ""
    images = f"{examples} {split} image{'' if examples == 1 else 's'}"
    return (
        f"warning: {chosen} on {images} only; fewer than {MIN_IMAGES_FOR_CHOICE} leave much to chance.\n"
        f"  For a more reliable choice, raise `{split}` of the recipe's data, in a new run."
    )


def _unseen_share(examples: int) -> float:
    """Return the share of examples of which so many independent ones contain none with probability 0.025."""
    return 1 - _TAIL ** (1 / examples)
