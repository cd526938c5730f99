"""Evaluation of members, committees and cascades: predictions, scores, selection, calibration, robustness."""

from keras_committee.evaluation.calibration import calibrate
from keras_committee.evaluation.committee_search import Objective
from keras_committee.evaluation.evaluate import evaluate
from keras_committee.evaluation.pool import Pool, PoolMember, load_pool
from keras_committee.evaluation.predictions import SplitPredictions, load_or_compute_predictions
from keras_committee.evaluation.promise import PromiseGoal, make_promise
from keras_committee.evaluation.robustness import robustness
from keras_committee.evaluation.select import member_latencies, select, select_cascade
from keras_committee.evaluation.training_summary import training_summary

__all__ = [
    "Objective",
    "Pool",
    "PoolMember",
    "PromiseGoal",
    "SplitPredictions",
    "calibrate",
    "evaluate",
    "load_or_compute_predictions",
    "load_pool",
    "make_promise",
    "member_latencies",
    "robustness",
    "select",
    "select_cascade",
    "training_summary",
]
