"""Detection of out-of-distribution examples by a score.

A score is one float per example, higher for in-distribution ones, such as the confidence or the negative mutual
information. The numbers of in-distribution and out-of-distribution examples may differ.
"""

import numpy as np


def auroc(in_distribution: np.ndarray, ood: np.ndarray) -> float:
    """Area under the receiver operating characteristic.

    It is the probability that an in-distribution example has a higher score than an out-of-distribution one, with ties
    counted half: 0.5 is chance level.

    Source: Hendrycks & Gimpel 2017, arXiv:1610.02136, section 2.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labels_and_scores(in_distribution, ood)))


def fpr_at_tpr(in_distribution: np.ndarray, ood: np.ndarray, tpr: float = 0.95) -> float:
    """Fraction of out-of-distribution examples at or above the highest threshold that `tpr` of the others reach.

    An example passes if its score is not below the threshold. 0 is best; chance level is `tpr`.

    Args:
        in_distribution: Floats `(examples,)`.
        ood: Floats `(examples,)`.
        tpr: Fraction of the in-distribution examples that must pass, in (0, 1].

    Source: Liang et al. 2018, arXiv:1706.02690 (ODIN), "FPR at 95 % TPR".
    """
    from sklearn.metrics import roc_curve

    labels, scores = _labels_and_scores(in_distribution, ood)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must lie in (0, 1]. Received: tpr={tpr}")
    false_rates, true_rates, _ = roc_curve(labels, scores, drop_intermediate=False)
    # The tolerance keeps 0.55 of 100 examples, a little more than 55 in floating point, from requiring one more.
    return float(false_rates[np.argmax(true_rates >= tpr - 1e-11)])


def _labels_and_scores(in_distribution: np.ndarray, ood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [_validated("in_distribution", in_distribution), _validated("ood", ood)]
    return np.repeat([1, 0], [len(part) for part in parts]), np.concatenate(parts)


def _validated(name: str, scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"{name} must be finite floats of shape (examples,). Received: shape {scores.shape}")
    return scores
