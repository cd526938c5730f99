"""How is one member trained, how are all, and what is seen of it?"""

from keras_committee.training.fit import joined, train_committee
from keras_committee.training.multihost_worker import take_part
from keras_committee.training.reporting import Settings

__all__ = ["Settings", "joined", "take_part", "train_committee"]
