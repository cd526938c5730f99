"""How well does a score tell known images from foreign ones?

A score is a float for each example, larger for the known ones, such as the confidence, or the negative mutual
information. The numbers of known and of foreign examples may differ.
"""

import numpy as np


def auroc(in_distribution: np.ndarray, ood: np.ndarray) -> float:
    """The probability that a known example scores more than a foreign one, ties counted half: 0.5 is guessing.

    It is the area under the receiver operating characteristic.

    Source: Hendrycks & Gimpel 2017, arXiv:1610.02136, section 2; the rank sum: Mann & Whitney 1947.
    """
    in_distribution, ood = _validated_scores("known", in_distribution), np.sort(_validated_scores("foreign", ood))
    num_below, num_up_to = (np.searchsorted(ood, in_distribution, side=side) for side in ("left", "right"))
    return float(np.mean(num_below + num_up_to) / (2 * len(ood)))


def fpr_at_tpr(in_distribution: np.ndarray, ood: np.ndarray, tpr: float = 0.95) -> float:
    """The share of foreign examples that pass the highest threshold which at least `tpr` of the known ones reach.

    An example passes if its score is not below the threshold. 0 is best; guessing gives `tpr`.

    Source: Liang et al. 2018, arXiv:1706.02690 (ODIN), "FPR at 95 % TPR".
    """
    in_distribution, ood = _validated_scores("known", in_distribution), _validated_scores("foreign", ood)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must lie in (0, 1]. Received: {tpr}")
    # Rounded, or 0.55 of 100, in floats a little more than 55, would ask for one more.
    num_passing = int(np.ceil(np.round(tpr * len(in_distribution), 9)))
    threshold = np.sort(in_distribution)[len(in_distribution) - num_passing]
    return float(np.mean(ood >= threshold))


def _validated_scores(name: str, scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise ValueError(f"{name} must be floats (examples,), none of them NaN. Received: shape {scores.shape}")
    return scores
