"""How well does a score tell known images from foreign ones?

A score is a float for each example, larger for the known ones, such as the confidence, or the negative mutual
information. The numbers of known and of foreign examples may differ.
"""

import numpy as np


def auroc(known: np.ndarray, foreign: np.ndarray) -> float:
    """The probability that a known example scores more than a foreign one, ties counted half: 0.5 is guessing.

    It is the area under the receiver operating characteristic.

    Source: Hendrycks & Gimpel 2017, arXiv:1610.02136, section 2; the rank sum: Mann & Whitney 1947.
    """
    known, foreign = _checked("known", known), np.sort(_checked("foreign", foreign))
    below, up_to = (np.searchsorted(foreign, known, side=side) for side in ("left", "right"))
    return float(np.mean(below + up_to) / (2 * len(foreign)))


def fpr_at_tpr(known: np.ndarray, foreign: np.ndarray, tpr: float = 0.95) -> float:
    """The share of foreign examples that pass the highest threshold which at least `tpr` of the known ones reach.

    An example passes if its score is not below the threshold. 0 is best; guessing gives `tpr`.

    Source: Liang et al. 2018, arXiv:1706.02690 (ODIN), "FPR at 95 % TPR".
    """
    known, foreign = _checked("known", known), _checked("foreign", foreign)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must lie in (0, 1]. Received: {tpr}")
    # Rounded, or 0.55 of 100, in floats a little more than 55, would ask for one more.
    passing = int(np.ceil(np.round(tpr * len(known), 9)))
    threshold = np.sort(known)[len(known) - passing]
    return float(np.mean(foreign >= threshold))


def _checked(name: str, scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise ValueError(f"{name} must be floats (examples,), none of them NaN. Received: shape {scores.shape}")
    return scores
