"""Summary of interleaved measurements."""

import statistics

import numpy as np


def summarize(measurements, reference):
    """Return one row per name: median, half the interquartile range, and ratio to the reference.

    Args:
        measurements: Dictionary from a row's name to its measurements, one per round.
        reference: Name of the row that the ratios of the medians refer to.

    Returns:
        List of dictionaries; `"rounds"` holds the measurements.
    """
    return [
        {
            "name": name,
            "median": statistics.median(rounds),
            "half_iqr": float(np.subtract(*np.percentile(rounds, [75, 25])) / 2),
            "ratio": statistics.median(rounds) / statistics.median(measurements[reference]),
            "rounds": rounds,
        }
        for name, rounds in measurements.items()
    ]
