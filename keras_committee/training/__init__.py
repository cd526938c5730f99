"""Training: one member, all members of a run, and the display of their progress."""

from keras_committee.training.fit import connect, train_committee
from keras_committee.training.multihost_worker import run_as_worker
from keras_committee.training.reporting import TrainingOptions

__all__ = ["TrainingOptions", "connect", "run_as_worker", "train_committee"]
