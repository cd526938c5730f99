"""Evaluation: what the members say of every example, and how good their committees are."""

from keras_committee.evaluation.calibrate import calibrate
from keras_committee.evaluation.evaluate import evaluate
from keras_committee.evaluation.robustness import robustness
from keras_committee.evaluation.votes import Votes, cast_votes

__all__ = ["Votes", "calibrate", "cast_votes", "evaluate", "robustness"]
