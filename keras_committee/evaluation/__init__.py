"""What do the members say of every example, and how good are their committees?"""

from keras_committee.evaluation.calibrate import calibrate
from keras_committee.evaluation.candidates import Goal
from keras_committee.evaluation.cascade_choice import select_cascade
from keras_committee.evaluation.evaluate import evaluate
from keras_committee.evaluation.pool import Pool, PoolMember, gather
from keras_committee.evaluation.robustness import robustness
from keras_committee.evaluation.select import member_latencies, select
from keras_committee.evaluation.votes import Votes, cast_votes

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
