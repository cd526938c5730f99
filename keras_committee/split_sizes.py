"""Sizes of the splits: how many examples are held out and how many batches the others fill; division of a split."""

import hashlib


def resolve_count(count_or_fraction: float, num_examples: int) -> int:
    """Return a number of examples: a float is a fraction of `num_examples`, an integer is a count."""
    return round(count_or_fraction * num_examples) if isinstance(count_or_fraction, float) else count_or_fraction


def hold_out_counts(num_examples: int, *, validation: float, test: float) -> tuple[int, int]:
    """Return the number of examples to hold out for validation and for test.

    Args:
        num_examples: Number of training examples before anything is held out.
        validation: Count, or fraction of the examples that are not test.
        test: Count, or fraction of all examples. It is held out first.
    """
    test_count = resolve_count(test, num_examples)
    return resolve_count(validation, num_examples - test_count), test_count


def full_batches(num_examples: int, batch_size: int) -> int:
    """Return the number of steps of one epoch: an incomplete batch is left to the next epoch."""
    return num_examples // batch_size


def divide_for_promise(fingerprint: str, num_examples: int) -> tuple[list[int], list[int]]:
    """Divide a split into the examples to choose with and those to make promises on.

    Members, weights, temperatures and thresholds of a cascade are chosen with the first part; prediction sets and
    acceptance are fitted to the second one, which nothing may have been chosen with. The division depends on the
    arguments only: the examples are ordered by a hash of their position.

    Args:
        fingerprint: Of the source of the examples.
        num_examples: Number of examples.

    Returns:
        The indices of each part, ascending: `num_examples // 2` to choose with, and the others.
    """

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{fingerprint} {index}".encode()).digest()

    order = sorted(range(num_examples), key=key)
    half = num_examples // 2
    return sorted(order[:half]), sorted(order[half:])
