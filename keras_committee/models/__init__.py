"""Which models can be members, and how do members become one model?"""

from keras_committee.models.ensemble import Ensemble
from keras_committee.models.predict import log_probabilities
from keras_committee.models.wide_resnet import wide_resnet

__all__ = ["Ensemble", "log_probabilities", "wide_resnet"]
