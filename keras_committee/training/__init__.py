"""How is one member trained, how are all, and what is seen of it?"""

from keras_committee.training.committee import train_committee
from keras_committee.training.follower import take_part
from keras_committee.training.joining import joined
from keras_committee.training.report import Settings

__all__ = ["Settings", "joined", "take_part", "train_committee"]
