"""Training: one member, all members, and what is seen of it."""

from keras_committee.training.committee import train_committee

__all__ = ["train_committee"]
