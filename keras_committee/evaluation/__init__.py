"""What do the members say of every example, and how good are their committees?"""

from keras_committee.evaluation.calibration import calibrate
from keras_committee.evaluation.committee_search import Goal
from keras_committee.evaluation.evaluate import evaluate
from keras_committee.evaluation.pool import Pool, PoolMember, gather
from keras_committee.evaluation.predictions import Votes, cast_votes
from keras_committee.evaluation.robustness import robustness
from keras_committee.evaluation.select import member_latencies, select, select_cascade

__all__ = [
    "Goal",
    "Pool",
    "PoolMember",
    "Votes",
    "calibrate",
    "cast_votes",
    "evaluate",
    "gather",
    "member_latencies",
    "robustness",
    "select",
    "select_cascade",
]
