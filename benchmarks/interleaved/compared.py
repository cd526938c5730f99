"""What is told of sides that took their turns one after another: median, spread, ratio to one of them?"""

import statistics

import numpy as np


def compared(figures, reference):
    """A row for each side.

    Args:
        figures: For each side's name what each of its turns measured.
        reference: The name that the ratios of the medians are to.

    Returns:
        The rows, with the turns themselves as `rounds`. The spread is half the distance between the quartiles.
    """
    return [
        {
            "name": name,
            "median": statistics.median(turns),
            "spread": float(np.subtract(*np.percentile(turns, [75, 25])) / 2),
            "ratio": statistics.median(turns) / statistics.median(figures[reference]),
            "rounds": turns,
        }
        for name, turns in figures.items()
    ]
