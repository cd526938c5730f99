"""Confidence intervals of accuracies, and the warning about choices made on few images."""

MIN_IMAGES_FOR_CHOICE = 100  # below, the 95 % interval of an accuracy is about 10 points wide or more on each side


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
